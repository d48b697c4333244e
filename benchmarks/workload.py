"""Tiny experiments, wave after wave of the same specs, and what each wave must end as."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from cluster import Cluster
from processes import wait_until
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from verdict import Breach, Outcome, Record, compare, judge, read

from winnow.store import Database
from winnow.store.tables import Dataset, Experiment

SPECS: dict[str, dict[str, Any]] = {
    "entropy": {"simclr": {"optimizer": "adam"}},
    "k_center": {},
    "random": {},
    "full": {"full_evaluate_every": 4},
}
"""One experiment of each. Adam's moments are twice the weights: one arm with them is enough."""
FINAL = ("completed", "failed", "cancelled")


class Workload:
    """Waves of experiments on one deployment. The first one is the measure of the others.

    Args:
        store: the directory of the artefact store.
        epochs: of each round. size: pixels a side. budget: picks each round. arms: of each wave.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Path,
        *,
        epochs: int,
        size: int,
        budget: int,
        rounds: int,
        arms: Sequence[str] = tuple(SPECS),
    ) -> None:
        self._cluster, self._store, self._arms = cluster, store, arms
        self._terms = {"epochs": epochs, "size": size, "budget": budget, "rounds": rounds}
        self.database = Database(cluster.database_url)
        self.undisturbed: dict[str, Outcome] = {}
        self.records: list[Record] = []
        self.breaches: list[Breach] = []
        self.waves = self.lost = 0

    def run_wave(self, patience: float, stopped: Callable[[], bool] = lambda: False) -> None:
        """Ingest, train all arms, judge, compare, and let the bytes go.

        An experiment that has not ended `patience` seconds after `stopped` said so is lost.
        """
        name = f"wave-{self.waves}"
        self.waves += 1
        self._ingest(name, patience, stopped)
        ids = {arm: self._create(name, arm) for arm in self._arms}
        self._wait(lambda: self._ended(list(ids.values())), patience, stopped)
        records = read(self.database, list(ids.values()))
        self.lost += len(ids) - sum(record.experiment["status"] == "completed" for record in records)
        for record in records:
            self._judge(record)
        self.records += records

    def close(self) -> None:
        self.database.close()

    def _judge(self, record: Record) -> None:
        arm = record.experiment["spec"]["arm"]
        found = judge(record, self._store)
        if arm in self.undisturbed:
            found += compare(record, self.undisturbed[arm])
        else:
            self.undisturbed[arm] = Outcome.of(record)
        self.breaches += found
        if not found:  # what is in order is not needed any more, and the store is small
            for row in record.artefacts:
                (self._store / row["key"]).unlink(missing_ok=True)

    def _ingest(self, name: str, patience: float, stopped: Callable[[], bool]) -> None:
        source = {"kind": "synthetic", "synthetic": {"patches": 240, "slides": 6, "test_slides": 2}}
        size, draws = self._terms["size"], [{"count": 40, "by": "stratum"}]
        self._post("/datasets", {"name": name, "image_size": size, "sources": [source], "draws": draws})
        self._wait(lambda: self._dataset_ended(name), patience, stopped)

    def _create(self, wave: str, arm: str) -> str:
        terms = self._terms
        own = SPECS[arm]
        simclr = {
            "epochs": terms["epochs"],
            "batch_size": 16,
            "learning_rate": 1e-3,
            "optimizer": "sgd",
            "momentum": 0.0,
            "checkpoint_every": 1,
            **own.get("simclr", {}),
        }
        body = {
            "name": f"{wave}-{arm}",
            "dataset": wave,
            "arm": arm,
            "positive_class": "TUM",
            "budget": terms["budget"],
            "rounds": terms["rounds"],
            "candidates": 60,
            "floors": False,
            "proxy": {"epochs": 5, "full_epochs": 10, "full_evaluate_every": 5},
            **own,
            "simclr": simclr,
        }
        return self._post("/experiments", body).json()["id"]

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        headers = {"Idempotency-Key": body["name"]}
        answer = self._cluster.http.post(path, json=body, headers=headers)
        if answer.is_error:
            self.breaches.append(Breach("api", path, f"{answer.status_code}: {answer.text}"))
            answer.raise_for_status()
        return answer

    def _ended(self, ids: list[str]) -> bool:
        return set(self._column(Experiment.status, Experiment.id.in_(ids))) <= set(FINAL)

    def _dataset_ended(self, name: str) -> bool:
        return set(self._column(Dataset.status, Dataset.name == name)) <= {"ready", "failed"}

    def _column(self, column: Any, condition: Any) -> list[Any]:
        """["?"] where the database does not answer."""
        try:
            with self.database.read() as session:
                return list(session.scalars(select(column).where(condition)))
        except SQLAlchemyError:
            return ["?"]

    @staticmethod
    def _wait(ended: Callable[[], bool], patience: float, stopped: Callable[[], bool]) -> None:
        """Until it ended; once the faults are over, for `patience` seconds more."""
        since: list[float] = []

        def is_over() -> bool:
            if stopped() and not since:
                since.append(time.monotonic())
            return ended() or bool(since and time.monotonic() - since[0] > patience)

        wait_until(is_over, 24 * 3600, "a wave to end")
