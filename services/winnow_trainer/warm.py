"""What a training process keeps from one round to the next."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from winnow.datasets import PackedImages, ShardCache
from winnow.simclr import Rig, Team


class Warm:
    """The rig of this process and the dataset it last read."""

    def __init__(self, team: Team | None = None) -> None:
        self.team = team or Team()
        self._rig: Rig | None = None
        self._made_for: tuple[str, str] | None = None
        self._images: PackedImages | None = None
        self._cache: ShardCache | None = None
        self._cached_in: tuple[str, int] | None = None
        self.notes: list[str] = []

    def rig(self, job: dict[str, Any]) -> Rig:
        """The rig, made anew when the device or the way of compiling changed. Sums take the job's threads from now."""
        if job["threads"]:
            torch.set_num_threads(job["threads"])
        wanted = job["device"], job["compile"]
        if self._rig is None or self._made_for != wanted:
            self._rig = Rig(job["device"], team=self.team, compiled=job["compile"])
            self._made_for = wanted
        return self._rig

    def images(self, job: dict[str, Any], should_stop: Callable[[], bool] = lambda: False) -> PackedImages:
        """The packed patches of the job's dataset, compared with their sha256. One location never changes.

        `notes` then says what of it is not where it should be.
        """
        directory, cache = Path(job["artefact_dir"]) / job["location"], self._cache_of(job)
        if self._images is None or self._images.directory != directory:
            self.notes.clear()
            images = cache.open(directory, should_stop)
            self._images = None if should_stop() else images  # a stop may have left bytes unverified
            return images
        return self._images

    def _cache_of(self, job: dict[str, Any]) -> ShardCache:
        """The cache of shards, made anew, and the patches looked for again, when its place or size changed."""
        wanted = job["cache_dir"], job["cache_bytes"]
        if self._cache is None or self._cached_in != wanted:
            if self._cache is not None:
                self._cache.close()
            self._cache = ShardCache(Path(job["cache_dir"]), job["cache_bytes"], note=self.notes.append)
            self._cached_in, self._images = wanted, None
        return self._cache
