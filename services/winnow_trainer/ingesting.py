"""The child's side of an ingest: decode, and pack into the artefact store."""

import json
from pathlib import Path
from typing import Any

from winnow.artefacts import DirectoryStore
from winnow.csv_lines import csv_lines
from winnow.datasets import SKIPPED_FILE, SKIPPED_LISTED, Shelf, ingest
from winnow.domain import DatasetSpec
from winnow.errors import InvalidInput
from winnow.settings import Settings
from winnow_trainer.protocol import Line


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
    shelf = Shelf(DirectoryStore(Path(job["artefact_dir"])), job["prefix"], job["earlier"])
    done = ingest(
        DatasetSpec.model_validate(job["spec"]),
        shelf,
        scratch / "packing",
        allow=settings.require_allowed,
        on_progress=lambda read, total: line.progress(phase="ingest", step=read, steps=total),
        should_stop=line.should_stop,
        on_taken_over=lambda patches: line.tell("taken_over", patches=patches),
        decode_seconds=job["decode_seconds"] or None,
    )
    if len(done.skipped) > SKIPPED_LISTED:
        table = csv_lines([("path", "reason"), *done.skipped])
        shelf.put(SKIPPED_FILE, table.encode())
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
        "parts": shelf.parts,
    }
