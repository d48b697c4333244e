"""The child's side of an ingest: decode and pack in scratch, then move the shards into the artefact store."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from winnow.artefacts import ArtefactStore, DirectoryStore
from winnow.csv_lines import csv_lines
from winnow.datasets import SKIPPED_FILE, SKIPPED_LISTED, IngestStopped, ingest
from winnow.datasets.packing import MANIFEST as PACKED
from winnow.domain import DatasetSpec
from winnow.errors import InvalidInput
from winnow.settings import Settings
from winnow_trainer.protocol import Line

_STORED_AT_ONCE = 4


def ingest_dataset(job: dict[str, Any], line: Line) -> dict[str, Any]:
    """Ingest, and say where the shards and the table of samples are.

    Raises what winnow.datasets.ingest raises, and InvalidInput where this process may not have as much memory.
    """
    try:
        return _ingest(job, line)
    except MemoryError as error:
        limit = f"{job['memory'] / 2**30:g} GiB" if job["memory"] else "memory"
        advice = "lower max_pixels, and such images count as unreadable, or raise WINNOW_INGEST_MEMORY_GIB"
        raise InvalidInput("max_pixels", f"decoding needs more than the {limit} there is; {advice}") from error


def _ingest(job: dict[str, Any], line: Line) -> dict[str, Any]:
    settings = Settings(data_roots=tuple(Path(root) for root in job["data_roots"]))
    scratch = Path(job["scratch"])
    packed = scratch / "packed"
    done = ingest(
        DatasetSpec.model_validate(job["spec"]),
        packed,
        allow=settings.require_allowed,
        on_progress=lambda read, total: line.progress(phase="ingest", step=read, steps=total),
        should_stop=line.should_stop,
        decode_seconds=job["decode_seconds"] or None,
    )
    if len(done.skipped) > SKIPPED_LISTED:
        table = csv_lines([("path", "reason"), *done.skipped])
        (packed / SKIPPED_FILE).write_text(table, encoding="utf-8", newline="")
    _store(packed, DirectoryStore(Path(job["artefact_dir"])), job["prefix"], line)
    samples = scratch / "samples.jsonl"
    with samples.open("w") as out:
        out.writelines(json.dumps(row._asdict()) + "\n" for row in done.samples())
    return {
        "samples": str(samples),
        "total": len(done.packed),
        "classes": done.classes,
        "counts": done.counts,
        "report": done.report,
        "location": job["prefix"],
    }


def _store(folder: Path, store: ArtefactStore, prefix: str, line: Line) -> None:
    """Put every file of the folder into the store, several at a time: each is read, hashed, written and synced.

    The one that says what there is comes last, as it does in the folder.
    """

    def put(path: Path) -> None:
        if line.should_stop():
            raise IngestStopped(f"stopped before {path.name} was stored")
        store.put(f"{prefix}/{path.name}", path)

    pool = ThreadPoolExecutor(_STORED_AT_ONCE, thread_name_prefix="store")
    try:
        list(pool.map(put, sorted(path for path in folder.iterdir() if path.name != PACKED)))
        put(folder / PACKED)
    finally:
        pool.shutdown(cancel_futures=True)
