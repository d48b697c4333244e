"""From a file or an array to a square RGB patch, with a plain reason for everything that cannot become one."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from winnow.paths import is_replaced, open_file

FORMATS = ("PNG", "JPEG", "TIFF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
MIN_LONG_SIDE = 8
"""Pixels. Only the longer side is held to it: tilings of real slides have slivers of 50x1 at the tissue's edge."""

DECODER = 1
"""Raised whenever an image may come out as another patch than before: a pack has the patches of one decoder."""

_TRANSPARENT = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_DEEP = ("I", "F")
_BITS_PER_SAMPLE = 258  # TIFF tag
_PNG_DEPTH_AT = 24  # byte of the bit depth: 8 signature + 8 chunk head + 8 width and height


class Unreadable(Exception):
    """An image that cannot be used. The text is the reason, for a person."""


@dataclass(frozen=True)
class Decoded:
    """A patch: pixels uint8 (S, S, 3), and what was done to it.

    `converted` is the mode it had if not RGB, `resized` its WIDTHxHEIGHT if not SxS, `frames` how many it held.
    """

    pixels: NDArray[np.uint8]
    converted: str | None = None
    resized: str | None = None
    frames: int = 1


class Picture(Protocol):
    """Something that decodes to a patch: a file, an array, a synthetic patch."""

    def read(self, size: int) -> Decoded:
        """The patch, (size, size, 3). Raises Unreadable with the reason, PathForbidden."""
        ...

    def mark(self) -> str:
        """Another one once the file behind it is: an image with the same key and mark is not read twice."""
        ...


@dataclass(frozen=True)
class FilePicture:
    """An image file. Its path is resolved and allowed again right before it is opened."""

    path: Path
    allow: Callable[[Path], None]
    max_pixels: int

    def read(self, size: int) -> Decoded:
        with self._open() as file:
            return self._decode(file, size)

    def mark(self) -> str:
        return mark_of(self.path)

    def _open(self) -> BinaryIO:
        resolved = resolve(self.path)
        self.allow(resolved)
        try:
            return open_file(resolved)
        except FileNotFoundError:
            raise Unreadable("no such file") from None
        except OSError as error:
            reason = "a link took its place while it was read" if is_replaced(error) else str(error.strerror)
            raise Unreadable(reason) from None

    def _decode(self, file: BinaryIO, size: int) -> Decoded:
        try:
            if os.fstat(file.fileno()).st_size == 0:
                raise Unreadable("empty file (0 bytes)")
            return _decode(file, size, self.max_pixels)
        except (Unreadable, MemoryError):
            raise
        except UnidentifiedImageError:
            raise Unreadable("not a PNG, JPEG or TIFF image, or its header is broken") from None
        except Image.DecompressionBombError:
            raise Unreadable(f"too large: above {self.max_pixels} pixels (max_pixels)") from None
        except Exception as error:  # malformed files make Pillow's readers raise almost anything
            raise Unreadable(f"broken or truncated: {str(error) or type(error).__name__}") from error


@dataclass(frozen=True)
class ArrayPicture:
    """Pixels at hand: uint8 (h, w, 3), or (h, w) for greyscale, of a file with the mark `origin`."""

    pixels: NDArray[np.uint8]
    origin: str = ""

    def read(self, size: int) -> Decoded:
        mode = "L" if self.pixels.ndim == 2 else None
        return _fit(Image.fromarray(self.pixels).convert("RGB"), size, mode)

    def mark(self) -> str:
        return self.origin


@dataclass(frozen=True)
class RejectedPicture:
    """A file known to be unusable before it is opened."""

    reason: str

    def read(self, size: int) -> Decoded:
        raise Unreadable(self.reason)

    def mark(self) -> str:
        return self.reason


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings around a run of decodes: what matters of them is checked here, by size and mode.

    Warning filters belong to the process, so this wraps the threads that decode and is not used inside them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def mark_of(path: Path) -> str:
    """Size and time of writing of a file; empty where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def resolve(path: Path) -> Path:
    """`path` with its symlinks followed. Raises Unreadable for one that never ends."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise Unreadable(f"path cannot be resolved: {error}") from None


def _decode(file: BinaryIO, size: int, max_pixels: int) -> Decoded:
    image = _open(file, max_pixels)
    if image.format == "PNG":
        image.verify()  # checks every checksum, and spends the image
        image = _open(file, max_pixels)
    _require_eight_bits(image, file)
    frames = int(getattr(image, "n_frames", 1))
    image.seek(0)
    image.load()
    return _fit(_to_rgb(image), size, None if image.mode == "RGB" else image.mode, frames)


def _open(file: BinaryIO, max_pixels: int) -> Image.Image:
    """The image by its header alone: nothing of its pixels is decoded before its size is known to be sane."""
    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise Unreadable(f"too large: {width}x{height} is above {max_pixels} pixels (max_pixels)")
    _require_side(width, height)
    return image


def _require_side(width: int, height: int) -> None:
    if max(width, height) < MIN_LONG_SIDE:
        raise Unreadable(f"too small: {width}x{height}, one side must have {MIN_LONG_SIDE} pixels")


def _require_eight_bits(image: Image.Image, file: BinaryIO) -> None:
    """Refuse deeper images: Pillow would cut 16-bit RGB to 8 without a word, and clip 16-bit grey to white."""
    bits = 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
    elif image.format == "PNG":
        position = file.tell()
        file.seek(_PNG_DEPTH_AT)
        bits = file.read(1)[0]
        file.seek(position)
    if bits > 8 or image.mode.startswith(_DEEP):
        raise Unreadable(f"{max(bits, 16)}-bit ({image.mode}); convert to 8-bit RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB, on white where the image is transparent: bare glass is white."""
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _fit(image: Image.Image, size: int, mode: str | None, frames: int = 1) -> Decoded:
    """The square patch. Other sizes are resampled (bicubic, antialiased), other shapes stretched."""
    _require_side(*image.size)
    resized = None if image.size == (size, size) else f"{image.width}x{image.height}"
    if resized:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return Decoded(np.asarray(image, dtype=np.uint8), mode, resized, frames)
