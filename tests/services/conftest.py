"""Services over real HTTP: uvicorn in a thread, SQLite and artefacts in a temporary directory."""

import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
import uvicorn
from conftest import wait_until
from fastapi import FastAPI
from gateway import Gateway
from services import trainer_parts
from sqlalchemy.orm import Session

from winnow.artefacts import put_array
from winnow.domain import DatasetSpec, ExperimentStatus, derive_seed
from winnow.selection.draws import draw_candidates
from winnow.settings import Settings
from winnow.store import artefacts, claims, datasets, experiments, picks, rounds
from winnow.store.tables import Artefact, Dataset, Round
from winnow_cli.main import main
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator
from winnow_coordinator.picking import Picker
from winnow_trainer.standby import Standby
from winnow_trainer.worker import Worker


@contextmanager
def serving(app: FastAPI, *, port: int = 0) -> Iterator[str]:
    """The address of `app` while a real server answers for it."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), 20, "the server to start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Impatient settings: nothing waits longer than a test can."""
    (tmp_path / "data").mkdir()
    return Settings(
        state_dir=tmp_path / "state",
        data_roots=(tmp_path / "data",),
        lease_seconds=10,
        renew_seconds=0.2,
        steward_seconds=0.05,
        retry_seconds=0.1,
    )


@pytest.fixture
def coordinator(settings: Settings) -> Iterator[Coordinator]:
    opened = Coordinator.open(settings)
    opened.database.migrate()
    yield opened
    opened.close()


@pytest.fixture
def api(coordinator: Coordinator) -> Iterator[httpx.Client]:
    """The coordinator's API, without a steward."""
    app = make_app(coordinator, steward=False)
    with serving(app) as url, httpx.Client(base_url=f"{url}/api/v1", timeout=20) as client:
        yield client


def add_dataset(coordinator: Coordinator, name: str = "tissue", *, image_size: int = 32, **roles: Any) -> Dataset:
    """A ready dataset. `roles` gives each role's labels, one a sample: pool="ab" * 20, test=["a", None]."""
    given = roles or {"pool": "ab" * 20, "labelled": "aabb", "test": "abab"}
    spec = DatasetSpec.model_validate(
        {"name": name, "image_size": image_size, "sources": [{"kind": "folder", "path": "/patches"}]}
    )
    pairs = [(role, label) for role, labels in given.items() for label in labels]
    samples = [
        {"idx": i, "key": f"{role}/{i:03d}.png", "role": role, "label": label, "group": None}
        for i, (role, label) in enumerate(pairs)
    ]
    with coordinator.database.begin() as session:
        datasets.insert(session, spec)
    with coordinator.database.begin() as session:
        row = claims.claim(session, claims.INGEST, "tester", 30)
        assert isinstance(row, Dataset)
        result = {"classes": sorted({label for _, label in pairs if label}), "counts": count(pairs), "report": {}}
        datasets.store(session, row.id, row.attempt, 30, samples, total=len(samples))
        datasets.complete(session, row.id, row.attempt, location="datasets/x/a1", **result)
    with coordinator.database.read() as session:
        return datasets.get(session, name)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of an answer that is to be this problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    return body


def count(pairs: list[tuple[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for role, label in pairs:
        by_label = counts.setdefault(role, {})
        by_label[label or "(no label)"] = by_label.get(label or "(no label)", 0) + 1
    return counts


def experiment_body(**changes: Any) -> dict[str, Any]:
    """A small experiment on the dataset `tissue`."""
    small = {"name": "e", "dataset": "tissue", "positive_class": "a", "budget": 5, "rounds": 3, "candidates": 12}
    return {**small, **changes}


def move(coordinator: Coordinator, id: str, *states: ExperimentStatus, error: str | None = None) -> None:
    """Take an experiment through states, one transaction each."""
    for status in states:
        with coordinator.database.begin() as session:
            experiments.transition(session, id, status, error=error)


class Driver:
    """Does to rounds what a trainer does, with made-up arrays instead of a network."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.random = np.random.default_rng(0)

    def claim(self, *, lease: float = 30) -> Round:
        """Take the longest-waiting round and say that it trains."""
        with self.coordinator.database.begin() as session:
            row = claims.claim(session, claims.TRAIN, "trainer", lease)
            assert isinstance(row, Round)
            rounds.start(session, row, lease)
            return row

    def train(self, *, visits: int = 100) -> Round:
        """Claim, leave the arrays that picks are made from, finish."""
        return self.finish(self.claim(), visits=visits)

    def finish(self, row: Round, *, visits: int = 100) -> Round:
        """Leave the arrays of a round that is claimed, and finish."""
        with self.coordinator.database.begin() as session:
            arrays = self._arrays(session, row)
            kept = [self._put(row, kind, array) for kind, array in arrays.items()]
            result = {
                "visits": visits * (row.number + 1),
                "seconds": {"train": 2.0, "embed": 1.0},
                "metrics": {"f1": 0.5},
                "report": {"floors": {"colour_histogram": {"f1": 0.25}, "untrained_encoder": {"f1": 0.4}}},
            }
            rounds.complete_training(session, row.id, row.attempt, result=result, rows=kept)
        return row

    def _arrays(self, session: Session, row: Round) -> dict[str, np.ndarray[Any, Any]]:
        experiment = experiments.get(session, row.experiment_id)
        spec = experiments.spec_of(experiment)
        pool = datasets.indices(session, experiment.dataset_id, "pool")
        selected = picks.selected(session, experiment.id, up_to=row.number)
        seed = derive_seed(spec.seed, "candidates", row.number)
        candidates = draw_candidates(pool, selected, spec.candidates, seed=seed)
        share = self.random.random(len(candidates), np.float32)
        return {
            **{f"state/{name}": self.random.random(3) for name in ("weights", "optimizer", "counters")},
            "candidates/index": candidates,
            "candidates/embeddings": self.random.random((len(candidates), 8), np.float32),
            "candidates/probabilities": np.stack([share, 1 - share], axis=1),
            "selected/index": selected,
            "selected/embeddings": self.random.random((len(selected), 8), np.float32),
        }

    def _put(self, row: Round, kind: str, array: np.ndarray[Any, Any]) -> Artefact:
        place = f"experiments/{row.experiment_id}/rounds/{row.number:04d}/a{row.attempt}/{kind.replace('/', '-')}.npy"
        stored = put_array(self.coordinator.artefacts, place, array)
        shape = {"shape": list(array.shape)}
        at = {"experiment_id": row.experiment_id, "round": row.number, "attempt": row.attempt}
        return artefacts.row(stored, kind=kind, manifest=shape, **at)


@pytest.fixture
def driver(coordinator: Coordinator) -> Driver:
    return Driver(coordinator)


Winnow = Callable[..., "Said"]


class Said:
    """Exit code, standard output and standard error of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def winnow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Winnow]:
    """Runs a command in an empty directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # the served coordinator's lines are not ours

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["winnow", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    yield call
    structlog.reset_defaults()


@pytest.fixture
def url(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(make_app(coordinator, steward=False)) as address:
        monkeypatch.setenv("WINNOW_COORDINATOR_URL", address)
        yield address


@pytest.fixture
def gateway(url: str) -> Iterator[Gateway]:
    """A network before the coordinator at `url`, which may fail."""
    opened = Gateway(int(url.rpartition(":")[2]))
    yield opened
    opened.close()


@pytest.fixture
def run_through(coordinator: Coordinator, url: str, winnow: Winnow) -> Callable[..., str]:
    """An experiment of one evaluated round that then ends, completed unless `ended` says otherwise; its id."""

    def run(*, ended: ExperimentStatus = ExperimentStatus.COMPLETED, **changes: Any) -> str:
        Path("spec.json").write_text(json.dumps(experiment_body(rounds=1, **changes)))
        (view,) = winnow("run", "spec.json", "--detach", "--json").json
        Driver(coordinator).train()
        with coordinator.database.begin() as session:
            experiments.transition(session, view["id"], ended)
        return view["id"]

    return run


@pytest.fixture
def picker(coordinator: Coordinator) -> Iterator[Picker]:
    made = Picker(coordinator, "steward")
    yield made
    made.close()


@pytest.fixture(scope="module")
def standby() -> Iterator[Standby]:
    """The training process that a module's workers hand on, since one takes seconds to start. A test may kill it."""
    made = Standby(idle_seconds=3600)
    yield made
    made.close()


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a worker that has ingested `tissue`: to copy, and to leave as it is."""
    state = tmp_path_factory.mktemp("ingested") / "state"
    with trainer_parts.worker_at(state) as worker:
        assert trainer_parts.add_dataset(worker).status == "ready"
    return state


@pytest.fixture
def worker(tmp_path: Path, ingested: Path, standby: Standby) -> Iterator[Worker]:
    """A worker with the dataset `tissue`, in a directory of the test's own."""
    shutil.copytree(ingested, tmp_path / "state")
    with trainer_parts.worker_at(tmp_path / "state", standby=standby) as made:
        yield made
