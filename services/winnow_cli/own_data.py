"""A dataset from a folder, a manifest or an .npz of which nothing more was said."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from winnow.datasets.decode import SUFFIXES, Picture, Unreadable
from winnow.datasets.entries import Entry
from winnow.datasets.sources import list_sources
from winnow.domain import DatasetSpec, Role
from winnow_cli import files
from winnow_cli.sources import Tell, source_of

Json = dict[str, Any]
TEST_SHARE, LABELLED_SHARE, MOST_LABELLED = 0.2, 0.1, 1000
LEAST_SIDE, MOST_SIDE = 32, 224


def dataset_of(data: Path, tell: Tell) -> DatasetSpec:
    """The dataset, named after the data. Where no roles are given, some patches are held out and some labelled.

    What cannot be read is skipped: the report lists it.
    """
    source = source_of(str(data), {}, {}, tell)
    known: Json = {"name": _name_of(data), "sources": [source], "on_unreadable": "skip"}
    whole = files.parse(DatasetSpec, known, str(data))
    listing = list_sources(whole, allow=lambda path: None)
    side = _side_of(listing.pictures(0))
    is_folder = source["kind"] == "folder"
    draws = _draws(entry for entry in listing.entries if not is_folder or _is_picture(entry))
    for draw in draws:
        tell(f"no role {draw['role']} in {data}: {draw['count']} patches are drawn for it")
    checked = files.parse(DatasetSpec, known | {"draws": draws, "image_size": side}, str(data))
    tell(f"{data}: {len(listing.entries):,} files, packed at {side} pixels as dataset {checked.name}")
    return checked


def _draws(entries: Iterable[Entry]) -> list[Json]:
    found = Counter((entry.role, entry.label is not None) for entry in entries)
    roles = {role for role, _ in found}
    labelled = found[Role.POOL, True]
    draws: list[Json] = []
    if Role.TEST not in roles:
        draws.append({"role": "test", "count": max(round(labelled * TEST_SHARE), 1)})
    if Role.LABELLED not in roles:
        count = max(min(round(labelled * LABELLED_SHARE), MOST_LABELLED), 1)
        draws.append({"role": "labelled", "count": count, "by": "stratum"})
    return draws


def _is_picture(entry: Entry) -> bool:
    return Path(entry.key).suffix.lower() in SUFFIXES


def _side_of(pictures: Iterable[Picture]) -> int:
    """The longest side of the first patches that can be read, in pixels: small patches are not blown up."""
    sides = [LEAST_SIDE]
    for picture in islice(pictures, 20):
        try:
            width, _, height = (picture.read(LEAST_SIDE).resized or "0x0").partition("x")
        except Unreadable:
            continue  # ingesting names it
        sides.append(max(int(width), int(height)))
    return min(max(sides), MOST_SIDE)


def _name_of(data: Path) -> str:
    """The folder's or the file's name, as far as a dataset may be called that."""
    place = data.resolve()
    stem = place.parent.name if place.stem == "manifest" else place.stem if place.is_file() else place.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:50] or "patches"
