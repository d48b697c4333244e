"""A process that reads files for a test, within a limit of memory: `python reader_child.py MIB`.

It takes a line of JSON for each file, `[reader, path]`, and answers one: `[verdict, text]`. A crash of a C library
ends it, which the test sees.
"""

import json
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py  # noqa: F401 - before the limit of memory
import pyarrow.parquet  # noqa: F401

from winnow import embeddings
from winnow.artefacts import DirectoryStore
from winnow.datasets import Shelf, check, ingest, open_table
from winnow.datasets.decode import FilePicture, Unreadable, quiet_pillow
from winnow.domain import DatasetSpec
from winnow.errors import InvalidInput, WinnowError
from winnow.settings import Settings
from winnow_cli import files


def read_embeddings(path: Path) -> object:
    """What the sampler and `winnow select` do with a file."""
    found = embeddings.survey([path])
    pool = found.read()
    with suppress(InvalidInput):  # no such column, or not Parquet
        found.values("key", "labels")
    return [found.groups()[0], found.parts()[-1].origin(found.rows - 1), pool.features.sum().item()]


def read_labels(path: Path) -> object:
    return embeddings.read_labels(path, "labels", 3)


def read_rows(path: Path) -> object:
    return embeddings.read_rows(path, "exclude")


def read_image(path: Path) -> object:
    with quiet_pillow():
        return FilePicture(path, lambda _: None, max_pixels=1_000_000).read(32).pixels.shape


def read_manifest(path: Path) -> object:
    with open_table(path) as (names, rows):
        count = sum(1 for _ in rows)
    return [names, count, _ingest({"kind": "manifest", "path": str(path)}, path.parent)]


def read_npz(path: Path) -> object:
    return _ingest({"kind": "npz", "path": str(path)}, path.parent)


def read_spec(path: Path) -> object:
    document = files.read(path)
    refused: list[str] = []
    for parse in (files.experiments, files.dataset):
        try:
            json.dumps(str(parse(document, "spec")))
        except InvalidInput as error:
            refused.append(str(error).encode().decode())  # it is shown, so it must be text
    return refused


def _ingest(source: dict[str, Any], root: Path) -> object:
    spec = DatasetSpec.model_validate(
        {"name": "d", "image_size": 8, "sources": [source], "on_unreadable": "skip", "max_pixels": 1_000_000}
    )
    allow = Settings(data_roots=(root,)).require_allowed
    check(spec, allow)
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(DirectoryStore(Path(folder)), "packed")
        report = ingest(spec, shelf, Path(folder) / "packing", allow=allow).report
    return json.dumps(report)


READERS: dict[str, Callable[[Path], object]] = {
    "embeddings": read_embeddings,
    "labels": read_labels,
    "rows": read_rows,
    "image": read_image,
    "manifest": read_manifest,
    "npz": read_npz,
    "spec": read_spec,
}


def judge(reader: str, path: str) -> tuple[str, str]:
    """`read`, `refused` with an error of our own tree, or `failed` with anything else."""
    try:
        return "read", repr(READERS[reader](Path(path)))[:200]
    except (WinnowError, Unreadable) as error:
        return "refused", f"{type(error).__name__}: {error}"
    except MemoryError:
        return "failed", f"wanted more memory than the limit\n{traceback.format_exc()}"
    except BaseException:
        return "failed", traceback.format_exc()


def main() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = size + (int(sys.argv[1]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        verdict = judge(*json.loads(line))
        answers.write(json.dumps(verdict) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
