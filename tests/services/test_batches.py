"""The batch of a round as it is sent: the same bytes whatever the pages, and never a part for the whole."""

import csv
import io
import tracemalloc
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from services.conftest import add_dataset, experiment_body, move
from sqlalchemy import delete, update
from structlog.testing import capture_logs

from winnow.domain import ExperimentStatus
from winnow.store import experiments, picks
from winnow.store.tables import Dataset, Pick, Sample
from winnow_coordinator import batches
from winnow_coordinator.batches import Batch
from winnow_coordinator.context import Coordinator
from winnow_coordinator.schemas import PickView, SelectionView
from winnow_coordinator.streams import CutShort

POOL, BUDGET = 300, 250
ODD = (
    'say "a", b',
    "a,b",
    "line\nbreak",
    "carriage\rreturn\r\n",
    "naïve/組織.png",
    "🧫\u2028",
    "tab\t\x1b\\",
    "'",
    " ",
    "",
)
SCORES = (0.1, 1e-9, 1e22, -0.0, 1 / 3, 5e-324, float("inf"), 12345678.9, 3.0)
ENDED = (ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)
FORMATS = tuple(batches.FORMATS)
Begin = Callable[..., str]


@pytest.fixture
def begin(api: httpx.Client, coordinator: Coordinator) -> Begin:
    """Begins an experiment on a pool with odd keys, with odd scores in its first batch; its id."""
    dataset = add_dataset(coordinator, pool="ab" * (POOL // 2), labelled="aabb", test="abab")
    keys = [{"dataset_id": dataset.id, "idx": i, "key": f"{i}{ODD[i % len(ODD)]}"} for i in range(POOL)]
    with coordinator.database.begin() as session:
        session.execute(update(Sample), keys)

    def call(arm: str) -> str:
        body = experiment_body(arm=arm, budget=BUDGET, rounds=1, candidates="all")
        id = api.post("/experiments", json=body).raise_for_status().json()["id"]
        for n, score in enumerate(SCORES):
            with coordinator.database.begin() as session:
                some = update(Pick).where(Pick.experiment_id == id, Pick.rank % len(SCORES) == n)
                session.execute(some.values(score=score))
        return id

    return call


def whole(coordinator: Coordinator, id: str, arm: str) -> list[PickView]:
    """The batch of round 0, read at once."""
    with coordinator.database.read() as session:
        dataset = experiments.get(session, id).dataset_id
        if arm == "full":
            rows = session.query(Sample).where(Sample.dataset_id == dataset, Sample.role == "pool").order_by(Sample.idx)
            return [PickView(rank=rank, idx=row.idx, key=row.key, score=0.0) for rank, row in enumerate(rows)]
        rows = picks.page(session, id, dataset, 0, after=-1, limit=POOL)
        return [PickView(rank=rank, idx=idx, key=key, score=score) for rank, idx, key, score in rows]


def rendered(batch: list[PickView], media_type: str) -> bytes:
    """Row by row, by the libraries that formats come from."""
    if media_type == "application/json":
        return SelectionView(items=batch).model_dump_json().encode()
    if media_type == "application/x-ndjson":
        return "".join(f"{pick.model_dump_json()}\n" for pick in batch).encode()
    if media_type == "text/csv":
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["rank", "idx", "key", "score"])
        rows.writerows([pick.rank, pick.idx, pick.key, pick.score] for pick in batch)
        return text.getvalue().encode()
    data = io.BytesIO()
    np.save(data, np.array([pick.idx for pick in batch], np.int64), allow_pickle=False)
    return data.getvalue()


@pytest.mark.parametrize("arm", ["random", "full"])
def test_pages_do_not_show(
    api: httpx.Client, coordinator: Coordinator, begin: Begin, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    id = begin(arm)
    batch = whole(coordinator, id, arm)
    assert len(batch) == (POOL if arm == "full" else BUDGET)
    for size in (5000, POOL, BUDGET, 7):
        monkeypatch.setattr(batches, "PAGE", size)
        for media_type in FORMATS:
            answer = api.get(f"/experiments/{id}/rounds/0/selection", headers={"Accept": media_type})
            assert answer.content == rendered(batch, media_type), (size, media_type)
            sent = "text/csv; charset=utf-8" if media_type == "text/csv" else media_type
            assert (answer.headers["content-type"], answer.headers["vary"]) == (sent, "Accept")


@pytest.mark.parametrize("media_type", FORMATS)
def test_a_batch_may_be_empty(coordinator: Coordinator, media_type: str) -> None:
    empty = Batch("e", "d", 1, size=0, is_pool=True)
    content, _ = batches.render(empty, coordinator.database, media_type)
    assert b"".join(content) == rendered([], media_type)


@pytest.mark.parametrize("media_type", FORMATS)
@pytest.mark.parametrize("arm", ["random", "full"])
def test_a_batch_that_is_removed_while_it_is_sent_breaks_off(
    coordinator: Coordinator, begin: Begin, monkeypatch: pytest.MonkeyPatch, arm: str, media_type: str
) -> None:
    monkeypatch.setattr(batches, "PAGE", 100)
    id = begin(arm)
    with coordinator.database.read() as session:
        batch = batches.of_round(session, id, 0)
    content, _ = batches.render(batch, coordinator.database, media_type)
    for _ in range(2):  # a page at least
        next(content)
    remove(coordinator, batch)
    with pytest.raises(CutShort, match=rf"round 0 of experiment {id} was removed .* [12]00 of {batch.size} "):
        list(content)


def remove(coordinator: Coordinator, batch: Batch) -> None:
    """The experiment, and the dataset where the batch is the dataset's."""
    move(coordinator, batch.experiment_id, *ENDED)
    with coordinator.database.begin() as session:
        experiments.remove(session, batch.experiment_id)
        if batch.is_pool:
            session.execute(delete(Dataset).where(Dataset.id == batch.dataset_id))


@pytest.mark.parametrize("media_type", FORMATS)
def test_a_client_does_not_take_a_part_for_the_whole(
    api: httpx.Client, coordinator: Coordinator, begin: Begin, media_type: str
) -> None:
    id = begin("full")
    with coordinator.database.begin() as session:
        session.execute(delete(Sample).where(Sample.role == "pool", Sample.idx == POOL - 1))
    with capture_logs() as said, pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
        api.get(f"/experiments/{id}/rounds/0/selection", headers={"Accept": media_type})
    (failed,) = [line["exc_info"] for line in said if line["event"] == "request.failed"]
    assert isinstance(failed.__cause__, CutShort)
    assert api.get(f"/experiments/{id}").is_success


def test_memory_does_not_grow_with_the_batch(
    api: httpx.Client, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PAGE", 100)
    add_dataset(coordinator, pool="ab" * 25_000, labelled="aabb", test="abab")
    id = api.post("/experiments", json=experiment_body(arm="full")).raise_for_status().json()["id"]
    with coordinator.database.read() as session:
        batch = batches.of_round(session, id, 0)

    def size(media_type: str) -> int:
        content, _ = batches.render(batch, coordinator.database, media_type)
        return sum(map(len, content))

    sizes = {media_type: size(media_type) for media_type in FORMATS}  # what is kept for good is kept now
    peaks: dict[str, int] = {}
    tracemalloc.start()
    try:
        for media_type in FORMATS:
            tracemalloc.reset_peak()
            assert size(media_type) == sizes[media_type]
            peaks[media_type] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sizes["application/json"] > 3_000_000 and max(peaks.values()) < 400_000, peaks
