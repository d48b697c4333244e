"""Specs from files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from winnow.domain import DatasetSpec, ExperimentSpec, expand
from winnow.errors import InvalidInput

Json = dict[str, Any]


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
