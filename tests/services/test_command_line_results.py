"""`winnow compare` and `winnow export` against a real coordinator."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from services.conftest import Winnow, add_dataset, experiment_body, move

from winnow.domain import ExperimentStatus
from winnow.store import artefacts
from winnow_cli.commands.results import write
from winnow_cli.report import floors, grouped, rows
from winnow_coordinator.context import Coordinator


def colours_of(picture: Path) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] > 1000
    return set(map(tuple, pixels.reshape(-1, 3).tolist()))


def test_compare_draws_and_notes_what_differs(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    ids = [run_through(name=f"e{seed}", arm="k_center", seed=seed) for seed in (1, 2)]
    ids.append(run_through(name="other", budget=6, arm="random"))
    said = winnow("compare", *ids, "--out", "results")
    assert "k_center, 2 seeds" in said.out
    assert "budget differs: 5 (e1, e2), 6 (other)" in said.err
    floors = [line.split() for line in said.out.splitlines() if line.startswith("floor:")]
    assert floors == [["floor:", "colour", "histogram", "0.250"], ["floor:", "untrained", "encoder", "0.400"]]
    report = json.loads(Path("results/report.json").read_text())
    first = report["experiments"][0]
    assert (first["arm"], first["seed"]) == ("k_center", 1)
    (row,) = first["rounds"]
    assert row["samples"] == 5 and row["visits"] == 100
    assert row["seconds"] == {"train": 2.0, "embed": 1.0}
    assert row["total_seconds"] == 3.0
    assert {(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)} <= colours_of(Path("results/compare.png")), "both arms are drawn"
    assert winnow("compare", *ids, "--json").json["experiments"] == report["experiments"]


def test_compare_averages_seeds_of_one_spec_alone(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    """Equal samples and equal visits, both random and both of seed 0, are two questions, not two seeds."""
    add_dataset(coordinator)
    ids = [run_through(name="samples", arm="random"), run_through(name="visits", arm="random", visits=9000)]
    said = winnow("compare", *ids)
    assert "mean ± sd" not in said.out
    report = json.loads(Path("winnow-compare/report.json").read_text())
    labels = [(group.label, group.first) for group in grouped(report["experiments"])]
    assert labels == [("random, visits none", True), ("random, visits 9000", False)]
    drawn = colours_of(Path("winnow-compare/compare.png"))
    assert {(0x00, 0x9E, 0x73), (0x56, 0xB4, 0xE9)} <= drawn, "each has a curve of its own"


def test_compare_tells_runs_of_one_name_apart(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    ids = [run_through(name="e", budget=budget) for budget in (5, 6)]
    said = winnow("compare", *ids)
    assert f"budget differs: 5 (e ({ids[0]})), 6 (e ({ids[1]}))" in said.err
    assert all(f"e ({id})" in said.out for id in ids)


def test_compare_of_many_names_few_and_none_that_came_to_nothing(
    coordinator: Coordinator, url: str, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    assert "nothing to compare" in winnow("compare").err and not Path("winnow-compare").exists()
    add_dataset(coordinator)
    for number in range(5):
        run_through(name=f"e{number}", seed=number)
    run_through(name="other", budget=6)
    Path("spec.json").write_text(json.dumps(experiment_body(name="never")))
    (never,) = winnow("run", "spec.json", "--detach", "--json").json
    said = winnow("compare")
    assert "budget differs: 5 (e0, e1, e2 and 3 more), 6 (other)" in said.err
    assert "never is created: not evaluated yet" in said.err
    move(coordinator, never["id"], ExperimentStatus.CANCELLING, ExperimentStatus.CANCELLED)
    said = winnow("compare")
    assert "never is" not in said.err and "as cancelled before anything was evaluated: 1" in said.err
    assert "budget differs: 5 (e0, e1, e2 and 2 more), 6 (other)" in said.err
    assert "nothing of it was evaluated" in winnow("compare", "never").err, "whoever names it sees it"


def test_compare_leaves_no_picture_of_others_beside_its_report(tmp_path: Path) -> None:
    (tmp_path / "compare.png").touch()
    assert write({"experiments": [{"rounds": []}]}, tmp_path) == [tmp_path / "report.json"]
    assert not (tmp_path / "compare.png").exists()


def test_an_experiment_that_is_named_twice_is_shown_once(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through()
    assert len(winnow("compare", id, id, "--json").json["experiments"]) == 1


def test_one_seed_run_twice_is_not_two_seeds(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    assert "entropy, 2 runs of 1 seed" in winnow("compare", *[run_through() for _ in range(2)]).out


def test_export_writes_what_was_picked_and_made(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through()
    written = winnow("export", id, "--to", "out", "--all", "--json").json
    assert all(Path(path).is_file() for path in written)
    with Path("out/selections.csv").open() as file:
        picked = list(csv.DictReader(file))
    assert [row["rank"] for row in picked] == list("01234")
    assert len(np.load("out/round-0000/candidates-index.npy")) == 12
    with Path("out/metrics.csv").open() as file:
        assert next(csv.DictReader(file))["f1"] == "0.5"


def test_export_says_which_encoders_are_gone(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through()
    assert "kept any more" not in winnow("export", id, "--to", "whole", "--all").err
    with coordinator.database.begin() as session:
        artefacts.drop(session, id, 0, stem="state")
    said = winnow("export", id, "--to", "out", "--all")
    assert said.code == 0 and "no encoder is kept any more of round 0" in said.err


def test_export_keeps_experiments_apart(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    first, second = run_through(), run_through()
    for id in (first, second, first):
        assert winnow("export", id).code == 0
        assert json.loads(Path(f"e-{id}/experiment.json").read_text())["id"] == id
    refused = winnow("export", second, "--to", f"e-{first}")
    assert refused.code == 1
    assert f"holds experiment {first}; name another folder" in refused.err


def test_an_export_that_fails_is_told_from_a_whole_one_and_completed(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id, other = run_through(), run_through()
    with coordinator.database.read() as session:
        place = coordinator.artefacts.local(artefacts.of_round(session, id, 0)["state/weights"].key)
    whole = place.read_bytes()
    for _ in range(2):  # the second one over a folder that was whole
        place.write_bytes(b"rotten")
        broken = winnow("export", id, "--to", "out")
        assert broken.code == 1 and "out is incomplete; the same command again completes it" in broken.err
        assert {one.name for one in Path("out").glob("*.json")} == set(), "what marks it as whole"
        assert f"holds experiment {id}; name another" in winnow("export", other, "--to", "out").err
        place.write_bytes(whole)
        written = {Path(one) for one in winnow("export", id, "--to", "out", "--json").json}
        assert written == {one for one in Path("out").rglob("*") if one.is_file()}
        assert json.loads(Path("out/experiment.json").read_text())["id"] == id


def test_an_export_to_a_full_disk_ends_in_one_line(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through()
    Path("out").mkdir()
    Path(f"out/incomplete-{id}").touch()
    Path("out/metrics.csv").symlink_to("/dev/full")
    said = winnow("export", id, "--to", "out")
    assert said.code == 1 and said.err.endswith("\nerror: out: No space left on device\n")
    assert said.err.startswith("note: out is incomplete; the same command again completes it\n")


@pytest.mark.parametrize("there", ["metrics.csv", "experiment.json"])
def test_export_writes_over_nothing_of_others(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str], there: str
) -> None:
    add_dataset(coordinator)
    id = run_through()
    Path("out").mkdir()
    Path("out", there).write_text("mine")
    said = winnow("export", id, "--to", "out")
    assert (said.code, said.err) == (1, "error: --to: out holds files that are of no export; name another folder\n")
    assert [(one.name, one.read_text()) for one in Path("out").iterdir()] == [(there, "mine")]


def test_the_benchmarks_longer_proxy_is_told_from_the_others_on_their_floor() -> None:
    def experiment(arm: str) -> dict[str, Any]:
        spec = {"seed": 0, "proxy": {"epochs": 40, "full_epochs": 200}}
        return {"arm": arm, "dataset": "d", "spec": spec, "floors": {"untrained_encoder": {"f1": 0.5}}}

    both = [label for _, label, _, _ in floors([experiment("random"), experiment("full")])]
    assert both == ["floor: untrained encoder, 40 proxy epochs", "floor: untrained encoder, 200 proxy epochs"]
    assert [label for _, label, _, _ in floors([experiment("random")])] == ["floor: untrained encoder"]


def test_floors_say_whose_seed_they_are_where_seeds_have_others() -> None:
    def experiment(arm: str, seed: int, colours: float) -> dict[str, Any]:
        found = {"colour_histogram": {"f1": colours}, "untrained_encoder": {"f1": 0.5}}
        spec = {"seed": seed, "proxy": {"epochs": 40, "full_epochs": 40}}
        made = {
            "id": f"{arm}-{seed}",
            "name": "e",
            "arm": arm,
            "dataset": "d",
            "status": "completed",
            "error": None,
            "rounds_total": 1,
        }
        return made | {"seed": seed, "spec": spec, "floors": found, "rounds": []}

    of_four = [experiment(arm, seed, 0.2 + seed / 10) for arm in ("random", "entropy") for seed in (0, 1)]
    shown = [row[0] for row in rows(of_four) if "floor" in row[0]]
    labels = ("colour histogram, seed 0", "colour histogram, seed 1", "untrained encoder")
    assert shown == [f"[dim]floor: {label}[/dim]" for label in labels]
