"""What a training process keeps from one round to the next."""

from pathlib import Path
from typing import Literal

from winnow.artefacts import DirectoryStore
from winnow.datasets import PackedImages
from winnow.simclr import Rig, Team


class Warm:
    """The rig of this process and the dataset it last read."""

    def __init__(self, team: Team | None = None) -> None:
        self.team = team or Team()
        self._rig: Rig | None = None
        self._made_for: tuple[str, str] | None = None
        self._images: PackedImages | None = None

    def rig(self, device: str, compiled: Literal["auto", "on", "off"]) -> Rig:
        """The rig, made anew when the device or the way of compiling changed."""
        if self._rig is None or self._made_for != (device, compiled):
            self._rig = Rig(device, team=self.team, compiled=compiled)
            self._made_for = (device, compiled)
        return self._rig

    def images(self, store: DirectoryStore, location: str) -> PackedImages:
        """The packed patches of a dataset. One location never changes."""
        directory = Path(store.root / location)
        if self._images is None or self._images.directory != directory:
            self._images = PackedImages.open(directory)
        return self._images
