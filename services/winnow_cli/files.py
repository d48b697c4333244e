"""Specs from files, and datasets from what was typed."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from winnow.domain import DatasetSpec, ExperimentSpec, expand
from winnow.errors import InvalidInput

Json = dict[str, Any]
_ROLE = re.compile(r"(pool|labelled|validation|test)=(.+)")
_MANIFESTS = ("manifest.csv", "manifest.parquet")
_SYNONYMS = {"role": ("split",), "group": ("patient", "slide", "case"), "label": ("class",), "path": ("file", "image")}


def read(path: Path) -> Json:
    """A YAML or JSON file that holds one mapping. Raises InvalidInput."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise InvalidInput(str(path), f"cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InvalidInput(str(path), f"is neither YAML nor JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(str(path), "holds no mapping of keys to values; docs/spec.md lists the keys")
    return found


def experiments(document: Json, source: str) -> list[ExperimentSpec]:
    """The experiments that a document stands for. Raises InvalidInput with the key at fault."""
    try:
        return expand(document)
    except ValidationError as error:
        raise _explain(source, error) from error


def dataset(document: Json, source: str) -> DatasetSpec:
    """A dataset from a document; paths that are relative start from where the command runs. Raises InvalidInput."""
    found = parse(DatasetSpec, document, source)
    sources = [one.model_copy(update={"path": absolute(one.path)}) if one.path else one for one in found.sources]
    return found.model_copy(update={"sources": sources})


def parse(model: type[DatasetSpec], document: Json, source: str) -> DatasetSpec:
    """`document` as `model`. Raises InvalidInput with the key at fault."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _explain(source, error) from error


def source_of(text: str, columns: dict[str, str], splits: dict[str, str]) -> Json:
    """What `[ROLE=]PATH` means: a folder, a manifest, an .npz, or `synthetic[:PATCHES]`."""
    role, path = matched.groups() if (matched := _ROLE.fullmatch(text)) else (None, text)
    if (drawn := re.fullmatch(r"synthetic(?::(\d+))?", path)) is not None:
        return {"kind": "synthetic", "role": role, "synthetic": {"patches": int(drawn[1] or 2000), "test_slides": 2}}
    place = Path(absolute(path))
    manifest = next((place / name for name in _MANIFESTS if (place / name).is_file()), None)
    if manifest is not None or place.suffix in (".csv", ".parquet"):
        table = manifest or place
        found: Json = {"kind": "manifest", "path": str(table), "columns": columns or guess_columns(table)}
    elif place.suffix == ".npz":
        found = {"kind": "npz", "path": str(place)}
    else:
        found = {"kind": "folder", "path": str(place)}
    return found | {"role": role, "splits": splits}


def guess_columns(manifest: Path) -> dict[str, str]:
    """What a manifest that is here calls its role, group, label and path, where it does not call them that."""
    if not manifest.is_file():
        return {}
    if manifest.suffix == ".csv":
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
    else:
        from pyarrow.parquet import read_schema

        names = list(read_schema(manifest).names)
    wanted = {field: [name for name in others if name in names] for field, others in _SYNONYMS.items()}
    return {field: found[0] for field, found in wanted.items() if found and field not in names}


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """`A=B` options as a mapping. Raises InvalidInput."""
    found: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InvalidInput(option, f"{text!r} is not of the form NAME=VALUE")
        found[name] = value
    return found


def absolute(path: str) -> str:
    """A path that is here, made absolute; one that is not here is the coordinator's to find, as it stands."""
    place = Path(path).expanduser()
    return str(place.absolute()) if place.exists() else path


def _explain(source: str, error: ValidationError) -> InvalidInput:
    found = error.errors(include_url=False)
    reasons = [
        f"{'.'.join(map(str, one['loc'])) or 'spec'}: {one['msg'].removeprefix('Value error, ')}" for one in found
    ]
    return InvalidInput(source, "; ".join(reasons))


def body_of(spec: BaseModel) -> Json:
    """A spec as JSON."""
    return spec.model_dump(mode="json")
