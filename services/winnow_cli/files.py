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
MOST_BYTES = 1 << 16
"""Of a spec file. YAML's numbers of base 60 take time that grows with the square of their length."""
MOST_VALUES = 100_000
MOST_DEPTH = 100


def read(path: Path) -> Json:
    """A YAML or JSON file that holds one mapping. Raises InvalidInput."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise InvalidInput(str(path), f"is larger than {MOST_BYTES} bytes; a spec is a page")
        text = data.decode("utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        _require_plain(found)
    except OSError as error:
        raise InvalidInput(str(path), f"cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InvalidInput(str(path), f"is neither YAML nor JSON: {error}") from error
    except RecursionError as error:
        raise InvalidInput(str(path), "is nested too deeply") from error
    if not isinstance(found, dict):
        raise InvalidInput(str(path), "holds no mapping of keys to values; docs/spec.md lists the keys")
    return found


def _require_plain(document: object) -> None:
    """Raise ValueError for what YAML's aliases make of a few lines, and for text that cannot be shown or sent."""
    left = [(document, 0)]
    for _ in range(MOST_VALUES):
        if not left:
            return
        value, depth = left.pop()
        if isinstance(value, str):
            value.encode()  # half of a surrogate pair
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
        inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        left += [(one, depth + 1) for one in inside]
    raise ValueError(f"more than {MOST_VALUES} values, those of aliases counted each time")


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
