"""From a dataset's spec to packed shards, a table of samples, and a report in which nothing is missing."""

import hashlib
import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from winnow.datasets.decode import Decoded, Picture, Unreadable, quiet_pillow
from winnow.datasets.entries import NO_LABEL, ROLES, Allow, Entries, Listing, Rows
from winnow.datasets.packing import PackWriter
from winnow.datasets.roles import Roles, assign
from winnow.datasets.sources import list_sources
from winnow.domain import DatasetSpec, Role
from winnow.errors import ImagesUnreadable, ImageTooSlow, InvalidInput, WinnowError

_EXAMPLES = 10
SKIPPED_LISTED = 100
"""Unreadable files that a report names: it stands in each list of datasets."""
_THREADS = 8
_AHEAD = 4  # decoded patches held for each thread
_DIGEST = 16  # bytes
_Read = tuple[Decoded, bytes] | Unreadable
"""A patch and the digest of its pixels, or why there is none."""


class IngestStopped(WinnowError):
    """`should_stop` said so; nothing was kept."""

    code = "ingest-stopped"


class SampleRow(NamedTuple):
    """One packed patch. `idx` is its row in the shards, and stable for ever."""

    idx: int
    key: str
    role: Role
    label: str | None
    group: str | None


@dataclass(frozen=True)
class Ingested:
    """What an ingest made: of each packed patch its entry with its final role, in the order of the shards.

    `skipped` are (key, reason) of what could not be read, of which `report` names the first; `counts` is role → label →
    patches; `report` can be stored as JSON.
    """

    packed: Entries
    skipped: list[tuple[str, str]]
    classes: list[str]
    counts: dict[str, dict[str, int]]
    report: dict[str, Any]

    def samples(self) -> Iterator[SampleRow]:
        """The packed patches, by idx."""
        return (SampleRow(idx, key, role, label, group) for idx, (key, role, label, group, _) in enumerate(self.packed))


@dataclass
class _Tally:
    """What happened to the files so far."""

    read: int = 0
    kept: "array[int]" = field(default_factory=lambda: array("q"))
    problems: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    converted: Counter[str] = field(default_factory=Counter[str])
    resized: Counter[str] = field(default_factory=Counter[str])
    multi_frame: int = 0
    digests: bytearray = field(default_factory=bytearray)

    def keep(self, row: int, patch: Decoded, digest: bytes) -> None:
        self.kept.append(row)
        self.converted.update([patch.converted] if patch.converted else [])
        self.resized.update([patch.resized] if patch.resized else [])
        self.multi_frame += patch.frames > 1
        self.digests += digest


def check(spec: DatasetSpec, allow: Allow) -> None:
    """Everything about `spec` that can be known without decoding an image.

    Sources exist and are allowed, labels and roles are known, draws fit, groups do not straddle. Raises
    InvalidInput with the field, PathForbidden.
    """
    _plan(spec, list_sources(spec, allow=allow).entries)


def ingest(
    spec: DatasetSpec,
    directory: Path,
    *,
    allow: Allow,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    decode_seconds: float | None = None,
) -> Ingested:
    """Decode every image of `spec` and pack it into `directory`.

    `allow(path)` is called with every resolved path before it is opened, from several threads.
    `on_progress(done, total)` is called after each image, `should_stop()` before each.

    An image that takes longer than `decode_seconds` ends it all: its thread cannot be ended, the caller's process can.

    Raises ImageTooSlow, ImagesUnreadable (policy `fail`), InvalidInput, PathForbidden, IngestStopped, OSError for a
    full disk; after any of them the directory holds no pack.
    """
    listing = list_sources(spec, allow=allow)
    _plan(spec, listing.entries)
    tally = _Tally()
    total = len(listing.entries)
    writer = PackWriter(directory, image_size=spec.image_size, shard_size=spec.shard_size)
    with writer as pack, closing(_decode_all(listing, spec.image_size, decode_seconds)) as patches:
        for row, patch in enumerate(patches):
            if should_stop is not None and should_stop():
                raise IngestStopped(f"stopped after {tally.read} of {total} images")
            tally.read += 1
            if isinstance(patch, Unreadable):
                tally.problems.append((listing.entries.keys[row], str(patch)))
            else:
                tally.keep(row, *patch)
                pack.append(patch[0].pixels)
            if on_progress is not None:
                on_progress(tally.read, total)
        if tally.problems and spec.on_unreadable == "fail":
            raise ImagesUnreadable(tally.problems)
        kept = listing.entries.take(np.array(tally.kept, np.int64))
        roles, draws = _assign(kept, tally, spec)
        pack.finish()
    return _result(kept.with_roles(roles), tally, draws)


def _plan(spec: DatasetSpec, entries: Entries) -> None:
    for number, draw in enumerate(spec.draws):
        if draw.source is not None and draw.source >= len(spec.sources):
            raise InvalidInput(
                f"draws.{number}.source", f"{draw.source}; there are {len(spec.sources)} sources, from 0"
            )
    assign(entries, spec.draws)


def _assign(kept: Entries, tally: _Tally, spec: DatasetSpec) -> tuple[Roles, list[dict[str, Any]]]:
    """The roles of what could be read. Where that is too little, the error says what could not."""
    try:
        return assign(kept, spec.draws)
    except InvalidInput as error:
        if not tally.problems:
            raise
        name, why = tally.problems[0]
        skipped = f"{len(tally.problems)} of {tally.read} images could not be read and were skipped; {name}: {why}"
        raise InvalidInput(error.field, f"{error.reason} ({skipped})") from error


def _decode_all(listing: Listing, size: int, seconds: float | None) -> Generator[_Read]:
    """Patches in the order of the listing, decoded by a few threads (Pillow lets go of the interpreter's lock).

    At most `_AHEAD` patches a thread wait to be taken: memory does not grow with the dataset.
    """
    threads = min(_THREADS, os.cpu_count() or 1)
    waiting: deque[tuple[str, Future[_Read]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    is_stuck = False
    with quiet_pillow():
        try:
            for key, picture in zip(listing.entries.keys, listing.pictures(), strict=True):
                waiting.append((key, pool.submit(_read, picture, size)))
                if len(waiting) >= threads * _AHEAD:
                    yield _result_of(*waiting.popleft(), seconds)
            while waiting:
                yield _result_of(*waiting.popleft(), seconds)
        except ImageTooSlow:
            is_stuck = True
            raise
        finally:
            pool.shutdown(wait=not is_stuck, cancel_futures=True)


def _result_of(key: str, decoded: Future[_Read], seconds: float | None) -> _Read:
    try:
        return decoded.result(seconds)
    except TimeoutError:
        assert seconds is not None
        raise ImageTooSlow(key, seconds) from None


def _read(picture: Picture, size: int) -> _Read:
    try:
        patch = picture.read(size)
    except Unreadable as reason:
        return reason
    return patch, hashlib.blake2b(np.ascontiguousarray(patch.pixels).data, digest_size=_DIGEST).digest()


def _result(packed: Entries, tally: _Tally, draws: list[dict[str, Any]]) -> Ingested:
    report = {
        "read": tally.read,
        "packed": len(packed),
        "skipped": [{"path": name, "reason": reason} for name, reason in tally.problems[:SKIPPED_LISTED]],
        "skipped_count": len(tally.problems),
        "converted": _ranked(tally.converted),
        "resized": _ranked(tally.resized),
        "multi_frame": tally.multi_frame,
        "duplicates": _duplicates(packed, tally.digests),
        "groups": "column" if packed.groups.used() else "none (splits do not respect patients)",
        "draws": draws,
    }
    return Ingested(packed, tally.problems, packed.labels.used(), _counts(packed), report)


def _counts(packed: Entries) -> dict[str, dict[str, int]]:
    names = (*packed.labels.words, NO_LABEL)
    table: dict[str, dict[str, int]] = {}
    for number, role in enumerate(ROLES):
        codes, counts = np.unique(packed.labels.codes[packed.roles == number], return_counts=True)
        if len(codes):
            table[role.value] = dict(sorted((names[code], int(n)) for code, n in zip(codes, counts, strict=True)))
    return table


def _duplicates(packed: Entries, digests: bytearray) -> dict[str, Any]:
    """Patches whose pixels are equal: they stay, and a person is told, above all where they join two roles."""
    first = _first_equal(np.frombuffer(digests, np.uint64).reshape(len(packed), 2))
    others = np.flatnonzero(first != np.arange(len(first)))
    across = others[packed.roles[first[others]] != packed.roles[others]]
    shown = (across if len(across) else others)[:_EXAMPLES]
    examples = [[packed.keys[first[row]], packed.keys[row]] for row in shown]
    return {"count": len(others), "across_roles": len(across), "examples": examples}


def _first_equal(digests: NDArray[np.uint64]) -> Rows:
    """The first row with the same digest: (n, 2) → (n,)."""
    order = np.lexsort(digests.T)  # stable: equal ones stand in the order of their rows
    ordered = digests[order]
    starts = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(order)]
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return first


def _ranked(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])))
