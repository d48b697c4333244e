"""From a dataset's spec to packed shards, a table of samples, and a report in which nothing is missing."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from winnow.datasets.decode import DECODER, Decoded, Picture, Unreadable, quiet_pillow
from winnow.datasets.entries import NO_LABEL, ROLES, Allow, Entries, Listing
from winnow.datasets.packing import PackWriter, Shard
from winnow.datasets.roles import Roles, assign
from winnow.datasets.shelf import Part, Reached, Shelf
from winnow.datasets.sources import list_sources
from winnow.datasets.tally import Filling, Rows, Tally, digest_of
from winnow.domain import DatasetSpec, Role, SampleRow
from winnow.errors import ImagesUnreadable, ImageTooSlow, InvalidInput, WinnowError

_EXAMPLES = 10
SKIPPED_LISTED = 100
"""Unreadable files that a report names: it stands in each list of datasets."""
_THREADS = 8
_AHEAD = 4  # decoded patches held for each thread
_LOOKS, _LOOK = 256, 32  # pictures held at once while their marks are taken, and by one thread


class _Read(NamedTuple):
    """A patch and the digest of its pixels, or why there is none; the mark that its picture had before."""

    patch: Decoded | Unreadable
    digest: bytes
    mark: str


class IngestStopped(WinnowError):
    """`should_stop` said so; full shards are kept."""

    code = "ingest-stopped"


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


def check(spec: DatasetSpec, allow: Allow) -> dict[Role, int]:
    """Everything about `spec` that can be known without decoding an image; how many samples each role has if all of
    them can be decoded.

    Sources exist and are allowed, labels and roles are known, draws fit, groups do not straddle. Raises
    InvalidInput with the field, PathForbidden.
    """
    roles = _plan(spec, list_sources(spec, allow=allow).entries)
    return dict(zip(ROLES, np.bincount(roles, minlength=len(ROLES)).tolist(), strict=True))


def ingest(
    spec: DatasetSpec,
    shelf: Shelf,
    scratch: Path,
    *,
    allow: Allow,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_taken_over: Callable[[int], None] | None = None,
    decode_seconds: float | None = None,
) -> Ingested:
    """Decode every image of `spec` and pack it on `shelf`; shards are written in `scratch`.

    It goes on behind the shards of an earlier attempt whose images are the same still: by key, size and time of
    writing.

    `allow(path)` is called with every resolved path before it is opened, from several threads.
    `on_progress(done, total)` is called after each image, `should_stop()` before each; first comes
    `on_taken_over(patches)`, with what is kept of earlier attempts.

    An image that takes longer than `decode_seconds` ends it all: its thread cannot be ended, the caller's process can.

    Raises ImageTooSlow, ImagesUnreadable (policy `fail`), InvalidInput, PathForbidden, IngestStopped, OSError for a
    full disk; after any of them the shelf holds no pack, but the shards that were full.
    """
    listing = list_sources(spec, allow=allow)
    entries, total = listing.entries, len(listing.entries)
    _plan(spec, entries)
    maker, tally = _maker(spec), Tally()
    unchanged = partial(_unchanged, listing=listing, size=spec.image_size, should_stop=should_stop)
    stored = _take_over(shelf, maker, tally, unchanged)
    if on_taken_over is not None:
        on_taken_over(len(tally.kept))

    def keep(reached: Reached, shard: Shard) -> None:
        shelf.keep(Part(maker=maker, shard=shard, reached=reached))

    writer = PackWriter(scratch, shelf.put, image_size=spec.image_size, shard_size=spec.shard_size, stored=stored)
    with writer as pack, closing(_decode_all(listing, tally.read, spec.image_size, decode_seconds)) as patches:
        filling = Filling(tally.read)
        if on_progress is not None and stored:
            on_progress(filling.read, total)
        for patch, digest, mark in patches:
            if should_stop is not None and should_stop():
                raise IngestStopped(f"stopped after {filling.read} of {total} images")
            filling.add(entries.keys[filling.read], mark, patch, digest)
            if isinstance(patch, Decoded):
                then = None
                if filling.patches == spec.shard_size:
                    reached = filling.reached()
                    tally.add(reached)
                    filling, then = Filling(filling.read), partial(keep, reached)
                pack.append(patch.pixels, then)
            if on_progress is not None:
                on_progress(filling.read, total)
        tally.add(filling.reached())
        skipped = [(entries.keys[row], reason) for row, reason in tally.skipped]
        if skipped and spec.on_unreadable == "fail":
            raise ImagesUnreadable(skipped)
        kept = entries.take(np.array(tally.kept, np.int64))
        roles, draws = _assign(kept, skipped, tally.read, spec)
        pack.finish()
    return _result(kept.with_roles(roles), skipped, tally, draws)


def _plan(spec: DatasetSpec, entries: Entries) -> Roles:
    for number, draw in enumerate(spec.draws):
        if draw.source is not None and draw.source >= len(spec.sources):
            raise InvalidInput(
                f"draws.{number}.source", f"{draw.source}; there are {len(spec.sources)} sources, from 0"
            )
    return assign(entries, spec.draws)[0]


def _maker(spec: DatasetSpec) -> str:
    """The digest of what makes an image a patch. Roles, labels and policies may change: they are no part of a shard."""
    sources = [source.model_dump(mode="json", include={"kind", "path", "root", "synthetic"}) for source in spec.sources]
    told = sources, spec.image_size, spec.max_pixels, spec.shard_size, DECODER, np.__version__, PIL.__version__
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _take_over(
    shelf: Shelf, maker: str, tally: Tally, unchanged: Callable[[Iterable[Part]], Iterable[Part]]
) -> list[Shard]:
    """The shards that an earlier attempt left, as far as their images are the same still; they are counted."""
    shards: list[Shard] = []
    for part in shelf.take_over(maker, unchanged):
        tally.add(part.reached)
        shards.append(part.shard)
    return shards


def _unchanged(
    parts: Iterable[Part], listing: Listing, size: int, should_stop: Callable[[], bool] | None
) -> Generator[Part]:
    """Those from the first on whose images are listed in the same order still, and have the marks that they had.

    One that could not be read is tried again: what kept it from being read may be gone, and the file be as it was.
    """
    keys, pictures = iter(listing.entries.keys), listing.pictures(0)
    start = 0
    with quiet_pillow(), ThreadPoolExecutor(_THREADS, thread_name_prefix="look") as pool:
        for part in parts:
            if should_stop is not None and should_stop():
                raise IngestStopped("stopped while it was looked how far an earlier attempt came")
            reached, skipped, rows = part.reached, {row for row, _ in part.reached.skipped}, Rows()
            again: list[Picture] = []
            while some := list(islice(pictures, min(_LOOKS, reached.read - start))):
                marks = chain.from_iterable(pool.map(_marks, (some[n : n + _LOOK] for n in range(0, len(some), _LOOK))))
                for key, mark in zip(islice(keys, len(some)), marks, strict=True):
                    rows.add(key, mark)
                again += [picture for row, picture in enumerate(some, start) if row in skipped]
                start += len(some)
            if rows.digest() != reached.rows or any(pool.map(partial(_is_readable, size), again)):
                return
            yield part


def _marks(pictures: list[Picture]) -> list[str]:
    return [picture.mark() for picture in pictures]


def _is_readable(size: int, picture: Picture) -> bool:
    return isinstance(_read(picture, size).patch, Decoded)


def _assign(
    kept: Entries, skipped: list[tuple[str, str]], read: int, spec: DatasetSpec
) -> tuple[Roles, list[dict[str, Any]]]:
    """The roles of what could be read. Where that is too little, the error says what could not."""
    try:
        return assign(kept, spec.draws)
    except InvalidInput as error:
        if not skipped:
            raise
        name, why = skipped[0]
        example = f"{len(skipped)} of {read} images could not be read and were skipped; {name}: {why}"
        raise InvalidInput(error.field, f"{error.reason} ({example})") from error


def _decode_all(listing: Listing, start: int, size: int, seconds: float | None) -> Generator[_Read]:
    """Patches from row `start` of the listing on, decoded by a few threads (Pillow lets go of the interpreter's lock).

    At most `_AHEAD` patches a thread wait to be taken: memory does not grow with the dataset.
    """
    threads = min(_THREADS, os.cpu_count() or 1)
    waiting: deque[tuple[str, Future[_Read]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    is_stuck = False
    with quiet_pillow():
        try:
            keys = islice(listing.entries.keys, start, None)
            for key, picture in zip(keys, listing.pictures(start), strict=True):
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
    mark = picture.mark()  # before: what is written meanwhile has another one
    try:
        patch = picture.read(size)
    except Unreadable as reason:
        return _Read(reason, b"", mark)
    return _Read(patch, digest_of(np.ascontiguousarray(patch.pixels).data), mark)


def _result(packed: Entries, skipped: list[tuple[str, str]], tally: Tally, draws: list[dict[str, Any]]) -> Ingested:
    report = {
        "read": tally.read,
        "packed": len(packed),
        "skipped": [{"path": name, "reason": reason} for name, reason in skipped[:SKIPPED_LISTED]],
        "skipped_count": len(skipped),
        "converted": _ranked(tally.converted),
        "resized": _ranked(tally.resized),
        "multi_frame": tally.multi_frame,
        "duplicates": _duplicates(packed, tally.digests),
        "groups": _groups(len(packed.groups.used())),
        "draws": draws,
    }
    return Ingested(packed, skipped, packed.labels.used(), _counts(packed), report)


def _groups(number: int) -> str:
    if not number:
        return "none (splits do not respect patients)"
    return f"{number} (those held out are in no other role)"


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


def _first_equal(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The first row with the same digest: (n, 2) → (n,)."""
    order = np.lexsort(digests.T)  # stable: equal ones stand in the order of their rows
    ordered = digests[order]
    starts = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(order)]
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return first


def _ranked(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])))
