"""Every random thing comes from the experiment's one seed."""

import zlib


def derive_seed(seed: int, purpose: str, number: int = 0) -> int:
    """An independent 63-bit seed for one purpose in one round, the same on every machine."""
    import numpy as np

    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])
