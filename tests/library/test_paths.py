"""What was checked is what is opened: links, `..`, and what is swapped between the check and the opening."""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from library.test_embeddings import write_lists, write_npy, write_trident
from PIL import Image

from winnow.datasets.decode import FilePicture, Unreadable
from winnow.datasets.folder import list_folder
from winnow.datasets.manifest import list_manifest
from winnow.datasets.npz import list_npz
from winnow.domain import Source
from winnow.embeddings import survey
from winnow.errors import InvalidInput, PathForbidden, WinnowError
from winnow.paths import is_replaced, open_file, open_folder

SECRET = "secret-of-another"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that nobody may read, with files of the names that are inside, too."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "a.txt").write_text(SECRET)
    Image.new("RGB", (16, 16), "red").save(folder / "a.png")
    (folder / "table.csv").write_text(f"path,label\n{SECRET}.png,x\n")
    np.savez(folder / "m.npz", train_images=np.zeros((1, 16, 16, 3), np.uint8), train_labels=[7])
    return folder


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "sub"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("mine")
    Image.new("RGB", (16, 16), "blue").save(folder / "a.png")
    (folder / "table.csv").write_text("path,label\na.png,x\n")
    np.savez(folder / "m.npz", train_images=np.zeros((1, 16, 16, 3), np.uint8), train_labels=[1])
    return folder


def test_a_plain_file_is_opened(inside: Path) -> None:
    with open_file(inside / "a.txt") as file:
        assert file.read() == b"mine"
    with open_folder(inside) as handle, os.scandir(handle) as found:
        assert "a.txt" in {child.name for child in found}


def replace_file(inside: Path, outside: Path) -> None:
    (inside / "a.txt").unlink()
    (inside / "a.txt").symlink_to(outside / "a.txt")


def replace_folder(inside: Path, outside: Path) -> None:
    shutil.rmtree(inside)
    inside.symlink_to(outside)


def replace_root(inside: Path, outside: Path) -> None:
    shutil.rmtree(inside.parent)
    (outside / "sub").symlink_to(outside)
    inside.parent.symlink_to(outside)


@pytest.mark.parametrize("swap", [replace_file, replace_folder, replace_root])
def test_a_link_that_took_the_place_of_a_part_is_not_followed(
    swap: Callable[[Path, Path], None], inside: Path, outside: Path
) -> None:
    swap(inside, outside)
    assert (inside / "a.txt").read_text() == SECRET, "open() follows it"
    with pytest.raises(OSError, match=r"a\.txt") as refused:
        open_file(inside / "a.txt")
    assert is_replaced(refused.value)


def test_a_folder_that_became_a_link_is_not_listed(inside: Path, outside: Path) -> None:
    replace_folder(inside, outside)
    with pytest.raises(OSError) as refused, open_folder(inside):
        pass
    assert is_replaced(refused.value)


@pytest.mark.parametrize("path", ["relative/a.txt", "/tmp/../etc/hostname"])
def test_only_resolved_paths_are_opened(path: str) -> None:
    with pytest.raises(OSError) as refused:
        open_file(Path(path))
    assert refused.value.errno == errno.EINVAL


def test_what_is_no_regular_file_is_not_waited_for(inside: Path) -> None:
    os.mkfifo(inside / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="not a regular file"):
            open_file(inside / name if name != "." else inside)


def swapping(allow: Callable[[Path], None], swap: Callable[[], None], at: Path) -> Callable[[Path], None]:
    """A check that passes, and then, before anything is opened, the swap of an attacker."""

    def check(path: Path) -> None:
        allow(path)
        if path == at:
            swap()

    return check


def within(root: Path) -> Callable[[Path], None]:
    def allow(path: Path) -> None:
        if not path.is_relative_to(root):
            raise PathForbidden(str(path), [str(root)])

    return allow


def test_an_image_swapped_after_its_check_is_not_read(inside: Path, outside: Path) -> None:
    picture = FilePicture(
        inside / "a.png", swapping(within(inside), lambda: replace_folder(inside, outside), inside / "a.png"), 10**6
    )
    with pytest.raises(Unreadable, match="a link took its place"):
        picture.read(16)


def test_a_folder_swapped_after_its_check_is_not_listed(inside: Path, outside: Path) -> None:
    allow = swapping(within(inside), lambda: replace_folder(inside, outside), inside)
    with pytest.raises(WinnowError):
        list_folder(Source(kind="folder", path=str(inside)), 0, allow=allow, max_pixels=10**6)


@pytest.mark.parametrize(("kind", "name", "lister"), [("manifest", "table.csv", list_manifest), ("npz", "m.npz", None)])
def test_a_table_swapped_after_its_check_is_not_read(
    kind: str, name: str, lister: Callable[..., object] | None, inside: Path, outside: Path
) -> None:
    allow = swapping(within(inside), lambda: replace_folder(inside, outside), inside / name)
    source = Source.model_validate({"kind": kind, "path": str(inside / name)})
    with pytest.raises(InvalidInput) as refused:
        (lister or list_npz)(source, 0, allow=allow, max_pixels=10**6)
    assert SECRET not in str(refused.value)


def test_no_race_ever_reads_what_is_outside(inside: Path, outside: Path) -> None:
    """A thread that swaps file and link as fast as it can, against a thousand readings."""
    picture = FilePicture(inside / "a.png", within(inside), 10**6)
    colours: set[tuple[int, ...]] = set()
    refused = 0
    with _swapped_all_the_time(inside / "a.png", outside / "a.png"):
        for _ in range(1000):
            try:
                colours.add(tuple(picture.read(16).pixels[0, 0].tolist()))
            except (Unreadable, PathForbidden):
                refused += 1
    assert colours <= {(0, 0, 255)}
    assert refused, "the race was run"


@contextmanager
def _swapped_all_the_time(path: Path, target: Path) -> Iterator[None]:
    over = threading.Event()
    mine, link = path.with_name(".mine"), path.with_name(".link")
    shutil.copy(path, mine)

    def swap() -> None:
        while not over.is_set():
            link.symlink_to(target)
            link.replace(path)
            shutil.copy(mine, link)
            link.replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("write", [write_npy, write_trident, write_lists])
def test_embeddings_swapped_after_their_survey_are_not_read(
    write: Callable[[Path, np.ndarray], None], inside: Path, outside: Path
) -> None:
    for folder in (inside, outside):
        write(folder / "slide", ROWS)
    path = (inside / "slide").resolve()
    surveyed = survey([path], follow=False)
    replace_folder(inside, outside)
    with pytest.raises((InvalidInput, OSError)):
        surveyed.read()
    with pytest.raises((InvalidInput, OSError)):
        survey([path], follow=False)
    assert np.array_equal(survey([path]).read().features, ROWS), "who names a link of their own may follow it"
