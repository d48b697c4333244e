"""A dataset's source from what was typed: what it is, and what its columns and splits probably mean."""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from winnow.datasets import MANIFEST_SUFFIXES, open_table
from winnow.datasets.npz import split_names
from winnow.domain import Role
from winnow.errors import InvalidInput
from winnow_cli.files import SIMILAR, absolute

Json = dict[str, Any]
Tell = Callable[[str], None]
_ROLE = re.compile(r"(pool|labelled|validation|test)=(.+)")
_WORD = re.compile(r"([A-Za-z_-]+)=.+")
_KINDS = {"folder": "a folder of images", "manifest": "a manifest", "npz": "an .npz", "synthetic": "no file at all"}
_SYNONYMS = {"role": ("split",), "group": ("patient", "slide", "case"), "label": ("class",), "path": ("file", "image")}
_SPLITS = {role.value: role for role in Role} | {
    "train": Role.POOL,
    "training": Role.POOL,
    "val": Role.VALIDATION,
    "valid": Role.VALIDATION,
    "testing": Role.TEST,
}


def sources_of(texts: Sequence[str], columns: Mapping[str, str], splits: Mapping[str, str], tell: Tell) -> list[Json]:
    """What each text means; `columns` and `splits` are shared among the sources that have such. Raises InvalidInput
    where none can have any.
    """
    found = [source_of(text, columns, splits, tell) for text in texts]
    kinds, first = {source["kind"] for source in found}, f"{texts[0]} is {_KINDS[found[0]['kind']]}"
    if columns and "manifest" not in kinds:
        raise InvalidInput("--column", f"is for manifests; {first}")
    if splits and kinds == {"synthetic"}:
        raise InvalidInput("--split", f"is for manifests, folders and .npz; {first}")
    return _share(found, splits) if splits and len(found) > 1 else found


def _share(sources: list[Json], splits: Mapping[str, str]) -> list[Json]:
    """Each source without what was given for the splits of others. What none has stays with all: the coordinator names
    it, and looks through those that are not here.
    """
    words = [_splits_in(source) for source in sources]
    owned = {word for word in splits if any(word in here for here in words if here is not None)}
    for source, here in zip(sources, words, strict=True):
        if here is not None and "splits" in source:
            foreign = owned - here
            source["splits"] = {word: role for word, role in source["splits"].items() if word not in foreign}
    return sources


def _splits_in(source: Json) -> set[str] | None:
    """The words for splits that stand in a source; None where it is not here."""
    place = Path(source.get("path", ""))
    if not place.exists():
        return None
    match source["kind"]:
        case "manifest":
            return _roles_in(place, source["columns"])
        case "npz":
            return set(split_names(place))
        case "folder":
            return set(_folders_in(place))
        case _:
            return set()


def source_of(text: str, columns: Mapping[str, str], splits: Mapping[str, str], tell: Tell) -> Json:
    """What `[ROLE=]PATH` means: a folder, a manifest, an .npz, or `synthetic[:PATCHES]`.

    What `columns` and `splits` leave open is guessed from a source that is here, and told. Raises InvalidInput.
    """
    role, path = matched.groups() if (matched := _ROLE.fullmatch(text)) else (None, text)
    if role is None:
        _require_no_other_role(text)
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
        with open_table(table) as (names, _):
            chosen = _columns(names) | chosen
        words = _roles_in(table, chosen)
    guessed = ", ".join(f"{field} from column {name}" for field, name in chosen.items() if field not in columns)
    if guessed:
        tell(f"{table}: {guessed}")
    meant = {word: _SPLITS[word.lower()] for word in sorted(words - set(Role)) if word.lower() in _SPLITS}
    return {"kind": "manifest", "path": str(table), "columns": chosen, "splits": _told(table, meant, splits, tell)}


def _roles_in(table: Path, columns: Mapping[str, str]) -> set[str]:
    """The words of a manifest's role column."""
    role = columns.get("role", "role")
    with open_table(table, wanted=[role]) as (names, rows):
        return {str(row[names.index(role)]).strip() for row in rows} if role in names else set()


def _columns(names: list[str]) -> dict[str, str]:
    """What a manifest calls its role, group, label and path, where it does not call them that."""
    wanted = {field: [name for name in others if name in names] for field, others in _SYNONYMS.items()}
    return {field: found[0] for field, found in wanted.items() if found and field not in names}


def _of_folders(folder: Path) -> dict[str, Role]:
    """The roles of a folder's sub-folders where all of them are named as splits are, and none as a class."""
    shown = _folders_in(folder)
    if not all(name.lower() in _SPLITS for name in shown):
        return {}
    return {name: _SPLITS[name.lower()] for name in shown}


def _folders_in(folder: Path) -> list[str]:
    names = [child.name for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []
    return sorted(name for name in names if not name.startswith("."))


def _require_no_other_role(text: str) -> None:
    """Raise InvalidInput where what was meant for a role is none: a path may have a = as well, but is there then."""
    matched = _WORD.fullmatch(text)
    if matched is None or Path(text).expanduser().exists():
        return
    similar = get_close_matches(matched[1].lower(), [*_SPLITS], 1, SIMILAR)
    meant = f"; did you mean {_SPLITS[similar[0]]}?" if similar else ""
    raise InvalidInput("SOURCE", f"{matched[1]!r} is no role; roles: {', '.join(Role)}{meant}")


def _told(place: Path, guessed: Mapping[str, Role], given: Mapping[str, str], tell: Tell) -> dict[str, str]:
    """The splits that were given, and those that were guessed besides."""
    new = {word: role.value for word, role in guessed.items() if word not in given}
    if new:
        tell(f"{place}: {', '.join(f'{word} means {role}' for word, role in new.items())}")
    return new | dict(given)
