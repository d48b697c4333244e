"""What an ingest has seen of the images: counted shard by shard, so that another attempt can count on."""

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field

from winnow.datasets.decode import Decoded, Unreadable
from winnow.datasets.shelf import Reached
from winnow.paths import as_text

_DIGEST = 16  # bytes


def digest_of(pixels: memoryview) -> bytes:
    """Of a patch, 16 bytes: equal patches are told to a person."""
    return hashlib.blake2b(pixels, digest_size=_DIGEST).digest()


class Rows:
    """The digest of images by their keys and marks, in their order."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=_DIGEST)

    def add(self, key: str, mark: str) -> None:
        self._hash.update(repr((key, mark)).encode())

    def digest(self) -> str:
        return self._hash.hexdigest()


class Filling:
    """The shard that is being filled, from row `start` of the listing on."""

    def __init__(self, start: int) -> None:
        self.read = start
        self.patches = 0
        self._rows = Rows()
        self._skipped: list[tuple[int, str]] = []
        self._converted, self._resized = Counter[str](), Counter[str]()
        self._multi_frame = 0
        self._digests = bytearray()

    def add(self, key: str, mark: str, patch: Decoded | Unreadable, digest: bytes) -> None:
        """The next image of the listing."""
        self._rows.add(key, mark)
        if isinstance(patch, Unreadable):
            self._skipped.append((self.read, as_text(str(patch))))  # a suffix may stand in it, or what Pillow says
        else:
            self.patches += 1
            self._converted.update([patch.converted] if patch.converted else [])
            self._resized.update([patch.resized] if patch.resized else [])
            self._multi_frame += patch.frames > 1
            self._digests += digest
        self.read += 1

    def reached(self) -> Reached:
        return Reached(
            read=self.read,
            rows=self._rows.digest(),
            skipped=self._skipped,
            converted=dict(self._converted),
            resized=dict(self._resized),
            multi_frame=self._multi_frame,
            digests=self._digests.hex(),
        )


@dataclass
class Tally:
    """What was seen of the shards so far: rows of the listing that were kept, and (row, reason) of the others."""

    read: int = 0
    kept: "array[int]" = field(default_factory=lambda: array("q"))
    skipped: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    converted: Counter[str] = field(default_factory=Counter[str])
    resized: Counter[str] = field(default_factory=Counter[str])
    multi_frame: int = 0
    digests: bytearray = field(default_factory=bytearray)

    def add(self, reached: Reached) -> None:
        """The next shard."""
        skipped = {row for row, _ in reached.skipped}
        self.kept.extend(row for row in range(self.read, reached.read) if row not in skipped)
        self.read = reached.read
        self.skipped += reached.skipped
        self.converted.update(reached.converted)
        self.resized.update(reached.resized)
        self.multi_frame += reached.multi_frame
        self.digests += bytes.fromhex(reached.digests)
