"""A dataset's source from what was typed: what it is, and what its columns and splits probably mean."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from winnow.datasets import MANIFEST_SUFFIXES, open_table
from winnow.domain import Role
from winnow.errors import InvalidInput
from winnow_cli.files import absolute

Json = dict[str, Any]
Tell = Callable[[str], None]
_ROLE = re.compile(r"(pool|labelled|validation|test)=(.+)")
_SYNONYMS = {"role": ("split",), "group": ("patient", "slide", "case"), "label": ("class",), "path": ("file", "image")}
_SPLITS = {role.value: role for role in Role} | {
    "train": Role.POOL,
    "training": Role.POOL,
    "val": Role.VALIDATION,
    "valid": Role.VALIDATION,
    "testing": Role.TEST,
}


def source_of(text: str, columns: Mapping[str, str], splits: Mapping[str, str], tell: Tell) -> Json:
    """What `[ROLE=]PATH` means: a folder, a manifest, an .npz, or `synthetic[:PATCHES]`.

    What `columns` and `splits` leave open is guessed from a source that is here, and told. Raises InvalidInput.
    """
    role, path = matched.groups() if (matched := _ROLE.fullmatch(text)) else (None, text)
    if (drawn := re.fullmatch(r"synthetic(?::(\d+))?", path)) is not None:
        return {"kind": "synthetic", "role": role, "synthetic": {"patches": int(drawn[1] or 2000), "test_slides": 2}}
    if path.startswith("synthetic:"):
        raise InvalidInput("SOURCE", f"synthetic:PATCHES needs a whole number, got {path!r}")
    place = Path(absolute(path))
    manifest = next((table for end in MANIFEST_SUFFIXES if (table := place / f"manifest{end}").is_file()), None)
    if manifest is not None or place.suffix.lower() in MANIFEST_SUFFIXES:
        found = _manifest(manifest or place, columns, splits, tell)
    elif place.suffix.lower() == ".npz":
        found: Json = {"kind": "npz", "path": str(place), "splits": dict(splits)}
    else:
        found = {"kind": "folder", "path": str(place), "splits": _told(place, _of_folders(place), splits, tell)}
    return found | {"role": role}


def _manifest(table: Path, columns: Mapping[str, str], splits: Mapping[str, str], tell: Tell) -> Json:
    chosen, words = dict(columns), set[str]()
    if table.is_file():
        with open_table(table) as (names, rows):
            chosen = _columns(names) | chosen
            role = chosen.get("role", "role")
            words = {str(row[names.index(role)]).strip() for row in rows} if role in names else words
    guessed = ", ".join(f"{field} from column {name}" for field, name in chosen.items() if field not in columns)
    if guessed:
        tell(f"{table}: {guessed}")
    meant = {word: _SPLITS[word.lower()] for word in sorted(words - set(Role)) if word.lower() in _SPLITS}
    return {"kind": "manifest", "path": str(table), "columns": chosen, "splits": _told(table, meant, splits, tell)}


def _columns(names: list[str]) -> dict[str, str]:
    """What a manifest calls its role, group, label and path, where it does not call them that."""
    wanted = {field: [name for name in others if name in names] for field, others in _SYNONYMS.items()}
    return {field: found[0] for field, found in wanted.items() if found and field not in names}


def _of_folders(folder: Path) -> dict[str, Role]:
    """The roles of a folder's sub-folders where all of them are named as splits are, and none as a class."""
    names = [child.name for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []
    shown = sorted(name for name in names if not name.startswith("."))
    if not all(name.lower() in _SPLITS for name in shown):
        return {}
    return {name: _SPLITS[name.lower()] for name in shown}


def _told(place: Path, guessed: Mapping[str, Role], given: Mapping[str, str], tell: Tell) -> dict[str, str]:
    """The splits that were given, and those that were guessed besides."""
    new = {word: role.value for word, role in guessed.items() if word not in given}
    if new:
        tell(f"{place}: {', '.join(f'{word} means {role}' for word, role in new.items())}")
    return new | dict(given)
