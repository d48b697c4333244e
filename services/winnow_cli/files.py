"""Specs from files."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from winnow.domain import DatasetSpec, ExperimentSpec, expand
from winnow.errors import InvalidInput

Json = dict[str, Any]
MOST_BYTES = 1 << 16
"""Of a spec file. YAML's numbers of base 60 take time that grows with the square of their length."""
MOST_VALUES = 100_000
MOST_DEPTH = 100
MERGE = "tag:yaml.org,2002:merge"
"""`<<`, of which there may be several."""
SIMILAR = 0.75
"""From which on a key is taken for another one, misspelt: the share of letters that both have in order."""


class _Repeated(Exception):
    """A key that stands in one mapping twice, of which YAML and JSON would take the last unsaid."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE)
        _require_once([key.value for key in keys])
        return node


def _load_yaml(text: str) -> object:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _mapping(pairs: list[tuple[str, Any]]) -> Json:
    _require_once([key for key, _ in pairs])
    return dict(pairs)


def _require_once(keys: Sequence[str]) -> None:
    for key, times in Counter(keys).items():
        if times > 1:
            raise _Repeated(key)


def read(path: Path) -> Json:
    """A YAML or JSON file that holds one mapping. Raises InvalidInput."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise InvalidInput(str(path), f"is larger than {MOST_BYTES} bytes; a spec is a page")
        text = data.decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=_mapping) if path.suffix == ".json" else _load_yaml(text)
        _require_plain(found)
    except _Repeated as error:
        raise InvalidInput(str(path), f"has the key {error} twice in one mapping; keep one") from error
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
        raise _explain(source, error, [*_keys_of(ExperimentSpec), "arms", "seeds", "preset"]) from error


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
        raise _explain(source, error, list(_keys_of(model))) from error


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


def _explain(source: str, error: ValidationError, keys: Sequence[str]) -> InvalidInput:
    """Where and why; of a key that there is not, what it may stand for."""
    reasons: list[str] = []
    for one in error.errors(include_url=False):
        place = ".".join(map(str, one["loc"])) or "spec"
        reason = one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            reason = f"is no key here; {_meant([str(part) for part in one['loc'] if isinstance(part, str)], keys)}"
        reasons.append(f"{place}: {reason}")
    return InvalidInput(source, "; ".join(reasons))


def _meant(path: list[str], keys: Sequence[str]) -> str:
    """What a wrong key may be: the same one elsewhere, or one that is spelt alike, of its own level first."""
    *level, name = path
    stems = [key.rpartition(".")[0] for key in keys if key.rpartition(".")[2] == name]
    if stems:
        return "it belongs " + " or ".join(f"under {stem}" if stem else "at the top" for stem in stems)
    of_level = [key for key in keys if key.rpartition(".")[0] == ".".join(level)]
    similar = get_close_matches(name, [key.rpartition(".")[2] for key in of_level], 1, SIMILAR)
    if not similar:
        elsewhere = {key.rpartition(".")[2]: key for key in reversed(keys)}
        similar = [elsewhere[one] for one in get_close_matches(name, list(elsewhere), 1, SIMILAR)]
    return f"did you mean {similar[0]}?" if similar else "docs/spec.md lists the keys"


def _keys_of(model: type[BaseModel], stem: str = "") -> Iterator[str]:
    """The dotted keys of a model and of all that it holds."""
    for name, field in model.model_fields.items():
        yield f"{stem}{name}"
        for part in _models_in(field.annotation):
            yield from _keys_of(part, f"{stem}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def body_of(spec: BaseModel) -> Json:
    """A spec as JSON."""
    return spec.model_dump(mode="json")
