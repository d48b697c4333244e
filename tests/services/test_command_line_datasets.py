"""`winnow dataset` against a real coordinator, and how experiments and datasets are found again."""

from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from PIL import Image
from pyarrow import parquet
from services.conftest import Driver, Winnow, add_dataset, experiment_body
from sqlalchemy import update

from winnow.artefacts import DirectoryStore
from winnow.client import Client
from winnow.datasets import Shelf
from winnow.datasets import ingest as ingest_now
from winnow.domain import DatasetSpec, DatasetStatus, ExperimentSpec, ExperimentStatus
from winnow.errors import TrainingFailed
from winnow.store import claims, datasets, experiments, rounds
from winnow.store.tables import Dataset, Round
from winnow_cli.commands.datasets import ingest
from winnow_cli.own_data import dataset_of
from winnow_cli.resuming import find_or_add_dataset, find_or_begin
from winnow_coordinator.context import Coordinator


def draw_patch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 48, 3), 9, np.uint8)).save(path)


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


def test_what_an_ingest_found_is_told_in_words(
    coordinator: Coordinator, url: str, winnow: Winnow, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "tissue"
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        draw_patch(folder / name)
    (folder / "b" / "torn.png").write_bytes(b"torn")
    said = winnow("dataset", "add", "t", str(folder), "--size", "32", "--on-unreadable", "skip", "--labelled", "2",
                  "--by", "stratum", "--no-wait", "--json")  # fmt: skip
    shelf = Shelf(DirectoryStore(tmp_path / "store"), "packed")
    found = ingest_now(DatasetSpec.model_validate(said.json["spec"]), shelf, tmp_path, allow=lambda path: None)
    with coordinator.database.begin() as session:
        row = claims.claim(session, claims.INGEST, "tester", 30)
        assert isinstance(row, Dataset)
        result = {"classes": found.classes, "counts": found.counts, "report": found.report}
        datasets.complete(session, row.id, row.attempt, location="datasets/t/a1", **result)
    said = winnow("dataset", "show", "t")
    leaked = "t: 2 of 4 patches have the pixels of one in another role, e.g. a/"
    assert said.err.startswith(f"note: {leaked}") and said.err.count("; ") == 1, "a line of its own, with two examples"
    assert winnow("dataset", "show", "t", "--json").json["status"] == "ready", "and nothing is refused for it"
    shown = said.out
    assert "read: 5\npacked: 4\nskipped: 1\n  b/torn.png: " in shown
    assert "resized: 48x40 4\n" in shown and "converted" not in shown
    assert "duplicates: count 3, across_roles 2, examples " in shown
    assert "drawn: 2 from pool to labelled, by stratum, seed 0\n" in shown


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


def test_synthetic_patches_are_counted_by_a_number(url: str, winnow: Winnow) -> None:
    said = winnow("dataset", "add", "s", "synthetic:abc", "--no-wait")
    assert (said.code, "SOURCE: synthetic:PATCHES needs a whole number, got 'synthetic:abc'" in said.err) == (1, True)


def test_a_column_that_is_named_does_not_switch_off_the_guesses(url: str, winnow: Winnow, tmp_path: Path) -> None:
    table = tmp_path / "data" / "all.tsv"
    table.write_text("path\ttissue\tsplit\tpatient\n1.png\ta\ttrain\tp1\n2.png\tb\tVal\tp2\n3.png\tb\ttest\tp3\n")
    said = winnow("dataset", "add", "t", str(table), "--column", "label=tissue", "--no-wait", "--json")
    (source,) = said.json["spec"]["sources"]
    assert source["columns"] == {"label": "tissue", "role": "split", "group": "patient"}
    assert source["splits"] == {"train": "pool", "Val": "validation"}
    assert "role from column split, group from column patient" in said.err
    assert "Val means validation, train means pool" in said.err
    given = winnow("dataset", "add", "u", str(table), "--split", "train=labelled", "--no-wait", "--json")
    assert given.code == 1, "what is given stands, and leaves no pool here"
    assert "the pool is empty" in given.json["detail"]


@pytest.mark.parametrize("name", ["t.parquet", "t.pq", "t.PQ", "manifest.pq"])
def test_every_manifest_the_library_reads(url: str, winnow: Winnow, tmp_path: Path, name: str) -> None:
    table = tmp_path / "data" / name
    parquet.write_table(arrow.table({"path": ["1.png", "2.png"], "class": ["a", "b"]}), table)
    place = table.parent if name.startswith("manifest") else table
    (source,) = winnow("dataset", "add", "t", str(place), "--no-wait", "--json").json["spec"]["sources"]
    assert (source["kind"], source["path"], source["columns"]) == ("manifest", str(table), {"label": "class"})


def test_folders_named_as_splits_are_no_classes(url: str, winnow: Winnow, tmp_path: Path) -> None:
    for split in ("train", "test"):
        draw_patch(tmp_path / "data" / "t" / split / "a" / "1.png")
    said = winnow("dataset", "add", "t", str(tmp_path / "data" / "t"), "--no-wait", "--json")
    assert said.json["spec"]["sources"][0]["splits"] == {"train": "pool", "test": "test"}
    assert "test means test, train means pool" in said.err


def test_how_to_draw_needs_something_to_draw(url: str, winnow: Winnow) -> None:
    said = winnow("dataset", "add", "x", "synthetic", "--by", "stratum")
    assert said.code == 1 and "--labelled NUMBER" in said.err
    assert winnow("dataset", "add", "x", "synthetic:40", "--by", "random", "--labelled", "4", "--no-wait").code == 0


def test_a_draw_too_large_is_told_by_its_option(url: str, winnow: Winnow) -> None:
    add = "dataset", "add", "x", "synthetic:40", "--no-wait"
    said = winnow(*add, "--test", "4", "--labelled", "500")
    assert (said.code, said.err.startswith("error: --labelled: asks for 500 of pool; ")) == (1, True)
    assert winnow(*add, "--test", "500").err.startswith("error: --test: asks for 500 of pool; ")
    assert winnow(*add, "--labelled", "-1").code == 2


def test_a_spec_file_says_everything_itself(url: str, winnow: Winnow) -> None:
    Path("d.yaml").write_text("{name: d, sources: [{kind: synthetic, synthetic: {patches: 9}}]}")
    said = winnow("dataset", "add", "d.yaml", "--size", "64", "--test", "5", "--on-unreadable", "skip")
    assert said.code == 1
    assert "--size, --test, --on-unreadable: d.yaml is a spec file" in said.err
    assert "SOURCE: d.yaml is a spec file" in winnow("dataset", "add", "d.yaml", "synthetic").err
    assert winnow("dataset", "add", "d.yaml", "--no-wait").code == 0


def test_ones_own_patches_are_a_dataset_named_after_them(tmp_path: Path) -> None:
    folder = tmp_path / "my patches"
    for number in range(20):
        draw_patch(folder / "ab"[number % 2] / f"{number}.png")
    (folder / "README.txt").write_text("not a patch")
    told: list[str] = []
    spec = dataset_of(folder, told.append)
    assert (spec.name, spec.image_size, spec.on_unreadable) == ("my-patches", 48, "skip")
    assert [(draw.role, draw.count) for draw in spec.draws] == [("test", 4), ("labelled", 2)]
    assert any("no role test" in line for line in told)


def test_ingesting_is_waited_for_until_told(coordinator: Coordinator, url: str) -> None:
    spec = DatasetSpec.model_validate({"name": "d", "sources": [{"kind": "synthetic"}]})
    with Client(url) as client:
        client.create_dataset(spec)
        assert ingest(client, "d", ended=lambda: True)["status"] == "queued"


def test_who_waits_without_a_terminal_hears_why_it_is_tried_again(
    coordinator: Coordinator, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = DatasetSpec.model_validate({"name": "d", "sources": [{"kind": "synthetic"}]})
    looks = count()
    with Client(url) as client:
        client.create_dataset(spec)
        with coordinator.database.begin() as session:
            row = claims.claim(session, claims.INGEST, "tester", 30)
            assert row is not None
            rounds.give_back(session, claims.INGEST, row.id, row.attempt, "full", "no space left", coordinator.patience)
        assert ingest(client, "d", ended=lambda: next(looks) == 2)["status"] == "queued"
        with coordinator.database.begin() as session:
            session.execute(update(Dataset).values(status=DatasetStatus.FAILED))
        with pytest.raises(TrainingFailed, match="no space left"):
            ingest(client, "d")
    assert capsys.readouterr().err == "d: queued, waits to be tried again: no space left\n", "once"


def test_the_same_dataset_is_found_again_and_another_gets_a_name_of_its_own(url: str) -> None:
    first, other = (
        DatasetSpec.model_validate({"name": "d", "image_size": size, "sources": [{"kind": "synthetic"}]})
        for size in (32, 64)
    )
    with Client(url) as client:
        made = find_or_add_dataset(client, first)
        assert find_or_add_dataset(client, first)["id"] == made["id"]
        assert find_or_add_dataset(client, other)["name"] == "d-2"
        assert find_or_add_dataset(client, other)["name"] == "d-2"
        client.remove_dataset("d")
        assert find_or_add_dataset(client, other)["name"] == "d-2", "though another name is free"
        assert find_or_add_dataset(client, first)["name"] == "d"


def test_a_dataset_that_failed_is_taken_in_anew(coordinator: Coordinator, url: str) -> None:
    spec = DatasetSpec.model_validate({"name": "d", "sources": [{"kind": "synthetic"}]})
    with Client(url) as client:
        find_or_add_dataset(client, spec)
        with coordinator.database.begin() as session:
            row = claims.claim(session, claims.INGEST, "tester", 30)
            assert row is not None
            rounds.give_back(session, claims.INGEST, row.id, row.attempt, "rejected", "no", coordinator.patience)
        assert client.dataset("d")["status"] == "failed"
        again = find_or_add_dataset(client, spec.model_copy(update={"on_unreadable": "skip"}))
        assert (again["name"], again["status"], again["spec"]["on_unreadable"]) == ("d", "queued", "skip")


def test_the_same_experiment_is_found_again_and_gone_on_with(coordinator: Coordinator, url: str) -> None:
    add_dataset(coordinator)
    spec = ExperimentSpec.model_validate(experiment_body())
    with Client(url) as client:
        first = find_or_begin(client, spec)["id"]
        assert find_or_begin(client, spec)["id"] == first
        assert find_or_begin(client, spec.model_copy(update={"seed": 1}))["id"] != first
        client.pause(first)
        assert find_or_begin(client, spec)["status"] == "running"
        Driver(coordinator).claim()
        with coordinator.database.begin() as session:
            experiments.transition(session, first, ExperimentStatus.COMPLETED)
        assert find_or_begin(client, spec)["id"] == first
        other = spec.model_copy(update={"name": "f"})
        with coordinator.database.begin() as session:
            session.execute(update(Round).values(status="done"))
        failed = [client.create_experiment(other)["id"] for _ in range(2)]
        for id in failed:
            row = Driver(coordinator).claim()
            with coordinator.database.begin() as session:
                rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "rejected", "no", coordinator.patience)
            assert client.experiment(id)["status"] == "failed"
        again = find_or_begin(client, other)
        assert (again["id"], again["status"]) == (failed[1], "running")
        client.cancel(failed[1])
        assert find_or_begin(client, other)["id"] not in failed
