"""Every command against a real coordinator, as `main` is called from a shell."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from conftest import free_port
from PIL import Image
from services.conftest import Driver, add_dataset, experiment_body, serving

from winnow.domain import ExperimentStatus
from winnow.store import experiments
from winnow_cli.main import main
from winnow_cli.stack import Stack
from winnow_coordinator.app import make_app
from winnow_coordinator.context import Coordinator

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
def run_through(coordinator: Coordinator, url: str, winnow: Winnow) -> Callable[..., str]:
    """An experiment of one evaluated round that then ends; its id."""

    def run(**changes: Any) -> str:
        Path("spec.json").write_text(json.dumps(experiment_body(rounds=1, **changes)))
        (view,) = winnow("run", "spec.json", "--detach", "--json").json
        Driver(coordinator).train()
        with coordinator.database.begin() as session:
            experiments.transition(session, view["id"], ExperimentStatus.COMPLETED)
        return view["id"]

    return run


def test_a_dataset_is_added_from_a_folder_and_shown(url: str, winnow: Winnow, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "data" / "tissue" / label).mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(tmp_path / "data" / "tissue" / label / "1.png")
    folder = str(tmp_path / "data" / "tissue")
    added = winnow("dataset", "add", "tissue", folder, "--size", "32", "--labelled", "1", "--no-wait", "--json").json
    assert added["status"] == "queued"
    assert added["spec"]["sources"][0]["kind"] == "folder"
    assert added["spec"]["draws"][0]["count"] == 1
    assert [view["name"] for view in winnow("dataset", "list", "--json").json] == ["tissue"]
    assert "tissue: queued, 32 pixels" in winnow("dataset", "show", "tissue").out


def test_sources_are_what_they_look_like(url: str, winnow: Winnow, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "idc"
    folder.mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "1.png")
    (folder / "manifest.csv").write_text("path,split,label,patient\n1.png,test,a,p1\n")
    said = winnow("dataset", "add", "idc", str(folder), "synthetic:40", "--no-wait", "--json")
    manifest, drawn = said.json["spec"]["sources"]
    assert (manifest["kind"], manifest["columns"]) == ("manifest", {"role": "split", "group": "patient"})
    assert (drawn["kind"], drawn["synthetic"]["patches"]) == ("synthetic", 40)
    assert "role from column split, group from column patient" in said.err, "a guess is told"


def test_a_path_outside_the_roots_ends_in_one_line(url: str, winnow: Winnow, tmp_path: Path) -> None:
    said = winnow("dataset", "add", "x", str(tmp_path / "elsewhere"))
    assert said.code == 1
    assert said.err.startswith("error: ") and "outside the allowed data roots" in said.err
    assert winnow("dataset", "add", "x", str(tmp_path / "elsewhere"), "--json").json["code"] == "path-forbidden"


def test_run_begins_one_experiment_for_each_arm_and_seed(coordinator: Coordinator, url: str, winnow: Winnow) -> None:
    add_dataset(coordinator)
    spec = experiment_body(name="small", arms=["random"], seeds=[1, 2])
    Path("spec.yaml").write_text(json.dumps(spec))
    begun = winnow("run", "spec.yaml", "--arm", "entropy", "--arm", "k_center", "--detach", "--json").json
    assert [view["name"] for view in begun] == [
        f"small-{arm}-{seed}" for arm in ("entropy", "k_center") for seed in (1, 2)
    ]
    listed = winnow("list")
    assert all(view["id"] in listed.out for view in begun)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{name: e, dataset: d, positive_class: a, budget: 0}", "budget: Input should be greater than or equal to 1"),
        ("{name: e, dataset: d, positive_class: a, bugdet: 5}", "bugdet: Extra inputs are not permitted"),
        ("{name: e, dataset: d, preset: papers}", "preset: Input should be 'paper' or 'authors-code'"),
        ("{name: e, dataset: d, positive_class: a, seeds: 3}", "seeds: Input should be a valid list"),
        ("[1, 2]", "holds no mapping"),
        ("{name: ", "is neither YAML nor JSON"),
        ("{name: e, dataset: nowhere, positive_class: a}", "no dataset 'nowhere'"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_by_name(url: str, winnow: Winnow, text: str, reason: str) -> None:
    Path("spec.yaml").write_text(text)
    said = winnow("run", "spec.yaml")
    assert said.code == 1
    assert reason in said.err
    assert not said.out


def test_orders_and_their_refusal(coordinator: Coordinator, url: str, winnow: Winnow) -> None:
    add_dataset(coordinator)
    Path("spec.json").write_text(json.dumps(experiment_body()))
    (view,) = winnow("run", "spec.json", "--detach", "--json").json
    assert winnow("pause", view["id"], "--json").json["status"] == "pausing"
    assert "e: running" in winnow("resume", view["id"]).out
    assert "e: cancelling" in winnow("cancel", view["id"]).out
    refused = winnow("pause", view["id"], "--json")
    assert (refused.code, refused.json["code"], refused.json["current"]) == (1, "wrong-state", "cancelling")


def test_watch_ends_with_the_experiment(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through()
    lines = [json.loads(line) for line in winnow("watch", id, "--json").out.splitlines()]
    assert {"round.trained", "experiment.completed"} <= {line["type"] for line in lines}
    said = winnow("watch", id)
    assert said.code == 0
    assert "e: completed" in said.out and "0.500" in said.out


def test_compare_draws_and_notes_what_differs(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    ids = [run_through(name=f"e{seed}", arm="k_center", seed=seed) for seed in (1, 2)]
    ids.append(run_through(name="other", budget=6, arm="random"))
    said = winnow("compare", *ids, "--out", "results")
    assert "k_center, 2 seeds" in said.out
    assert "budget differs: e1 5, e2 5, other 6" in said.err
    report = json.loads(Path("results/report.json").read_text())
    first = report["experiments"][0]
    assert (first["arm"], first["seed"]) == ("k_center", 1)
    (row,) = first["rounds"]
    assert row["samples"] == 5 and row["visits"] == 100
    assert row["seconds"] == {"train": 2.0, "embed": 1.0}
    assert row["total_seconds"] == 3.0
    picture = np.asarray(Image.open("results/compare.png").convert("RGB"))
    assert picture.shape[1] > 1000
    colours = {tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in ("#0072B2", "#009E73")}
    drawn = set(map(tuple, picture.reshape(-1, 3).tolist()))
    assert colours <= drawn, "both arms are drawn"
    assert winnow("compare", *ids, "--json").json["experiments"] == report["experiments"]


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


def test_keys_and_workers(url: str, winnow: Winnow) -> None:
    made = winnow("key", "create", "notebook", "--scope", "run", "--json").json
    assert made["key"] and made["scopes"] == ["run"]
    assert "valid" in winnow("key", "list").out
    winnow("key", "revoke", made["id"])
    assert "valid" not in winnow("key", "list").out
    assert winnow("workers", "--json").json == []


def test_doctor_says_what_to_do(url: str, winnow: Winnow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("WINNOW_DATA_ROOTS", str(tmp_path / "gone"))
    monkeypatch.setenv("WINNOW_BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    said = winnow("doctor", "--json")
    found = {finding["what"]: finding for finding in said.json}
    assert said.code == 1
    assert found["torch"]["state"] == found["database"]["state"] == found["coordinator"]["state"] == "ok"
    assert found["data root"]["state"] == found["broker"]["state"] == found["trainers"]["state"] == "fail"
    assert all(finding["advice"] for finding in said.json if finding["state"] == "fail")
    monkeypatch.setenv("WINNOW_LEASE_SECONDS", "1")
    assert "renew_seconds" in winnow("doctor").out


def test_nobody_there(winnow: Winnow) -> None:
    said = winnow("list", "--url", f"http://127.0.0.1:{free_port()}")
    assert said.code == 1 and "winnow up" in said.err


def test_a_stack_refuses_what_it_cannot_serve(winnow: Winnow, tmp_path: Path, url: str) -> None:
    taken = url.rpartition(":")[2]
    assert f"{taken} is taken" in winnow("up", "--port", taken, "--state-dir", str(tmp_path / "s")).err
    missing = str(tmp_path / "missing")
    assert f"{missing} is no folder" in winnow("up", "--data-root", missing, "--state-dir", str(tmp_path / "s")).err
    assert not Stack(tmp_path / "s", [], None, print).record.exists()


def test_without_its_extras_the_command_line_says_so() -> None:
    code = "import sys; sys.modules['typer'] = None; import winnow_cli.main"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.strip() == "winnow's command line needs typer: install winnow with its extras; make setup does"
