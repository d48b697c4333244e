"""Artefacts: whole or not there, inside the root, and checked by sha256."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from winnow.artefacts import DirectoryStore, Stored, get_array, get_json, put_array, put_json
from winnow.errors import ArtefactCorrupt, InvalidInput, NotFound


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "artefacts")


def test_what_is_put_comes_back(store: DirectoryStore, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    stored = put_array(store, "a/b/x.npy", array)
    assert np.array_equal(get_array(store, "a/b/x.npy", sha256=stored.sha256), array)
    assert store.stat("a/b/x.npy") == stored
    put_json(store, "a/b/y.json", {"k": [1, 2]})
    assert get_json(store, "a/b/y.json") == {"k": [1, 2]}
    file = tmp_path / "big.bin"
    file.write_bytes(os.urandom(3_000_000))
    assert store.put("a/big.bin", file).size == 3_000_000
    assert store.list("a") == ["a/b/x.npy", "a/b/y.json", "a/big.bin"]
    store.delete("a/b")
    assert store.list("a") == ["a/big.bin"]


def test_what_lies_below_a_prefix_moves_with_its_bytes(store: DirectoryStore, tmp_path: Path) -> None:
    stored = put_json(store, "a/b/y.json", {"k": 1})
    put_json(store, "a/b/c/z.json", {"k": 2})
    inode = store.local("a/b/y.json").stat().st_ino
    store.move("a/b", "d/e")
    assert store.list("a") == [] and store.list("d") == ["d/e/c/z.json", "d/e/y.json"]
    assert store.local("d/e/y.json").stat().st_ino == inode
    assert store.stat("d/e/y.json") == Stored("d/e/y.json", stored.size, stored.sha256)


def test_what_cannot_move_stays(store: DirectoryStore, tmp_path: Path) -> None:
    put_json(store, "a/y.json", {})
    put_json(store, "b/y.json", {})
    with pytest.raises(OSError, match="not empty"):
        store.move("a", "b")
    with pytest.raises(NotFound):
        store.move("nowhere", "c")
    (tmp_path / "elsewhere").mkdir()
    (store.root / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFound):
        store.move("link", "c")
    with pytest.raises(InvalidInput):
        store.move("a", "../c")
    assert store.list("a") == ["a/y.json"] and not store.list("c")


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_json(store, "a/b/y.json", {})
    look = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "not yours", str(path))
        return look(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)
        for act in (store.lying, store.delete):
            with pytest.raises(PermissionError):
                act("a")
    assert [file.name for file in store.lying("a")] == ["a/b/y.json"]
    assert store.lying("nowhere") == []


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a//b", "a/../../b", "", "a/.hidden", "a\\b", "a b"])
def test_keys_stay_inside_the_root(store: DirectoryStore, key: str) -> None:
    with pytest.raises(InvalidInput):
        store.put(key, b"x")


def test_a_missing_artefact_is_not_found(store: DirectoryStore) -> None:
    with pytest.raises(NotFound):
        store.local("no/such.npy")
    assert store.stat("no/such.npy") is None


def test_changed_bytes_are_noticed(store: DirectoryStore) -> None:
    stored = put_array(store, "x.npy", np.zeros(10, np.float32))
    path = store.local("x.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtefactCorrupt, match="sha256"):
        get_array(store, "x.npy", sha256=stored.sha256)


def test_a_pickled_or_truncated_array_is_refused(store: DirectoryStore) -> None:
    np.save(store.root / "p.npy", np.array([{}], dtype=object), allow_pickle=True)
    (store.root / "t.npy").write_bytes(b"\x93NUMPY")
    for key in ("p.npy", "t.npy"):
        with pytest.raises(ArtefactCorrupt):
            get_array(store, key)


FILL = """
import resource, signal, sys
from pathlib import Path
from winnow.artefacts import DirectoryStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
store = DirectoryStore(Path(sys.argv[1]))
try:
    store.put("big.bin", Path(sys.argv[2]))
except OSError as error:
    print(type(error).__name__, list(p.name for p in store.root.iterdir()))
"""


def test_a_write_that_runs_out_of_room_leaves_nothing(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(3_000_000))
    command = [sys.executable, "-c", FILL, str(tmp_path / "store"), str(big)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "OSError []"


def test_a_link_in_the_store_leads_nowhere(store: DirectoryStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    np.save(outside / "secret.npy", np.zeros(3))
    (store.root / "file.npy").symlink_to(outside / "secret.npy")
    (store.root / "folder").symlink_to(outside)
    with pytest.raises(NotFound):
        store.local("file.npy")
    assert store.stat("file.npy") is None and store.list("file.npy") == store.list("folder") == []
    for reach in (store.local, store.stat, store.list, store.delete, lambda key: store.put(key, b"x")):
        with pytest.raises(InvalidInput, match="leads out of the artefact store"):
            reach("folder/secret.npy")
    store.delete("folder")
    assert (outside / "secret.npy").exists() and not (store.root / "folder").exists(), "the link is removed alone"
