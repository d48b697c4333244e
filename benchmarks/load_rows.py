"""Fills an empty Postgres with one large dataset and many experiments, for benchmarks/load.py.

Rows are of the shapes that trainers and stewards leave: specs in full, metrics and reports of each round, manifests of
its artefacts, its events, its picks. One experiment in twenty is under way, one in forty paused; the rest has ended.
"""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from winnow.domain import DatasetStatus, ExperimentSpec, ExperimentStatus, RoundStatus
from winnow.store import Database
from winnow.store.engine import insert_rows
from winnow.store.tables import Artefact, Dataset, Event, Experiment, Round, Worker

CLASSES = ["ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"]
ARMS = ("entropy", "k_center", "random", "badge")
BUDGETS = ((100, 5_000), (10, 1_000), (1, 50))
"""One experiment in a hundred picks 5,000 patches a round, one in ten 1,000, the others 50."""
KINDS = (
    *(f"candidates/{part}" for part in ("embeddings", "index", "probabilities")),
    *(f"evaluated/{part}" for part in ("index", "probabilities")),
    *(f"{role}/{part}" for role in ("labelled", "selected") for part in ("embeddings", "index")),
    *(f"state/{part}" for part in ("counters", "optimiser", "weights")),
    "proxy",
)
FAR = 10 * 86_400.0
DATASET = "histology"


@dataclass(frozen=True)
class Sizes:
    """How many samples, experiments, and rounds of each."""

    samples: int = 1_000_000
    experiments: int = 1_000
    rounds: int = 20


@dataclass(frozen=True)
class Made:
    """One experiment that was filled in. `rounds` counts its rounds so far."""

    id: str
    status: ExperimentStatus
    budget: int
    rounds: int

    @property
    def is_open(self) -> bool:
        return self.status in (ExperimentStatus.RUNNING, ExperimentStatus.PAUSED)


def fill(database: Database, sizes: Sizes) -> list[Made]:
    """Everything, oldest experiments first; then VACUUM ANALYZE, as autovacuum would do by and by."""
    with database.begin() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))  # no look-up of a foreign key a row
        dataset = _dataset(session, sizes.samples)
        made = [_plan(n, sizes) for n in range(sizes.experiments)]
        insert_rows(session, Experiment, [_experiment(one, dataset, n, sizes) for n, one in enumerate(made)])
        insert_rows(session, Round, [row for n, one in enumerate(made) for row in _rounds(one, n)])
        insert_rows(session, Event, [row for one in made for row in _events(one)])
        insert_rows(session, Artefact, [row for one in made for row in _artefacts(one)])
        insert_rows(session, Worker, [_worker(n, one) for n, one in enumerate(made) if _runs(one)])
        _picks(session, sizes.samples)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    return made


def _dataset(session: Session, samples: int) -> str:
    counts = {role: dict.fromkeys(CLASSES, samples // 9) for role in ("pool", "labelled", "test")}
    spec = {"name": DATASET, "image_size": 224, "sources": [{"kind": "folder", "path": "/data/histology"}]}
    row = Dataset(name=DATASET, spec=spec, classes=CLASSES, counts=counts, status=DatasetStatus.READY)
    row.report, row.location, row.created_at = {"read": samples, "packed": samples, "skipped": []}, "datasets/x", 1.0
    session.add(row)
    session.flush()
    session.execute(
        text("""
            INSERT INTO sample (dataset_id, idx, key, role, label, group_key)
            SELECT :dataset, i, format('%s/slide-%s/%s.png', label, i / 500, i),
                   CASE WHEN i % 100 < 90 THEN 'pool' WHEN i % 100 < 92 THEN 'labelled' ELSE 'test' END,
                   label, format('slide-%s', i / 500)
            FROM (SELECT i, (CAST(:classes AS text[]))[1 + i % 9] AS label
                  FROM generate_series(0, :samples - 1) AS i) AS numbered
        """),
        {"dataset": row.id, "classes": CLASSES, "samples": samples},
    )
    return row.id


def _plan(n: int, sizes: Sizes) -> Made:
    made_at = time.time_ns() // 1000 - (sizes.experiments - n) * 60_000_000
    budget = next(budget for every, budget in BUDGETS if n % every == 0)
    budget = min(budget, max(2, sizes.samples // (2 * sizes.rounds)))
    if n % 20 == 1:
        status = ExperimentStatus.RUNNING
    elif n % 40 == 2:
        status = ExperimentStatus.PAUSED
    else:
        status = (ExperimentStatus.COMPLETED, ExperimentStatus.FAILED)[n % 50 == 3]
    open_now = status in (ExperimentStatus.RUNNING, ExperimentStatus.PAUSED)
    rounds = max(1, sizes.rounds // 2) if open_now else sizes.rounds
    return Made(f"{made_at:014x}{secrets.token_hex(5)}", status, budget, rounds)


def _runs(one: Made) -> bool:
    return one.status is ExperimentStatus.RUNNING


def _experiment(one: Made, dataset: str, n: int, sizes: Sizes) -> dict[str, Any]:
    arm = ARMS[n % len(ARMS)]
    fields = {"name": f"{arm}-{n:04d}", "dataset": DATASET, "arm": arm, "seed": n, "positive_class": "TUM"}
    spec = ExperimentSpec.model_validate({**fields, "budget": one.budget, "rounds": sizes.rounds})
    now = time.time()
    return {
        "id": one.id,
        "name": spec.name,
        "dataset_id": dataset,
        "status": one.status,
        "spec": spec.model_dump_json(),
        "events": sum(1 for _ in _events(one)),
        "error": None,
        "created_at": now,
        "ended_at": None if one.is_open else now,
    }


def _rounds(one: Made, n: int) -> Iterator[dict[str, Any]]:
    now = time.time()
    for number in range(one.rounds):
        open_now = one.is_open and number == one.rounds - 1
        runs = open_now and _runs(one)
        waits = RoundStatus.TRAINING if runs else RoundStatus.QUEUED
        yield {
            "id": f"{one.id[:14]}{number:03x}{secrets.token_hex(3)}x",
            "experiment_id": one.id,
            "number": number,
            "status": waits if open_now else RoundStatus.DONE,
            "samples": one.budget * (number + 1),
            "visits": 0 if open_now else 100 * one.budget * (number + 1),
            "seconds": json.dumps({} if open_now else {"load": 0.4, "train": 131.5, "embed": 9.1, "pick": 0.7}),
            "metrics": json.dumps({} if open_now else _scores(n + number)),
            "report": json.dumps({} if open_now else _report(number)),
            "created_at": now,
            "ended_at": None if open_now else now,
            "attempt": int(not open_now or runs),
            "losses": 0,
            "failures": 0,
            "owner": f"trainer-{n}" if runs else None,
            "lease_until": now + FAR if runs else None,
            "heartbeat_at": now,
            "waiting_since": now,
            "not_before": 0.0,
            "rung_at": now,
            "progress": json.dumps({"phase": "train", "epoch": 1, "epochs": 100} if runs else {}),
            "error": None,
        }


def _scores(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    names = ["f1", "precision", "recall", "auroc", "average_precision", "macro_f1", "balanced_accuracy", "accuracy"]
    matrix = random.integers(0, 1_000, (9, 9)).tolist()
    return {**dict.fromkeys(names, random.random()), "confusion_matrix": matrix, "classes": CLASSES, "n": 80_000}


def _report(number: int) -> dict[str, Any]:
    floors = {"floors": {"colour_histogram": _scores(0), "untrained_encoder": _scores(1)}} if number == 0 else {}
    losses = [round(5 / (epoch + 1), 6) for epoch in range(100)]
    return {"losses": losses, "images_per_second": 1450.0, "device": "cuda", "notes": ["bf16"], **floors}


def _events(one: Made) -> Iterator[dict[str, Any]]:
    told = [("experiment.created", {}), ("experiment.running", {})]
    for number in range(one.rounds):
        told += [("round.queued", {"round": number}), ("round.training", {"round": number, "attempt": 1})]
        if not (one.is_open and number == one.rounds - 1):
            told += [
                ("round.trained", {"round": number, "metrics": _scores(number)}),
                ("round.done", {"round": number}),
            ]
    for seq, (kind, data) in enumerate(told, 1):
        yield {"experiment_id": one.id, "seq": seq, "type": kind, "data": json.dumps(data), "at": time.time()}


def _artefacts(one: Made) -> Iterator[dict[str, Any]]:
    for number in range(one.rounds - one.is_open):
        for kind in KINDS:
            yield {
                "key": f"experiments/{one.id}/rounds/{number:04d}/a1/{kind.replace('/', '-')}.npy",
                "experiment_id": one.id,
                "round": number,
                "attempt": 1,
                "kind": kind,
                "sha256": "0" * 64,
                "size": 20_480_128,
                "manifest": '{"shape": [10000, 512], "dtype": "float32", "winnow": "0.1.0"}',
                "created_at": time.time(),
            }


def _worker(n: int, one: Made) -> dict[str, Any]:
    devices = json.dumps([{"name": "NVIDIA H100 80GB HBM3", "uuid": f"GPU-{n:08d}", "memory_gib": 79.6}])
    at = {"started_at": time.time(), "seen_at": time.time() + FAR}
    return {"id": f"trainer-{n}", "host": f"gpu-{n % 8}", "pid": n, "devices": devices, "version": "0.1.0"} | {
        "busy_with": one.id,
        **at,
    }


def _picks(session: Session, samples: int) -> None:
    """Distinct samples for each experiment: multiples of a prime, modulo how many there are."""
    prime = next(p for p in (7_919, 7_907) if samples % p)
    session.execute(
        text("""
            INSERT INTO pick (experiment_id, sample_idx, round, rank, score)
            SELECT id, (k::bigint * :prime + n * 104729) % :samples, k / budget, k % budget, random()
            FROM (SELECT id, row_number() OVER (ORDER BY id) AS n, CAST(spec ->> 'budget' AS int) AS budget,
                         (SELECT count(*) FROM round WHERE round.experiment_id = experiment.id)::int AS rounds
                  FROM experiment) AS planned,
                 generate_series(0, budget * rounds - 1) AS k
            ORDER BY id, k
        """),
        {"prime": prime, "samples": samples},
    )
