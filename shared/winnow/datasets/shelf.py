"""What an ingest keeps while it goes on: its full shards in the artefact store, and beside each how far it reaches.

An attempt that is lost leaves them to the next one, which goes on behind the last.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from winnow.artefacts import ArtefactStore, Stored
from winnow.datasets.packing import Shard, shard_name
from winnow.errors import NotFound
from winnow.failpoints import Failpoint, reach

PARTS = "parts"
"""The folder, below an attempt's own, of what says how far its shards reach; nothing reads it once all is packed."""


class Reached(BaseModel):
    """How far an ingest is with the patch that fills a shard.

    `read` images of the listing were read by then. The rest is of those since the shard before: `rows`, the digest of
    their keys and marks; `skipped`, (row of the listing, reason); `digests`, 16 bytes a patch in hexadecimal; how many
    were `converted` from each mode, `resized` from each size and had several frames.
    """

    model_config = ConfigDict(frozen=True)

    read: int
    rows: str
    skipped: list[tuple[int, str]]
    converted: dict[str, int]
    resized: dict[str, int]
    multi_frame: int
    digests: str


class Part(BaseModel):
    """A shard that is stored. `maker` is the digest of what it was read from and decoded with."""

    model_config = ConfigDict(frozen=True)

    maker: str
    shard: Shard
    reached: Reached


class Shelf:
    """Where an attempt keeps its shards: below `prefix`, which is no other attempt's; what lies there goes.

    `earlier` are the prefixes of the attempts before it, oldest first. Whoever still writes there has lost its claim.
    """

    def __init__(self, store: ArtefactStore, prefix: str, earlier: Sequence[str] = ()) -> None:
        self._store = store
        self._prefix = prefix
        self._earlier = earlier

    @property
    def parts(self) -> str:
        """The prefix of what nothing reads once all is packed."""
        return f"{self._prefix}/{PARTS}"

    def put(self, name: str, source: Path | bytes) -> Stored:
        """Store a file's or a string's bytes under `name`. Raises what the store raises."""
        return self._store.put(f"{self._prefix}/{name}", source)

    def keep(self, part: Part) -> None:
        """Let the next attempt go on behind this shard, which is stored, if it can from all before it."""
        self.put(_name_of(part.shard.name), json.dumps(part.model_dump()).encode())
        reach(Failpoint.SHARD_KEPT)

    def take_over(self, maker: str, unchanged: Callable[[Iterable[Part]], Iterable[Part]]) -> Iterator[Part]:
        """Parts of the earlier attempt that came furthest with this maker, as many from the first on as are
        `unchanged`; they are this attempt's when all were taken.

        What else that attempt left goes, and what lies here: the next attempt would take it for this one's own.
        """
        self._store.delete(self._prefix)  # of a history that the database, restored from a backup, has not
        for prefix, first in self._furthest(maker):
            if any(True for _ in unchanged([first])) and self._has_moved(prefix):  # else it is left to who can use it
                break
        else:
            return
        reach(Failpoint.SHARDS_TAKEN_OVER)
        names: set[str] = set()
        for part in unchanged(self._parts()):  # read where nobody else deletes
            names |= {part.shard.name, _name_of(part.shard.name)}
            yield part
        for file in self._store.lying(self._prefix):
            if file.name.removeprefix(f"{self._prefix}/") not in names:
                self._store.remove(file)

    def _furthest(self, maker: str) -> list[tuple[str, Part]]:
        """Earlier attempts with this maker and the first part of each: the one with most parts, of several the newest,
        comes first.
        """
        found: list[tuple[int, str, Part]] = []
        for prefix in reversed(self._earlier):
            sizes = self._sizes(prefix)
            first = self._part(prefix, shard_name(0), sizes)
            if first is not None and first.maker == maker:
                found.append((sum(name.startswith(f"{prefix}/{PARTS}/") for name in sizes), prefix, first))
        return [(prefix, first) for _, prefix, first in sorted(found, key=lambda one: -one[0])]

    def _has_moved(self, prefix: str) -> bool:
        try:
            self._store.move(prefix, self._prefix)
        except NotFound:  # an attempt that has lost its claim, too, took it over
            return False
        return True

    def _parts(self) -> Iterator[Part]:
        """Own ones from the first on, as long as each is whole."""
        sizes = self._sizes(self._prefix)
        for number in count():
            part = self._part(self._prefix, shard_name(number), sizes)
            if part is None:
                return
            yield part

    def _sizes(self, prefix: str) -> dict[str, int]:
        return {file.name: file.size for file in self._store.lying(prefix)}

    def _part(self, prefix: str, name: str, sizes: dict[str, int]) -> Part | None:
        key = f"{prefix}/{_name_of(name)}"
        if key not in sizes:
            return None
        try:
            part = Part.model_validate(json.loads(self._store.local(key).read_bytes()))
        except (NotFound, FileNotFoundError, ValueError):  # gone, cut off, or of another version
            return None
        return part if part.shard.name == name and sizes.get(f"{prefix}/{name}") == part.shard.size else None


def _name_of(shard: str) -> str:
    return f"{PARTS}/{shard}.json"
