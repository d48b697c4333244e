"""A folder of images: one sub-folder for each class, or `splits` above the classes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from winnow.datasets.decode import SUFFIXES, FilePicture, Picture, RejectedPicture, Unreadable, resolve
from winnow.datasets.entries import Allow, Entries, Entry, Listing, allow_link, require_splits
from winnow.domain import Role, Source
from winnow.errors import InvalidInput
from winnow.paths import as_text, open_folder

_DEBRIS = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def list_folder(source: Source, number: int, *, allow: Allow, max_pixels: int) -> Listing:
    """Every file below `source.path`, by key. CLASS/.../NAME has label CLASS; NAME alone has none.

    With `splits`, the first folder is a split: SPLIT/CLASS/.../NAME. Hidden files are ignored; files of other
    kinds are listed, so that the dataset's policy decides. Symlinks are followed where `allow` permits.

    Raises InvalidInput (no such folder, a split without a role, a role without its split), PathForbidden.
    """
    root = Path(source.path or "")
    field = f"sources.{number}.path"
    keys = list(_walk(root, "", allow, (), field))
    odd = {key: name for name in keys if (key := as_text(name)) != name}
    if odd:
        keys = list({as_text(name) for name in keys})
    keys.sort()
    if source.splits:
        require_splits(source, number, _folders(root, allow, field))
    entries = Entries.of(_entry(key, source, number) for key in keys)

    def pictures(start: int) -> Iterator[Picture]:
        return (_picture(root / odd.get(key, key), allow, max_pixels) for key in islice(keys, start, None))

    return Listing(entries, pictures)


def _walk(directory: Path, inside: str, allow: Allow, above: tuple[Path, ...], field: str) -> Iterator[str]:
    """Names of files, each behind `inside`, the way from the root to `directory`. As text: a path object for each would
    take most of the time.
    """
    resolved = _allowed(directory, allow, field)
    if resolved in above:
        raise InvalidInput(field, f"{directory} links back to a folder above it; remove the link")
    for child in _children(resolved, field):
        if _is_debris(child.name):
            continue
        if child.is_folder:
            yield from _walk(directory / child.name, f"{inside}{child.name}/", allow, (*above, resolved), field)
            continue
        if child.is_link:
            allow_link(directory / child.name, allow)
        yield inside + child.name


def _folders(root: Path, allow: Allow, field: str) -> list[str]:
    """The first folders, those without a file among them: an empty split is one."""
    children = _children(_allowed(root, allow, field), field)
    return sorted(as_text(child.name) for child in children if child.is_folder and not _is_debris(child.name))


def _allowed(directory: Path, allow: Allow, field: str) -> Path:
    try:
        resolved = resolve(directory)
    except Unreadable as error:
        raise InvalidInput(field, f"{directory}: {error}") from None
    allow(resolved)
    return resolved


@dataclass(frozen=True, slots=True)
class _Child:
    name: str
    is_folder: bool
    is_link: bool


def _children(directory: Path, field: str) -> list[_Child]:
    """What a folder holds that was resolved and allowed; no link in its place is followed."""
    try:
        with open_folder(directory) as handle, os.scandir(handle) as found:
            return [_Child(child.name, _is_folder(child), child.is_symlink()) for child in found]
    except FileNotFoundError:
        raise InvalidInput(field, f"no folder {directory}") from None
    except NotADirectoryError:
        raise InvalidInput(field, f"{directory} is a file; a folder source needs a folder") from None
    except OSError as error:
        raise InvalidInput(field, f"{directory} cannot be read: {error.strerror}") from None


def _is_folder(child: "os.DirEntry[str]") -> bool:
    try:
        return child.is_dir()
    except OSError:
        return False  # a link to itself: listed, and refused on reading


def _is_debris(name: str) -> bool:
    return name.startswith(".") or name.lower() in _DEBRIS


def _entry(key: str, source: Source, number: int) -> Entry:
    folders = key.split("/")[:-1]
    role = source.role_or_pool
    if source.splits and folders:
        role, folders = _role_of(folders[0], source, number), folders[1:]
    return Entry(key, role, folders[0] if folders else None, source=number)


def _role_of(split: str, source: Source, number: int) -> Role:
    if split not in source.splits:
        raise InvalidInput(f"sources.{number}.splits", f"no role for the folder {split!r}; add it, or move it away")
    return source.splits[split]


def _picture(path: Path, allow: Allow, max_pixels: int) -> Picture:
    if path.suffix.lower() not in SUFFIXES:
        return RejectedPicture(f"not a PNG, JPEG or TIFF file name ({path.suffix or 'no suffix'})")
    return FilePicture(path, allow, max_pixels)
