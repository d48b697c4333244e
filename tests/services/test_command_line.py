"""Every command against a real coordinator, as `main` is called from a shell."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import wait_until
from processes import free_port
from services.conftest import Winnow, add_dataset, experiment_body, serving

from winnow.client import Client
from winnow.domain import ExperimentStatus
from winnow.settings import Settings
from winnow.store import claims, experiments, workers
from winnow_cli.output import say
from winnow_cli.service import Service
from winnow_cli.stack import Stack, claim_port
from winnow_coordinator.context import Coordinator
from winnow_sampler.app import make_app


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
        ("{name: e, dataset: d, positive_class: a, bugdet: 5}", "bugdet: is no key here; did you mean budget?"),
        (
            "{name: e, dataset: d, positive_class: a, simclr: {epoch: 5}}",
            "simclr.epoch: is no key here; did you mean epochs?",
        ),
        (
            "{name: e, dataset: d, positive_class: a, epochs: 5}",
            "epochs: is no key here; it belongs under simclr or under proxy",
        ),
        (
            "{name: e, dataset: d, positive_class: a, simclr: {budget: 5}}",
            "simclr.budget: is no key here; it belongs at",
        ),
        ("{name: e, dataset: d, positive_class: a, learning_rat: 1}", "did you mean simclr.learning_rate?"),
        ("{name: e, dataset: d, positive_class: a, colour: red}", "docs/spec.md lists the keys"),
        ("seed: 1\nname: e\nseed: 2", "has the key seed twice"),
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


def test_an_order_reaches_all_that_are_named_though_one_refuses(
    coordinator: Coordinator, url: str, winnow: Winnow
) -> None:
    add_dataset(coordinator)
    Path("spec.json").write_text(json.dumps(experiment_body(seeds=[0, 1])))
    first, second = (view["id"] for view in winnow("run", "spec.json", "--detach", "--json").json)
    said = winnow("pause", first, first, "nobody", second)
    assert (said.code, said.out.count("pausing")) == (1, 2) and "no experiment 'nobody'" in said.err
    lines = [json.loads(line) for line in winnow("cancel", "nobody", first, second, "--json").out.splitlines()]
    assert [line.get("code") or line["status"] for line in lines] == ["not-found", "cancelling", "cancelling"]


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


def test_where_one_arm_is_refused_none_begins(coordinator: Coordinator, url: str, winnow: Winnow) -> None:
    add_dataset(coordinator)
    Path("spec.json").write_text(json.dumps(experiment_body(arms=["full", "entropy", "random"], rounds=99)))
    said = winnow("run", "spec.json")
    assert said.code == 1 and "rounds: 99 rounds of 5 need 495 pool samples" in said.err
    assert said.err.endswith("At most 8 rounds fit\n")
    assert "e-entropy is refused; cancelled, as they had begun: e-full\n" in said.err
    assert [(view["name"], view["status"]) for view in winnow("list", "--json").json] == [("e-full", "cancelling")]
    Path("spec.json").write_text(json.dumps(experiment_body(budget=30, candidates=30)))
    assert winnow("run", "spec.json").err.endswith("tissue has 40. One round fits\n")


def test_an_address_that_is_none_is_refused(winnow: Winnow) -> None:
    assert "--url: needs an address like http://127.0.0.1:8000, got 'foo'" in winnow("list", "--url", "foo").err


def test_experiments_go_by_their_names(coordinator: Coordinator, url: str, winnow: Winnow) -> None:
    add_dataset(coordinator)
    Path("spec.json").write_text(json.dumps(experiment_body(seeds=[0, 1])))
    begun = winnow("run", "spec.json", "--detach").out.split()
    first = begun[1]
    assert begun[::2] == ["e-0:", "e-1:"]
    assert winnow("pause", "e-0", "--json").json["id"] == first
    assert winnow("export", "e-0").out.endswith(f"e-0-{first}\n")
    assert winnow("verify", "e-0", "--json").json["experiment"] == first
    assert [one["id"] for one in winnow("compare", first, "e-0", "--json").json["experiments"]] == [first]
    winnow("run", "spec.json", "--seed", "0", "--detach")
    twice = winnow("cancel", "e-0", "e-1", "--json")
    refused, done = (json.loads(line) for line in twice.out.splitlines())
    assert (twice.code, refused["code"], refused["experiment"], done["name"]) == (1, "invalid", "e-0", "e-1")
    assert "several experiments are called 'e-0'; name one by its id: " in refused["detail"]
    assert f"{first} (pausing)" in refused["detail"]
    assert "no experiment ''" in winnow("pause", "").err


def test_a_failed_experiment_is_exit_code_1(
    coordinator: Coordinator, winnow: Winnow, run_through: Callable[..., str]
) -> None:
    add_dataset(coordinator)
    id = run_through(ended=ExperimentStatus.FAILED)
    watched = winnow("watch", id, "--json")
    assert watched.code == 1 and "e failed" in watched.err
    assert all(json.loads(line)["experiment"] == id for line in watched.out.splitlines())

    def fail_the_next() -> bool:
        with coordinator.database.begin() as session:
            begun = experiments.in_status(session, ExperimentStatus.CREATED)
            for one in begun:
                experiments.transition(session, one, ExperimentStatus.FAILED, error="no luck")
        return bool(begun)

    with ThreadPoolExecutor() as pool:
        failed = pool.submit(wait_until, fail_the_next, 20, "an experiment to fail")
        said = winnow("run", "spec.json", "--json")
        failed.result()
    assert (said.code, said.json[0]["status"]) == (1, "failed")
    assert "e failed: no luck" in said.err


def test_keys_and_workers(url: str, winnow: Winnow) -> None:
    made = winnow("key", "create", "notebook", "--scope", "run", "--json").json
    assert made["key"] and made["scopes"] == ["run"]
    listed = winnow("key", "list").out
    assert "valid" in listed and made["created_at"][:16].replace("T", " ") in listed
    winnow("key", "revoke", made["id"])
    assert "valid" not in winnow("key", "list").out
    assert winnow("workers", "--json").json == []


def test_workers_are_shown_with_what_they_work_on(coordinator: Coordinator, url: str, winnow: Winnow) -> None:
    add_dataset(coordinator)
    with Client(url) as client:
        id = client.create_experiment(experiment_body())["id"]
        client.create_dataset({"name": "other", "sources": [{"kind": "synthetic"}]})
    with coordinator.database.begin() as session:
        for name in ("trains", "ingests", "idle"):
            workers.report(session, name, host="host", pid=1, devices=[], version="0", busy_with="what it said last")
        round = claims.claim(session, claims.TRAIN, "trains", 30)
        dataset = claims.claim(session, claims.INGEST, "ingests", 30)
        assert round and dataset
    assert {one["id"]: one["busy_with"] for one in winnow("workers", "--json").json} == {
        "trains": {"id": round.id, "name": "e", "experiment": id, "round": 0},
        "ingests": {"id": dataset.id, "name": "other", "experiment": None, "round": None},
        "idle": None,
    }
    assert "e, round 0" in winnow("workers").out


def test_doctor_says_what_to_do(url: str, winnow: Winnow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("WINNOW_DATA_ROOTS", str(tmp_path / "gone"))
    monkeypatch.setenv("WINNOW_BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setenv("WINNOW_FAILPOINT", "picks.inserted")
    said = winnow("doctor", "--json")
    found = {finding["what"]: finding for finding in said.json}
    assert said.code == 1
    assert found["torch"]["state"] == found["database"]["state"] == found["coordinator"]["state"] == "ok"
    assert found["data root"]["state"] == found["broker"]["state"] == found["trainers"]["state"] == "fail"
    assert all(finding["advice"] for finding in said.json if finding["state"] == "fail")
    nobody = f"http://127.0.0.1:{free_port()}"
    missed = next(one for one in winnow("doctor", "--url", nobody, "--json").json if one["what"] == "coordinator")
    assert missed["state"] == "fail" and nobody in missed["found"], "whoever names one wants that one"
    assert found["failpoint"]["state"] == "warn" and "unset" in found["failpoint"]["advice"]
    monkeypatch.setenv("WINNOW_LEASE_SECONDS", "1")
    assert "renew_seconds" in winnow("doctor").out


@pytest.mark.parametrize(("device", "state"), [("auto", "warn"), ("cpu", "ok"), ("cuda", "fail")])
def test_doctor_says_what_a_device_that_is_wanted_lacks(
    winnow: Winnow, device: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_DEVICE", device)
    monkeypatch.setenv("WINNOW_STATE_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = {finding["what"]: finding for finding in winnow("doctor", "--json").json}
    assert found["GPU"]["state"] == state, found["GPU"]
    assert "none there yet" in found["database"]["found"] and not (tmp_path / "nowhere").exists(), "it only looks"


def test_doctor_asks_the_sampler(
    url: str, winnow: Winnow, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*options: str) -> dict[str, str]:
        return next(finding for finding in winnow("doctor", "--json", *options).json if finding["what"] == "sampler")

    assert look()["state"] == "warn", "where it is, nobody said"
    with serving(make_app(settings)) as sampler:
        monkeypatch.setenv("WINNOW_SAMPLER_URL", sampler)
        settings.artefact_dir.mkdir(parents=True, exist_ok=True)
        assert look()["state"] == "ok"
    assert look()["state"] == "fail"
    assert "rounds stay `trained`" in look()["advice"]
    monkeypatch.delenv("WINNOW_SAMPLER_URL")
    record = {"coordinator_url": url, "sampler_url": f"http://127.0.0.1:{free_port()}"}
    (tmp_path / "stack.json").write_text(json.dumps(record))
    assert record["sampler_url"] in look("--state-dir", str(tmp_path))["found"], "the embedded stack's own"


def test_errors_are_json_where_json_was_asked_for(
    coordinator: Coordinator, winnow: Winnow, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = winnow("run", "--json", "--detach")
    assert (wrong.code, wrong.json["code"]) == (2, "usage")
    assert "Missing argument" in wrong.json["detail"]
    assert winnow("list", "--status", "odd", "--json").json["code"] == "invalid"
    Path("file").touch()
    add_dataset(coordinator)
    Path("spec.json").write_text(json.dumps(experiment_body()))
    assert winnow("run", "spec.json", "--detach").code == 0
    taken = winnow("compare", "--out", "file", "--json")
    assert (taken.code, taken.json["code"]) == (1, "file")
    assert winnow("compare", "--out", "file").err.startswith("error: file: ")
    assert winnow("demo", "--data", "gone", "--json").json["code"] == "invalid"
    monkeypatch.setenv("WINNOW_LEASE_SECONDS", "1")
    assert winnow("up", "--json").json["code"] == "settings"


def test_a_stack_keeps_watch_whatever_its_owner_waits_for(tmp_path: Path) -> None:
    said: list[str] = []
    heard = threading.Event()

    def hear(words: str) -> None:
        said.append(words)
        heard.set()

    stack = Stack(tmp_path, [], None, hear)
    stack.url = "http://127.0.0.1:1"
    stack.services = [Service("nonesuch", {}, tmp_path / "log", patience=1)]
    stack.services[0].start()
    with stack.watched():
        assert heard.wait(20), "nobody looked"
    assert "nonesuch ended (exit code 1: " in said[0] and "No module named" in said[0], "with the last words of its log"
    assert "; starts again" in said[0]
    stack.stop()
    assert not stack.services


def test_nobody_there(winnow: Winnow) -> None:
    said = winnow("list", "--url", f"http://127.0.0.1:{free_port()}")
    assert said.code == 1 and "winnow up" in said.err


def test_a_stack_refuses_what_it_cannot_serve(winnow: Winnow, tmp_path: Path, url: str) -> None:
    taken = url.rpartition(":")[2]
    assert f"{taken} is taken" in winnow("up", "--port", taken, "--state-dir", str(tmp_path / "s")).err
    missing = str(tmp_path / "missing")
    assert f"{missing} is no folder" in winnow("up", "--data-root", missing, "--state-dir", str(tmp_path / "s")).err
    (tmp_path / "file").touch()
    traces = str(tmp_path / "file" / "traces")
    assert f"{traces} cannot be made" in winnow("up", "--profile", traces, "--state-dir", str(tmp_path / "s")).err
    assert winnow("up", "--port", "80000", "--state-dir", str(tmp_path / "s")).code == 2
    assert not Stack(tmp_path / "s", [], None, print).record.exists()


def test_without_its_extras_the_command_line_says_so() -> None:
    code = "import sys; sys.modules['typer'] = None; import winnow_cli.main"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.strip() == "winnow's command line needs typer: install winnow with its extras; make setup does"


def test_stacks_that_start_together_get_ports_of_their_own() -> None:
    wanted = free_port()
    port, claim = claim_port(wanted)
    assert port == wanted and claim is not None
    other, _ = claim_port(wanted)  # nobody listens yet
    assert other != wanted
    claim.close()
    again, claim = claim_port(None, wanted)
    assert again == wanted and claim is not None
    claim.close()


@pytest.mark.parametrize("command", [(), ("select",), ("dataset",), ("dataset", "add"), ("key", "create")])
def test_short_help_is_help(winnow: Winnow, command: tuple[str, ...]) -> None:
    short, long = winnow(*command, "-h"), winnow(*command, "--help")
    assert (short.code, short.out) == (0, long.out) and "Usage: " in short.out


def test_what_happens_is_said_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(["a service ended"] * 40)
    say(words)
    assert capsys.readouterr().err == f"{words}\n"
