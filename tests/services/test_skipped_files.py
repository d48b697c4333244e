"""Files of a dataset that could not be read: the report names some, the rest is one call away."""

import csv
import io

import httpx
from PIL import Image
from services.conftest import Winnow, add_dataset, problem
from services.trainer_parts import worker_at

from winnow.client import Client
from winnow.datasets import SKIPPED_LISTED
from winnow.settings import Settings
from winnow.store.claims import INGEST
from winnow_cli.commands.datasets import SHOWN
from winnow_coordinator.context import Coordinator


def ingest(settings: Settings, url: str, torn: int) -> list[str]:
    """A dataset `t` of one patch and of files that are none; their keys."""
    folder = settings.data_roots[0] / "t" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "good.png")
    names = [f"torn {n:03d}\r.png" for n in range(torn)]
    for name in names:
        (folder / name).write_bytes(b"torn")
    source = {"kind": "folder", "path": str(folder.parent)}
    spec = {"name": "t", "image_size": 32, "on_unreadable": "skip", "sources": [source]}
    with Client(url) as client, worker_at(settings.state_dir, data_roots=settings.data_roots) as worker:
        assert worker.attend(INGEST, client.create_dataset(spec)["id"])
        assert client.dataset("t")["status"] == "ready"
    return [f"a/{name}" for name in names]


def test_a_few_are_all_in_the_report(settings: Settings, url: str, winnow: Winnow) -> None:
    keys = ingest(settings, url, SHOWN + 2)
    with Client(url) as client:
        report = client.dataset("t")["report"]
        assert [one["path"] for one in report["skipped"]] == keys
        assert client.skipped("t") == report["skipped"]
    assert not list(settings.artefact_dir.rglob("skipped.csv"))
    assert "skipped: 12\n  a/torn 000" in winnow("dataset", "show", "t").out
    assert "  and 2 more, which winnow dataset skipped t lists\n" in winnow("dataset", "show", "t").out


def test_many_are_listed_beside_the_shards(settings: Settings, url: str, winnow: Winnow) -> None:
    keys = ingest(settings, url, SKIPPED_LISTED + 3)
    with Client(url) as client:
        report, skipped = client.dataset("t")["report"], client.skipped("t")
    assert [one["path"] for one in skipped] == keys
    assert report["skipped"] == skipped[:SKIPPED_LISTED] and report["skipped_count"] == len(keys)
    said = winnow("dataset", "skipped", "t")
    assert list(csv.DictReader(io.StringIO(said.out, newline=""))) == skipped
    assert winnow("dataset", "skipped", "t", "--json").json == skipped
    assert "  and 93 more, which winnow dataset skipped t lists\n" in winnow("dataset", "show", "t").out


def test_nothing_skipped_is_an_empty_table(api: httpx.Client, coordinator: Coordinator) -> None:
    add_dataset(coordinator)
    answer = api.get("/datasets/tissue/skipped")
    assert (answer.text, answer.headers["Content-Type"]) == ("path,reason\n", "text/csv; charset=utf-8")
    problem(api.get("/datasets/none/skipped"), 404, "not-found")


def test_what_was_skipped_is_not_known_before_the_end(api: httpx.Client) -> None:
    made = api.post("/datasets", json={"name": "t", "sources": [{"kind": "synthetic"}]})
    assert made.status_code == 202
    problem(api.get("/datasets/t/skipped"), 409, "wrong-state")
