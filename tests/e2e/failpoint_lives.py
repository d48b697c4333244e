"""What is lived through in the failpoint matrix: every durable step, each in a piece of work that takes it."""

import io
from contextlib import suppress

import httpx
import numpy as np
from conftest import wait_until
from e2e.conftest import wait_for
from e2e.failpoint_bench import Bench, Life
from sqlalchemy import select, text

from winnow.failpoints import EXIT_CODE, Failpoint
from winnow.store import Database, datasets
from winnow.store.tables import Sample


def migrate(bench: Bench) -> None:
    """A schema, from nothing."""
    url = f"sqlite:///{bench.cluster.root / 'fresh.sqlite3'}"
    if bench.kind == "scaled":
        url = bench.cluster.database_url + "_fresh"
        with bench.database.engine.connect() as admin:
            admin.execution_options(isolation_level="AUTOCOMMIT").execute(text("CREATE DATABASE winnow_fresh"))
    coordinator = bench.cluster["coordinator-0"]
    given = ("winnow_coordinator", coordinator.log, coordinator.environment | {"WINNOW_DATABASE_URL": url}, "migrate")
    codes = [bench.nursery.fork(*given).wait() for _ in range(3)]
    assert codes == [EXIT_CODE, EXIT_CODE, 0]
    database = Database(url)
    with database.read() as session:
        assert datasets.page(session, before=None, limit=1) == []
    database.close()


def ingest(bench: Bench) -> str:
    """A dataset, and an experiment on it: it is to go as on the one that was ingested undisturbed."""
    bench.ingest("tissue-again")
    return bench.begin("entropy", "tissue-again")


def begin(bench: Bench) -> str:
    return bench.begin("entropy")


def begin_k_center(bench: Bench) -> str:
    return bench.begin("k_center")


def poll(bench: Bench) -> None:
    """The sampler says at once that it works on it, as it does of long selections."""
    bench.forget_answers(WINNOW_ANSWER_SECONDS="0.000001")


def pause(bench: Bench) -> str:
    """An experiment that is paused as soon as it began."""
    id = bench.begin("entropy")
    assert bench.api.http.post(f"/experiments/{id}/pause").status_code == httpx.codes.ACCEPTED
    wait_for(bench.api, id, "paused")
    assert bench.api.http.post(f"/experiments/{id}/resume").status_code == httpx.codes.ACCEPTED
    return id


def upload(bench: Bench) -> None:
    """A file of embeddings, sent until the sampler says that it has it."""
    body = io.BytesIO()
    np.save(body, np.eye(4, dtype=np.float32))
    sampler = bench.cluster["sampler-0"]
    url = f"http://127.0.0.1:{sampler.environment['WINNOW_SAMPLER_PORT']}/v1/embeddings"
    key = {"Authorization": f"Bearer {sampler.environment['WINNOW_SAMPLER_TOKEN']}"}

    def send() -> httpx.Response | None:
        try:
            return httpx.post(url, params={"name": "eye.npy"}, content=body.getvalue(), headers=key, trust_env=False)
        except httpx.TransportError:
            return None

    kept = wait_until(send, 30, "the sampler to take the file")
    assert kept.status_code == httpx.codes.OK, "it was whole when the second process died"
    assert kept.json()["rows"] == 4


def tidy(bench: Bench) -> None:
    """The states that the undisturbed experiments started from: of each, the newest is to stay."""
    coordinator = bench.cluster["coordinator-0"]
    keeps = coordinator.environment["WINNOW_KEEP_STATES"]
    before = {id: bench.digests(id) for id in bench.undisturbed.values()}
    after = {
        id: {name: digest for name, digest in digests.items() if not name.startswith("0/state/")}
        for id, digests in before.items()
    }
    assert all(set(after[id]) < set(before[id]) for id in before)
    bench.replace("coordinator-0", WINNOW_KEEP_STATES="1")
    try:
        wait_until(
            lambda: all(set(bench.manifests(id)) == set(after[id]) for id in after), 60, "older states to be gone"
        )
        wait_until(lambda: bench.have_ended(TIDIED) and coordinator.is_ready(), 60, "a coordinator after both deaths")
    finally:
        bench.replace("coordinator-0", WINNOW_KEEP_STATES=keeps)
    assert {id: bench.digests(id) for id in after} == after


def remove(bench: Bench) -> None:
    """An experiment that was called off, and whose trainer had stored something."""
    id = bench.begin("entropy")
    assert bench.api.http.post(f"/experiments/{id}/cancel").status_code == httpx.codes.ACCEPTED
    wait_for(bench.api, id, "cancelled")
    place = bench.cluster.root / "artefacts" / "experiments" / id
    (place / "rounds" / "0000" / "a1").mkdir(parents=True, exist_ok=True)
    (place / "rounds" / "0000" / "a1" / "late.npy").write_bytes(b"of a worker that lost its claim")
    assert bench.api.http.delete(f"/experiments/{id}").status_code == httpx.codes.NO_CONTENT
    wait_until(lambda: bench.have_ended({P.PLACE_EMPTIED}) and not place.exists(), 60, "its files to go")
    assert bench.api.http.get(f"/experiments/{id}").status_code == httpx.codes.NOT_FOUND


def remove_dataset(bench: Bench) -> None:
    """A dataset whose coordinators die over it: what is left goes by itself, and its name is free."""
    bench.ingest("tissue-gone")
    with suppress(httpx.TransportError):
        bench.api.http.delete("/datasets/tissue-gone")

    def is_gone() -> bool:
        with bench.database.read() as session:
            return "tissue-gone" not in {row.name for row in datasets.page(session, before=None, limit=10)}

    wait_until(is_gone, 60, "the rest of it to go")
    with bench.database.read() as session:
        known = datasets.ids(session)
        assert set(session.scalars(select(Sample.dataset_id).distinct())) <= set(known)


P = Failpoint
TIDIED = (P.MANIFESTS_TRIMMED, P.FILE_REMOVED)
LIVES = (
    Life("migrate", (P.SCHEMA_CHANGED, P.SCHEMA_MIGRATED), migrate),
    Life(
        "ingest",
        (
            *(P.KEY_RESERVED, P.DATASET_INSERTED, P.ANSWER_REMEMBERED, P.REQUEST_COMMITTED, P.BELL_DUE, P.BELL_RUNG),
            *(P.WORK_CLAIMED, P.JOB_WRITTEN, P.SHARDS_TAKEN_OVER, P.SHARD_STORED, P.SHARD_KEPT, P.PACK_FINISHED),
            *(P.ARTEFACT_WRITTEN, P.ARTEFACT_RENAMED, P.LEASE_RENEWED, P.RESULT_HEARD, P.SAMPLES_STORED),
            P.WORK_FINISHED,
        ),
        ingest,
        like="entropy",
    ),
    Life(
        "begin",
        (
            *(P.KEY_RESERVED, P.EXPERIMENT_INSERTED, P.ANSWER_REMEMBERED, P.REQUEST_COMMITTED, P.BELL_DUE, P.BELL_RUNG),
            *(P.BELL_HEARD, P.BELLS_REPEATED, P.DEVICE_TAKEN, P.WORK_CLAIMED, P.LEASE_RECLAIMED, P.JOB_WRITTEN),
        ),
        begin,
        like="entropy",
    ),
    Life(
        "train",
        (
            *(P.PATCHES_COPIED, P.PATCHES_CACHED, P.CHECKPOINT_WRITTEN, P.CHECKPOINT_SYNCED, P.CHECKPOINT_RENAMED),
            *(P.ARTEFACT_WRITTEN, P.CHECKPOINT_STORED, P.CHECKPOINT_TOLD, P.CHECKPOINT_HEARD, P.CHECKPOINT_RECORDED),
            *(P.TRAINING_ENDED, P.ROUND_EVALUATED, P.RESULT_TOLD, P.RESULT_HEARD, P.WORK_FINISHED, P.WORK_GIVEN_BACK),
        ),
        begin_k_center,
        like="k_center",
        prepare=Bench.forget_patches,
    ),
    Life(
        "pick",
        (
            *(P.PICK_CLAIMED, P.PICK_PREPARED, P.SELECTION_BEGUN, P.PICK_GIVEN_BACK, P.ANSWER_COMPUTED),
            *(P.ANSWER_STORED, P.SAMPLER_ASKED, P.SAMPLER_ANSWERED, P.ROUND_DONE, P.PICKS_INSERTED),
            *(P.ROUND_INSERTED, P.PICK_FINISHED, P.EXPERIMENT_ENDED, P.ROUND_CLOSED),
        ),
        begin,
        like="entropy",
        prepare=Bench.forget_answers,
    ),
    Life("poll", (P.PICK_RENEWED,), begin_k_center, like="k_center", prepare=poll),
    Life("pause", (P.EXPERIMENT_SETTLED,), pause, like="entropy"),
    Life("upload", (P.UPLOAD_STORED, P.UPLOAD_DESCRIBED), upload),
    Life("tidy", TIDIED, tidy),
    Life("remove", (P.PLACE_EMPTIED,), remove),
    Life("remove a dataset", (P.REMOVAL_BEGUN, P.SAMPLES_DELETED), remove_dataset),
)
