"""Files that were half removed, and what lies in them beside the features."""

import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet
from services.conftest import problem
from services.sampler.sending import pick, send, slide

from winnow.artefacts import DirectoryStore
from winnow.settings import Settings
from winnow_sampler.context import Sampler
from winnow_sampler.schemas import SelectionRequest
from winnow_sampler.selecting import Selecting
from winnow_sampler.snapshots import Found


def test_one_whose_removal_was_cut_off_can_be_sent_again(http: httpx.Client, store: DirectoryStore) -> None:
    id = send(http, "a.h5", slide()).json()["id"]
    store.local(f"embeddings/{id}/f-a.h5").unlink()
    problem(http.get(f"/v1/embeddings/{id}"), 404, "not-found")
    assert send(http, "a.h5", slide()).status_code == 201
    assert pick(http, {"upload": id})["indices"]


def test_keys_that_cannot_be_read_are_told_of_before_any_pick(http: httpx.Client, tmp_path: Path) -> None:
    ends, torn = (arrow.py_buffer(part) for part in (np.array([0, 1, 2], np.int32), b"a\xe2"))
    keys = arrow.StringArray.from_buffers(2, ends, torn)
    parquet.write_table(arrow.table({"key": keys, "d0": [1.0, 2.0]}), tmp_path / "data" / "a.parquet")
    request = {"strategy": "k_center", "budget": 1, "pool": {"path": str(tmp_path / "data" / "a.parquet")}}
    assert "UTF8" in problem(http.post("/v1/selections", json=request), 422, "invalid")["detail"]
    assert "winnow_selection_seconds_count{" not in http.get("/metrics").text


@pytest.mark.parametrize("strategy", ["random", "k_center"])
def test_keys_count_as_memory_whatever_the_strategy_reads(settings: Settings, tmp_path: Path, strategy: str) -> None:
    needs: list[int] = []
    sampler = Sampler(settings)
    for rows in (1000, 2000):
        path = tmp_path / "data" / f"{rows}.parquet"
        parquet.write_table(arrow.table({"key": ["k"] * rows, "d0": [1.0] * rows}), path)
        request = SelectionRequest.model_validate({"strategy": strategy, "budget": 1, "pool": {"path": str(path)}})
        needs.append(Selecting(request, Found(request, sampler.sources), lambda *_: None).need)
    assert needs[1] - needs[0] >= 128 * 1000
    sampler.jobs.close()


def test_an_upload_that_finds_no_room_leaves_nothing(settings: Settings) -> None:
    """In a process of its own, whose files have an end: what is left in a buffer is written when the file is closed."""
    script = """
import resource, signal, sys
from winnow.errors import Unavailable
from winnow.settings import Settings
from winnow_sampler.context import Sampler

sampler = Sampler(Settings(state_dir=sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with sampler.uploads.begin("a.npy", None) as incoming:
        for size in (65_536, 34_000, 2_000):
            incoming.write(bytes(size))
        incoming.finish()
except Unavailable as error:
    print(error)
sampler.jobs.close()
"""
    command = [sys.executable, "-c", script, str(settings.state_dir)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "could not be stored (File too large)" in said
    assert not list(settings.artefact_dir.glob(".incoming-*"))
