"""From a dataset's spec to packed shards, a table of samples, and a report in which nothing is missing."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from winnow.datasets import roles
from winnow.datasets.decode import Decoded, Picture, Unreadable, quiet_pillow
from winnow.datasets.entries import NO_LABEL, Allow, Entry, Listing
from winnow.datasets.packing import PackWriter
from winnow.datasets.sources import list_sources
from winnow.domain import DatasetSpec, Role
from winnow.errors import ImagesUnreadable, ImageTooSlow, InvalidInput, WinnowError

_EXAMPLES = 10
_THREADS = 8
_AHEAD = 4  # decoded patches held for each thread


class IngestStopped(WinnowError):
    """`should_stop` said so; nothing was kept."""

    code = "ingest-stopped"


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One packed patch. `idx` is its row in the shards, and stable for ever."""

    idx: int
    key: str
    role: Role
    label: str | None
    group: str | None


@dataclass(frozen=True)
class Ingested:
    """What an ingest made. `counts` is role → label → patches; `report` can be stored as JSON."""

    samples: list[SampleRow]
    classes: list[str]
    counts: dict[str, dict[str, int]]
    report: dict[str, Any]


@dataclass
class _Tally:
    """What happened to the files so far."""

    read: int = 0
    kept: list[Entry] = field(default_factory=list[Entry])
    problems: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    converted: Counter[str] = field(default_factory=Counter[str])
    resized: Counter[str] = field(default_factory=Counter[str])
    multi_frame: int = 0
    digests: list[bytes] = field(default_factory=list[bytes])

    def keep(self, entry: Entry, patch: Decoded) -> None:
        self.kept.append(entry)
        self.converted.update([patch.converted] if patch.converted else [])
        self.resized.update([patch.resized] if patch.resized else [])
        self.multi_frame += patch.frames > 1
        self.digests.append(hashlib.blake2b(patch.pixels.tobytes(), digest_size=16).digest())


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
        for entry, patch in zip(listing.entries, patches, strict=True):
            if should_stop is not None and should_stop():
                raise IngestStopped(f"stopped after {tally.read} of {total} images")
            tally.read += 1
            if isinstance(patch, Unreadable):
                tally.problems.append((entry.key, str(patch)))
            else:
                tally.keep(entry, patch)
                pack.append(patch.pixels)
            if on_progress is not None:
                on_progress(tally.read, total)
        if tally.problems and spec.on_unreadable == "fail":
            raise ImagesUnreadable(tally.problems)
        final, draws = _assign(tally, spec)
        pack.finish()
    return _result(tally, final, draws)


def _plan(spec: DatasetSpec, entries: Sequence[Entry]) -> None:
    for number, draw in enumerate(spec.draws):
        if draw.source is not None and draw.source >= len(spec.sources):
            raise InvalidInput(
                f"draws.{number}.source", f"{draw.source}; there are {len(spec.sources)} sources, from 0"
            )
    roles.assign(entries, spec.draws)


def _assign(tally: _Tally, spec: DatasetSpec) -> tuple[list[Role], list[dict[str, Any]]]:
    """The roles of what could be read. Where that is too little, the error says what could not."""
    try:
        return roles.assign(tally.kept, spec.draws)
    except InvalidInput as error:
        if not tally.problems:
            raise
        name, why = tally.problems[0]
        skipped = f"{len(tally.problems)} of {tally.read} images could not be read and were skipped; {name}: {why}"
        raise InvalidInput(error.field, f"{error.reason} ({skipped})") from error


def _decode_all(listing: Listing, size: int, seconds: float | None) -> Generator[Decoded | Unreadable, None, None]:
    """Patches in the order of the listing, decoded by a few threads (Pillow lets go of the interpreter's lock).

    At most `_AHEAD` patches a thread wait to be taken: memory does not grow with the dataset.
    """
    threads = min(_THREADS, os.cpu_count() or 1)
    waiting: deque[tuple[Entry, Future[Decoded | Unreadable]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    is_stuck = False
    with quiet_pillow():
        try:
            for entry, picture in zip(listing.entries, listing.pictures(), strict=True):
                waiting.append((entry, pool.submit(_read, picture, size)))
                if len(waiting) >= threads * _AHEAD:
                    yield _result_of(*waiting.popleft(), seconds)
            while waiting:
                yield _result_of(*waiting.popleft(), seconds)
        except ImageTooSlow:
            is_stuck = True
            raise
        finally:
            pool.shutdown(wait=not is_stuck, cancel_futures=True)


def _result_of(entry: Entry, decoded: Future[Decoded | Unreadable], seconds: float | None) -> Decoded | Unreadable:
    try:
        return decoded.result(seconds)
    except TimeoutError:
        assert seconds is not None
        raise ImageTooSlow(entry.key, seconds) from None


def _read(picture: Picture, size: int) -> Decoded | Unreadable:
    try:
        return picture.read(size)
    except Unreadable as reason:
        return reason


def _result(tally: _Tally, final: Sequence[Role], draws: list[dict[str, Any]]) -> Ingested:
    pairs = zip(tally.kept, final, strict=True)
    samples = [SampleRow(idx, entry.key, role, entry.label, entry.group) for idx, (entry, role) in enumerate(pairs)]
    classes = sorted({row.label for row in samples if row.label is not None})
    has_groups = any(row.group is not None for row in samples)
    report = {
        "read": tally.read,
        "packed": len(samples),
        "skipped": [{"path": name, "reason": reason} for name, reason in tally.problems],
        "converted": _ranked(tally.converted),
        "resized": _ranked(tally.resized),
        "multi_frame": tally.multi_frame,
        "duplicates": _duplicates(samples, tally.digests),
        "groups": "column" if has_groups else "none (splits do not respect patients)",
        "draws": draws,
    }
    return Ingested(samples, classes, _counts(samples), report)


def _counts(samples: Sequence[SampleRow]) -> dict[str, dict[str, int]]:
    found = Counter((row.role, row.label or NO_LABEL) for row in samples)
    table: dict[str, dict[str, int]] = {}
    for role, label in sorted(found, key=lambda pair: (list(Role).index(pair[0]), pair[1])):
        table.setdefault(role.value, {})[label] = found[role, label]
    return table


def _duplicates(samples: Sequence[SampleRow], digests: Sequence[bytes]) -> dict[str, Any]:
    """Patches whose pixels are equal: they stay, and a person is told, above all where they join two roles."""
    first: dict[bytes, SampleRow] = {}
    pairs = [
        (first[digest], row)
        for row, digest in zip(samples, digests, strict=True)
        if first.setdefault(digest, row) is not row
    ]
    across = [pair for pair in pairs if pair[0].role is not pair[1].role]
    shown = [[one.key, other.key] for one, other in (across or pairs)[:_EXAMPLES]]
    return {"count": len(pairs), "across_roles": len(across), "examples": shown}


def _ranked(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])))
