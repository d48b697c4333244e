"""`winnow select`: the library's picks from the shell, and what a person sees when something does not fit."""

import csv
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as arrow
import pytest
from conftest import wait_until
from pyarrow import parquet
from services.conftest import Winnow

from winnow.selection import Constraints, k_center_greedy, select, strategies

RANDOM = np.random.default_rng(6)
POOL = RANDOM.normal(size=(60, 5)).astype(np.float32)
PROBABILITIES = RANDOM.dirichlet(np.ones(3), 60).astype(np.float32)


@pytest.fixture
def here(winnow: Winnow) -> Path:
    """The directory that commands run in, with a pool and its probabilities."""
    np.save("pool.npy", POOL)
    np.save("proba.npy", PROBABILITIES)
    return Path.cwd()


def rows_of(path: str = "picks.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("strategy", strategies())
def test_it_writes_what_the_library_picks(winnow: Winnow, here: Path, strategy: str) -> None:
    said = winnow(
        "select", "pool.npy", "--strategy", strategy, "--budget", "8", "--proba", "proba.npy", "--seed", "3",
        "-o", "picks.csv", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    given: dict[str, Any] = {"pool": POOL, "probabilities": PROBABILITIES}
    expected = select(strategy, budget=8, seed=3, **given)
    assert said.json["indices"] == expected.indices.tolist() == [int(row["row"]) for row in rows_of()]
    assert [float(row["score"]) for row in rows_of()] == pytest.approx(expected.scores.tolist())
    assert [int(row["rank"]) for row in rows_of()] == list(range(8))
    assert said.json["status"] == "done" and said.json["radius"] == expected.radius
    assert not list(here.glob(".picks*")), "nothing but the file itself is left"


def test_without_an_output_the_rows_are_printed(winnow: Winnow, here: Path) -> None:
    said = winnow("select", "pool.npy", "--budget", "4")
    assert [int(line) for line in said.out.split()] == k_center_greedy(POOL, 4).indices.tolist()
    assert "4 picks in" in said.err


def test_centres_constraints_and_the_picks_before(winnow: Winnow, here: Path) -> None:
    np.save("selected.npy", POOL[:3] + 5)
    Path("groups.txt").write_text("\n".join("ab"[row % 2] for row in range(60)))
    winnow("select", "pool.npy", "--budget", "5", "--selected", "selected.npy", "-o", "picks.csv")
    before = [int(row["row"]) for row in rows_of()]
    assert before == k_center_greedy(POOL, 5, centers=POOL[:3] + 5).indices.tolist()
    Path("pinned.txt").write_text("7\n")
    said = winnow(
        "select", "pool.npy", "--budget", "6", "--exclude", "picks.csv", "--pinned", "pinned.txt",
        "--groups", "groups.txt", "--cap", "4", "--quota", "a=2", "--json",
    )  # fmt: skip
    rules = Constraints(groups=["ab"[row % 2] for row in range(60)], cap=4, quota={"a": 2}, exclude=before, pinned=[7])
    expected = select("k_center", budget=6, pool=POOL, constraints=rules).indices.tolist()
    assert said.json["indices"] == expected
    assert expected[0] == 7 and not set(before) & set(expected)


@pytest.mark.parametrize("form", ["rows", "keys", "picks", "embeddings"])
def test_what_is_selected_already_by_row_by_key_or_by_its_embeddings(winnow: Winnow, here: Path, form: str) -> None:
    keys = [f"p{row}" for row in range(60)]
    parquet.write_table(arrow.table({"key": keys, "features": list(POOL)}), "pool.parquet")
    before = [4, 17, 50]
    if form == "picks":
        Path("before.txt").write_text("row\n" + "\n".join(map(str, before)))
    elif form == "embeddings":
        np.save("before.npy", POOL[before])
    else:
        Path("before.txt").write_text("\n".join(str(row) if form == "rows" else keys[row] for row in before))
    name = "before.npy" if form == "embeddings" else "before.txt"
    said = winnow("select", "pool.parquet", "--selected", name, "--budget", "57" if form == "rows" else "9", "--json")
    assert said.code == 0, said.err
    expected = k_center_greedy(POOL, 9, centers=POOL[before]).indices.tolist()
    assert said.json["indices"][:9] == expected
    assert form == "embeddings" or not set(before) & set(said.json["indices"]), "they are not picked again"


def test_caps_of_named_groups_and_exact_quotas(winnow: Winnow, here: Path) -> None:
    groups = ["abc"[row % 3] for row in range(60)]
    Path("groups.txt").write_text("\n".join(groups))
    asked = ["select", "pool.npy", "--budget", "12", "--groups", "groups.txt"]
    said = winnow(*asked, "--cap", "5", "--cap", "b=1")
    expected = Constraints(groups=groups, cap={"a": 5, "b": 1, "c": 5})
    with pytest.raises(ValueError, match="11 picks are possible"):
        select("k_center", budget=12, pool=POOL, constraints=expected)
    assert said.code == 1 and "11 picks are possible" in said.err
    picked = winnow(*asked, "--json", "--cap", "7", "--cap", "b=1", "--quota", "c=4", "--exact-quota").json["indices"]
    counts = [[groups[row] for row in picked].count(group) for group in "abc"]
    assert counts == [7, 1, 4]


def test_near_duplicates_by_distance(winnow: Winnow, here: Path) -> None:
    np.save("twice.npy", np.concatenate([POOL, POOL]))
    asked = ["select", "twice.npy", "--budget", "60", "--near-duplicates", "0", "--metric", "l2", "--json"]
    assert sorted(winnow(*asked).json["indices"]) == list(range(60))


def test_a_folder_of_slides_gives_files_and_coordinates(winnow: Winnow, here: Path) -> None:
    Path("slides").mkdir()
    for i in (0, 1):
        with h5py.File(f"slides/s{i}.h5", "w") as file:
            file["feats"] = POOL[30 * i : 30 * i + 30].astype(np.float16)
            file["coords"] = np.arange(60).reshape(30, 2)
    said = winnow("select", "slides", "--budget", "6", "--groups", "file", "--cap", "3", "-o", "picks.csv")
    assert "pool: float16 converted to float32" in said.err
    rows = rows_of()
    assert sorted(row["file"] for row in rows) == ["s0.h5"] * 3 + ["s1.h5"] * 3
    for row in rows:
        assert int(row["row"]) == int(row["file_row"]) + 30 * (row["file"] == "s1.h5")
        assert (float(row["x"]), float(row["y"])) == (2 * int(row["file_row"]), 2 * int(row["file_row"]) + 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none.npy"], "EMBEDDINGS: none.npy is not there"),
        (["pool.npy", "--strategy", "nearest"], "strategy: needs one of"),
        (["pool.npy", "--budget", "61"], "budget: needs 1 to 60"),
        (["pool.npy", "--budget", "0"], "budget: needs 1 to 60"),
        (["pool.npy", "--strategy", "entropy"], "--proba: strategy entropy needs"),
        (["pool.npy", "--strategy", "entropy", "--proba", "wide.npy"], "a row for each of 60 candidates, got 90"),
        (["pool.npy", "--strategy", "margin", "--proba", "wide.npy"], "a row for each of 60 candidates, got 90"),
        (["pool.npy", "--direction", "up"], "--direction: needs high or low"),
        (["pool.npy", "--cap", "1"], "groups: cap needs the group of each row"),
        (["pool.npy", "--quota", "a"], "--quota: needs GROUP=N"),
        (["pool.npy", "--cap", "-1"], "--cap: needs N or GROUP=N"),
        (["pool.npy", "--cap", "1", "--cap", "2"], "--cap: needs one number for all groups, got 1 and 2"),
        (["pool.npy", "--cap", "a=1"], "--cap: needs --groups"),
        (["pool.npy", "--groups", "file", "--cap", "slide=1"], "--cap: no row of the pool is of group 'slide'"),
        (["pool.npy", "--selected", "near.txt"], "--selected: near.txt: needs rows 0 to 59, got 60"),
        (["pool.npy", "--selected", "none.txt"], "--selected: none.txt: cannot be read"),
        (["pool.npy", "--near-duplicates", "0.1", "--metric", "l1"], "--metric: needs cosine or l2"),
        (["pool.npy", "--exclude", "far.txt"], "does not fit int64"),
        (["pool.npy", "--exclude", "near.txt"], "exclude: needs rows 0 to 59, got 60"),
        (["pool.npy", "--groups", "near.txt", "--cap", "1"], "--groups: near.txt: needs 60 values"),
        (["pool.npy", "--groups", "column:slide", "--cap", "1"], "no Parquet file"),
        (["empty.npy"], "empty.npy: is empty"),
        (["bad.npy", "--budget", "2"], "NaN or infinity in row 1"),
        (["pool.npy", "--budget", "2", "-o", "no/such/folder.csv"], "--output: no/such/folder.csv cannot be written"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(winnow: Winnow, here: Path, arguments: list[str], reason: str) -> None:
    Path("far.txt").write_text("99999999999999999999\n")
    Path("near.txt").write_text("60\n")
    Path("empty.npy").touch()
    np.save("wide.npy", np.full((90, 2), 0.5))
    np.save("bad.npy", np.array([[0, 1], [np.nan, 1], [2, 2]], np.float32))
    said = winnow("select", *arguments, *([] if "--budget" in arguments else ["--budget", "2"]))
    assert said.code == 1 and said.err.startswith("error: ") and reason in said.err, said.err
    assert not said.out


def test_a_failure_leaves_the_file_that_was_there(winnow: Winnow, here: Path) -> None:
    Path("picks.csv").write_text("before")
    assert winnow("select", "pool.npy", "--budget", "61", "-o", "picks.csv").code == 1
    assert Path("picks.csv").read_text() == "before"


def interrupted(*arguments: str, once: Callable[[bytes], bool]) -> bytes:
    """What a terminal shows of `winnow select` when Ctrl-C follows `once` what was shown so far says so."""
    screen, end = pty.openpty()
    command = [sys.executable, "-m", "winnow_cli.main", "select", *arguments]
    with subprocess.Popen(command, stderr=end, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}) as run:
        os.close(end)
        seen = b""

        def is_time() -> bool:
            nonlocal seen
            seen += os.read(screen, 4096)
            return once(seen)

        wait_until(is_time, 120, "the bar to show it")
        run.send_signal(signal.SIGINT)
        try:
            while more := os.read(screen, 4096):
                seen += more
        except OSError:  # the terminal's other end is closed
            pass
        assert run.wait(60) == 130
    os.close(screen)
    return seen


def test_ctrl_c_keeps_the_valid_prefix(here: Path) -> None:
    pool = RANDOM.normal(size=(60_000, 64)).astype(np.float32)
    np.save("large.npy", pool)
    seen = interrupted(
        "large.npy", "--budget", "30000", "-o", "picks.csv",
        once=lambda seen: b"/30000" in seen and b" 0/30000" not in seen[-200:],
    )  # fmt: skip
    rows = [int(row["row"]) for row in rows_of()]
    assert 0 < len(rows) < 30_000
    assert rows == k_center_greedy(pool, len(rows)).indices.tolist()
    assert b"which are valid as they are" in seen


def test_ctrl_c_before_the_first_pick_leaves_the_file_that_was_there(here: Path) -> None:
    np.save("large.npy", RANDOM.normal(size=(60_000, 64)).astype(np.float32))
    Path("picks.csv").write_text("before")
    asked = ["large.npy", "--strategy", "typiclust", "--budget", "3000", "-o", "picks.csv"]
    seen = interrupted(*asked, once=lambda seen: b" 0/3000" in seen)
    assert b"stopped before the first pick; picks.csv is as it was" in seen and b"0 picks in" not in seen
    assert Path("picks.csv").read_text() == "before"


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("EMBEDDINGS", "pool.npy"),
        ("EMBEDDINGS", "slides/a.npy"),
        ("--selected", "rows.txt"),
        ("--selected", "slides/a.npy"),
        ("--proba", "proba.npy"),
        ("--groups", "groups.txt"),
        ("--exclude", "rows.txt"),
        ("--pinned", "link.txt"),
    ],
)
def test_picks_do_not_replace_what_they_are_made_from(winnow: Winnow, here: Path, option: str, file: str) -> None:
    Path("slides").mkdir()
    np.save("slides/a.npy", POOL)
    Path("rows.txt").write_text("3\n")
    Path("link.txt").symlink_to("rows.txt")
    Path("groups.txt").write_text("\n".join("ab"[row % 2] for row in range(60)))
    before = Path(file).read_bytes()
    given = str(Path(file).parent) if file.startswith("slides") else file
    asked = [given] if option == "EMBEDDINGS" else ["pool.npy", option, given]
    said = winnow("select", *asked, "--budget", "5", "-o", file)
    assert (said.code, said.err) == (1, f"error: --output: {file} is read as {option}; name another file\n")
    assert Path(file).read_bytes() == before
    assert winnow("select", *asked, "--budget", "5", "-o", "picks.csv").code == 0


def test_it_imports_neither_torch_nor_a_web_client() -> None:
    heavy = "{'torch', 'httpx', 'fastapi', 'sqlalchemy'}"
    code = f"import sys, winnow_cli.commands.select; print(sorted({heavy} & set(sys.modules)))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == []
