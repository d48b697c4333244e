"""Where a coordinator keeps what has a name: paths below `/api/v1`.

A name goes into a path whole, or not at all: `..`, `a/b` and the empty one would be paths of something else.
"""

from collections.abc import Iterable
from urllib.parse import quote

from winnow.answers import ApiProblem


def address(noun: str, name: str, *below: object) -> str:
    """Of a dataset, an experiment or a key, or of what is `below` it. Raises ApiProblem for what can be no name."""
    return "/".join([f"/{noun}s", *_quoted(noun, name, [name]), *map(str, below)])


def artefact_address(id: str, number: int, kind: str) -> str:
    """Of an artefact, whose kind may have several parts: `candidates/embeddings`. Raises ApiProblem."""
    parts = _quoted("artefact", f"{id}/{number}/{kind}", kind.split("/"))
    return address("experiment", id, "rounds", number, "artefacts", *parts)


def _quoted(noun: str, called: str, parts: Iterable[str]) -> list[str]:
    """Each as a part of a path. Raises what a coordinator answers for what is not there."""
    found = list(parts)
    if any(part in ("", ".", "..") or "/" in part for part in found):
        detail = {"code": "not-found", "status": 404, "title": "Not Found", "detail": f"no {noun} {called!r}"}
        raise ApiProblem(404, {"type": "urn:winnow:problem:not-found", **detail})
    return [quote(part, safe="", errors="replace") for part in found]
