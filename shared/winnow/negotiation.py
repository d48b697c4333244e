"""Which of the formats on offer an Accept header asks for, for every service."""

from collections.abc import Iterable

from winnow.problems import NotAcceptable

JSON = "application/json"
NDJSON = "application/x-ndjson"
CSV = "text/csv"
NPY = "application/x-npy"
ARROW = "application/vnd.apache.arrow.stream"


def negotiate(accept: str | None, offered: Iterable[str]) -> str:
    """The offered media type with the highest weight in an Accept header; the first where there is none.

    Raises NotAcceptable.
    """
    formats = list(offered)
    best, weight = "", 0.0
    for part in (accept or "*/*").split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        asked = _weight(parameters)
        found = next((one for one in formats if _matches(name.lower(), one)), None)
        if found is not None and asked > weight:
            best, weight = found, asked
    if not best:
        raise NotAcceptable(accept or "", formats)
    return best


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def _matches(asked: str, offered: str) -> bool:
    return asked in ("*/*", offered, f"{offered.split('/', maxsplit=1)[0]}/*")
