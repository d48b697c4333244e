"""A selection in the formats that people's tools read."""

import io
import json
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import numpy as np

from winnow import embeddings
from winnow.negotiation import ARROW, JSON, NDJSON, NPY

Json = dict[str, Any]
Columns = dict[str, list[Any]]


def render(selection: Json, media_type: str) -> bytes:
    """A selection that has picks, in one of `FORMATS`."""
    return FORMATS[media_type](selection)


def _json(selection: Json) -> bytes:
    return json.dumps(selection).encode()


def _ndjson(selection: Json) -> bytes:
    table = _tabulated(selection)
    rows = zip(*table.values(), strict=True)
    return "".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in rows).encode()


def _npy(selection: Json) -> bytes:
    data = io.BytesIO()
    np.save(cast("BinaryIO", data), np.array(selection["indices"], np.int64), allow_pickle=False)
    return data.getvalue()


def _arrow(selection: Json) -> bytes:
    import pyarrow as arrow

    table = _tabulated(selection)
    kinds = {"rank": arrow.int64(), "row": arrow.int64(), "score": arrow.float32(), "file": arrow.string()}
    kinds |= {"file_row": arrow.int64(), "x": arrow.float64(), "y": arrow.float64(), "key": arrow.string()}
    about = {name: selection[name] for name in ("id", "status", "radius", "seconds", "notes") if name in selection}
    schema = arrow.schema([(name, kinds[name]) for name in table], metadata={"winnow": json.dumps(about)})
    data = io.BytesIO()
    with arrow.ipc.new_stream(data, schema) as stream:
        stream.write_table(arrow.table(table, schema=schema))
    return data.getvalue()


def _tabulated(selection: Json) -> Columns:
    return embeddings.tabulate(selection["indices"], selection["scores"], selection.get("origins"))


FORMATS: dict[str, Callable[[Json], bytes]] = {JSON: _json, NDJSON: _ndjson, NPY: _npy, ARROW: _arrow}
"""JSON holds everything; NDJSON a line a pick; npy the rows alone, int64 (b,); Arrow a stream with a column a value."""
