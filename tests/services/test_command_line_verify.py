"""`winnow verify`: every arm is replayed, and each kind of damage is found and named."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import free_port
from services.conftest import Driver, Said, Winnow, add_dataset, experiment_body, serving
from sqlalchemy import delete, select, update

from winnow.client import Client
from winnow.domain import Arm
from winnow.settings import Settings
from winnow.store import artefacts
from winnow.store.tables import Artefact, Pick, Round, Sample
from winnow_coordinator.context import Coordinator
from winnow_coordinator.housekeeping import Housekeeper
from winnow_coordinator.picking import Picker
from winnow_sampler.app import make_app as make_sampler

Begin = Callable[..., str]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return Settings(**{**settings.model_dump(), "sampler_url": f"http://127.0.0.1:{free_port()}"})


@pytest.fixture
def run(coordinator: Coordinator, settings: Settings, url: str, driver: Driver) -> Iterator[Begin]:
    """Runs an experiment of three rounds to its end, with a real sampler; its id."""
    add_dataset(coordinator)
    picker = Picker(coordinator, "steward")
    with serving(make_sampler(settings), port=int(settings.sampler_url.rpartition(":")[2])), Client(url) as client:

        def through(**changes: Any) -> str:
            id = client.create_experiment(experiment_body(**changes))["id"]
            while client.experiment(id)["status"] != "completed":
                driver.train()
                assert picker.pick_next()
            return id

        yield through
    picker.close()


def verified(winnow: Winnow, id: str, *options: str) -> dict[tuple[int, str], str]:
    """Reasons by round and what they are about; the exit code and the text say the same."""
    said = winnow("verify", id, "--json", *options)
    assert "no file was compared" not in said.err
    found = {(one["round"], one["what"]): one["reason"] for row in said.json["rounds"] for one in row["problems"]}
    assert (said.code, said.json["ok"]) == ((1, False) if found else (0, True))
    if found:
        text: Said = winnow("verify", id, *options)
        assert text.code == 1 and all(reason in text.out for reason in found.values())
    return found


@pytest.mark.parametrize(
    "changes",
    [
        *({"arm": arm.value} for arm in Arm if arm is not Arm.FULL),
        {"arm": "k_center", "centers": "none"},
        {"arm": "entropy", "direction": "low", "initial": "stratum", "candidates": "all"},
        {"arm": "random", "random_from": "pool", "seed": 7},
        {"arm": "full", "full_evaluate_every": 1, "simclr": {"epochs": 2}},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values() if isinstance(value, str)),
)
def test_an_untouched_experiment_of_any_arm_is_replayed(run: Begin, winnow: Winnow, changes: dict[str, Any]) -> None:
    id = run(**changes)
    assert not verified(winnow, id)
    rows = winnow("verify", id, "--json").json["rounds"]
    expected = "the full arm picks nothing" if changes["arm"] == "full" else "same"
    assert {row["replay"] for row in rows} == {expected}
    assert all(row["files"] > 5 and row["bytes"] > 0 for row in rows)


def test_what_housekeeping_takes_is_not_missed(run: Begin, winnow: Winnow, coordinator: Coordinator) -> None:
    id = run(rounds=4)
    Housekeeper(coordinator).walk()
    assert not verified(winnow, id)


def path_of(coordinator: Coordinator, id: str, number: int, kind: str) -> Path:
    with coordinator.database.read() as session:
        return coordinator.artefacts.local(artefacts.of_round(session, id, number)[kind].key)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_one_that_never_trained_is_not_called_whole(coordinator: Coordinator, url: str, winnow: Winnow) -> None:
    add_dataset(coordinator)
    with Client(url) as client:
        id = client.create_experiment(experiment_body())["id"]
    assert "no file was compared" in winnow("verify", id).err


def test_a_flipped_byte_is_named(run: Begin, winnow: Winnow, coordinator: Coordinator) -> None:
    id = run(arm="k_center")
    flip(path_of(coordinator, id, 1, "state/weights"))
    found = verified(winnow, id)
    assert list(found) == [(1, "state/weights")] and "its bytes have sha256" in found[1, "state/weights"]
    flip(path_of(coordinator, id, 0, "candidates/embeddings"))
    found = verified(winnow, id)
    assert set(found) == {(1, "state/weights"), (0, "candidates/embeddings"), (1, "candidates/embeddings")}
    assert "so the picks cannot be replayed" in found[1, "candidates/embeddings"]
    assert not verified(winnow, id, "--round", "2"), "the others alone are damaged"


def test_a_missing_file_is_named(run: Begin, winnow: Winnow, coordinator: Coordinator) -> None:
    id = run()
    path = path_of(coordinator, id, 1, "candidates/probabilities")
    shutil.move(path, path.with_name("elsewhere"))
    found = verified(winnow, id)
    assert set(found) == {(1, "candidates/probabilities"), (2, "candidates/probabilities")}
    assert found[1, "candidates/probabilities"].endswith("candidates-probabilities.npy is not there")


def test_a_missing_manifest_is_named(run: Begin, winnow: Winnow, coordinator: Coordinator) -> None:
    id = run()
    with coordinator.database.begin() as session:
        session.execute(delete(Artefact).where(Artefact.round == 0, Artefact.kind == "candidates/index"))
        session.execute(delete(Artefact).where(Artefact.round == 2, Artefact.kind == "state/weights"))
    found = verified(winnow, id)
    assert "no manifest names it" in found[1, "candidates/index"]
    assert "the encoder of the newest evaluated round" in found[2, "state/weights"]


def test_a_pick_of_another_candidate_is_named(run: Begin, winnow: Winnow, coordinator: Coordinator) -> None:
    id = run(candidates="all", arm="k_center")
    with coordinator.database.begin() as session:
        taken = set(session.scalars(select(Pick.sample_idx)))
        other = next(idx for idx in range(40) if idx not in taken)
        session.execute(update(Pick).where(Pick.round == 1, Pick.rank == 2).values(sample_idx=other))
    found = verified(winnow, id)
    assert f"rank 2: sample {other} is stored, the replay picks" in found[1, "picks"]
    assert (2, "selected/index") in found and (2, "candidates/index") in found, (
        "later rounds were drawn around the other"
    )


def test_swapped_ranks_are_named(run: Begin, winnow: Winnow, coordinator: Coordinator) -> None:
    id = run(arm="entropy")
    with coordinator.database.begin() as session:
        for rank, to in ((1, 100), (3, 1), (100, 3)):
            session.execute(update(Pick).where(Pick.round == 1, Pick.rank == rank).values(rank=to))
    found = verified(winnow, id)
    assert set(found) == {(1, "picks")} and found[1, "picks"].startswith("rank 1: sample")


def test_a_gap_in_the_ranks_is_named(run: Begin, winnow: Winnow, coordinator: Coordinator) -> None:
    id = run()
    with coordinator.database.begin() as session:
        session.execute(delete(Pick).where(Pick.round == 2, Pick.rank == 1))
    found = winnow("verify", id, "--json").json["rounds"][2]["problems"]
    reasons = [one["reason"] for one in found]
    assert reasons[0] == "ranks are not 0 to 3 without gaps: rank 1 is not there"
    assert reasons[1] == "14 samples are selected so far, the round says 15"
    assert reasons[2].startswith("rank 1: sample")


def test_a_changed_score_and_a_changed_start_are_named(run: Begin, winnow: Winnow, coordinator: Coordinator) -> None:
    id = run()
    with coordinator.database.begin() as session:
        session.execute(update(Pick).where(Pick.round == 1, Pick.rank == 4).values(score=Pick.score + 0.1))
    found = verified(winnow, id)
    assert set(found) == {(1, "picks")} and found[1, "picks"].startswith("rank 4: score")
    with coordinator.database.begin() as session:
        taken = set(session.scalars(select(Pick.sample_idx)))
        other = next(idx for idx in range(40) if idx not in taken)
        session.execute(update(Pick).where(Pick.round == 0, Pick.rank == 0).values(sample_idx=other))
    assert (0, "picks") in verified(winnow, id, "--round", "0")


def test_a_pick_that_is_no_longer_of_the_pool_is_named(run: Begin, winnow: Winnow, coordinator: Coordinator) -> None:
    id = run(arm="random", random_from="pool")
    with coordinator.database.begin() as session:
        idx = session.scalar(select(Pick.sample_idx).where(Pick.round == 1, Pick.rank == 0))
        session.execute(update(Sample).where(Sample.idx == idx).values(role="test"))
    reasons = [one["reason"] for one in winnow("verify", id, "--json", "--round", "1").json["rounds"][0]["problems"]]
    assert f"rank 0: sample {idx} is a test sample, not of the pool" in reasons


def test_a_round_that_runs_is_no_damage(
    run: Begin, winnow: Winnow, coordinator: Coordinator, driver: Driver, url: str
) -> None:
    with Client(url) as client:
        id = client.create_experiment(experiment_body())["id"]
        driver.claim()
        assert not verified(winnow, id)
        assert winnow("verify", id, "--round", "1").err.startswith(f"error: no round '{id}/1'")
    with coordinator.database.read() as session:
        assert session.scalar(select(Round.status).where(Round.experiment_id == id)) == "training"
