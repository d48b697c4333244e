"""Sources: folders, manifests, archives and synthetic tissue, alone and together, in a stable order."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from library.packs import ingest
from PIL import Image
from pyarrow import parquet

from winnow.datasets import IngestStopped, PackedImages, check
from winnow.datasets.sources import list_sources
from winnow.domain import DatasetSpec, Role
from winnow.errors import InvalidInput, PathForbidden

SIZE = 16


def anywhere(path: Path) -> None:
    """Allow every path."""


def save(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE), (shade, 100, 150)).save(path)


def spec_of(*sources: dict[str, object], **more: object) -> DatasetSpec:
    return DatasetSpec.model_validate({"name": "d", "sources": list(sources), "image_size": SIZE} | more)


def listed(*sources: dict[str, object]) -> list[tuple[str, str, str | None, str | None]]:
    found = list_sources(spec_of(*sources), allow=anywhere).entries
    return [(entry.key, entry.role.value, entry.label, entry.group) for entry in found]


def test_a_folder_gives_classes_and_an_unlabelled_pool(tmp_path: Path) -> None:
    for name in ("TUM/b.png", "TUM/a.png", "STR/slide 3/c.png", "loose.png"):
        save(tmp_path / name)
    assert listed({"kind": "folder", "path": str(tmp_path)}) == [
        ("STR/slide 3/c.png", "pool", "STR", None),
        ("TUM/a.png", "pool", "TUM", None),
        ("TUM/b.png", "pool", "TUM", None),
        ("loose.png", "pool", None, None),
    ]


def test_the_first_folder_may_be_a_split(tmp_path: Path) -> None:
    for name in ("train/TUM/a.png", "val/TUM/b.png"):
        save(tmp_path / name)
    source = {"kind": "folder", "path": str(tmp_path), "splits": {"train": "pool", "val": "test"}}
    assert listed(source) == [("train/TUM/a.png", "pool", "TUM", None), ("val/TUM/b.png", "test", "TUM", None)]
    save(tmp_path / "extra" / "TUM" / "c.png")
    with pytest.raises(InvalidInput, match=r"sources\.0\.splits: no role for the folder 'extra'"):
        listed(source)


def test_several_sources_have_their_roles_and_unique_keys(tmp_path: Path) -> None:
    save(tmp_path / "one" / "TUM" / "a.png", 1)
    save(tmp_path / "two" / "TUM" / "a.png", 2)
    one, two = ({"kind": "folder", "path": str(tmp_path / name)} for name in ("one", "two"))
    done = ingest(spec_of(one, two | {"role": "test"}), tmp_path / "out", allow=anywhere)
    assert [(row.idx, row.key, row.role) for row in done.samples()] == [
        (0, "0/TUM/a.png", Role.POOL),
        (1, "1/TUM/a.png", Role.TEST),
    ]
    assert done.counts == {"pool": {"TUM": 1}, "test": {"TUM": 1}}
    assert done.report["groups"] == "none (splits do not respect patients)"


def test_equal_pixels_in_two_roles_are_reported(tmp_path: Path) -> None:
    save(tmp_path / "one" / "TUM" / "a.png", 1)
    save(tmp_path / "two" / "TUM" / "b.png", 1)
    one, two = ({"kind": "folder", "path": str(tmp_path / name)} for name in ("one", "two"))
    done = ingest(spec_of(one, two | {"role": "test"}), tmp_path / "out", allow=anywhere)
    assert done.report["duplicates"] == {"count": 1, "across_roles": 1, "examples": [["0/TUM/a.png", "1/TUM/b.png"]]}


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_a_manifest_gives_label_group_and_role(tmp_path: Path, form: str) -> None:
    rows = [("x/b.png", 1, "p2", "train", 0.5), ("x/a.png", None, "p1", "train", 0.1), ("c.png", 0, "p3", "test", 0.2)]
    names = ["file", "class", "patient", "split", "score"]
    table = tmp_path / f"table.{form}"
    if form == "parquet":
        columns = [list(column) for column in zip(*rows, strict=True)]
        parquet.write_table(arrow.table(dict(zip(names, columns, strict=True))), table)
    else:
        mark = "," if form == "csv" else "\t"
        lines = [names, *([("" if cell is None else str(cell)) for cell in row] for row in rows)]
        table.write_text("\ufeff" + "\n".join(mark.join(line) for line in lines) + "\n", encoding="utf-8")
    source = {
        "kind": "manifest",
        "path": str(table),
        "columns": {"path": "file", "label": "class", "group": "patient", "role": "split"},
        "splits": {"train": "pool"},
        "labels": {"1": "tumour"},
    }
    assert listed(source) == [
        ("c.png", "test", "0", "p3"),
        ("x/a.png", "pool", None, "p1"),
        ("x/b.png", "pool", "tumour", "p2"),
    ]


def test_manifest_paths_start_from_the_root(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", 7)
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "m.csv"
    table.write_text("path,label\na.png,TUM\n")
    for root in ("../images", str(tmp_path / "images")):
        source = {"kind": "manifest", "path": str(table), "root": root}
        done = ingest(spec_of(source), tmp_path / "out", allow=anywhere)
        assert [row.key for row in done.samples()] == ["a.png"]
    absolute = tmp_path / "absolute.csv"
    absolute.write_text(f"path,label\n{tmp_path / 'images' / 'a.png'},TUM\n")
    ingest(spec_of({"kind": "manifest", "path": str(absolute)}), tmp_path / "out", allow=anywhere)
    assert PackedImages.open(tmp_path / "out").take(np.array([0]))[0, 0, 0].tolist() == [7, 100, 150]


@pytest.mark.parametrize(
    ("content", "field", "reason"),
    [
        ("path,label\na.png,x\n./a.png,y\n", "sources.0.path", "listed twice"),
        ("file,label\na.png,x\n", "sources.0.columns.path", "no column 'path'; there are file, label"),
        ("path;label\na.png;x\n", "sources.0.columns.path", "it looks separated by ';': a .csv needs commas, a .tsv"),
        ("path\tlabel\na.png\tx\n", "sources.0.columns.path", "it looks separated by a tab: a .csv needs commas"),
        ("path,label\n,x\n", "sources.0.path", "row 1 has no usable path"),
        ("path,label\na/..,x\n", "sources.0.path", "row 1 has no usable path"),
        ("path,label\na.png\n", "sources.0.path", "row 1 has 1 cells"),
        ("path,role\na.png,holdout\n", "sources.0.splits", "no role for the word 'holdout'"),
        ("", "sources.0.path", "is empty"),
        ("path,label\n", "sources.0.path", "no images"),
        ("path,label\na.png,\xff\n", "sources.0.path", "not CSV in UTF-8"),
    ],
)
def test_bad_manifests_are_refused_early(tmp_path: Path, content: str, field: str, reason: str) -> None:
    table = tmp_path / "m.csv"
    table.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidInput, match=reason) as caught:
        check(spec_of({"kind": "manifest", "path": str(table)}), anywhere)
    assert caught.value.field == field


def test_a_manifest_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InvalidInput, match="is not Parquet"):
        check(spec_of({"kind": "manifest", "path": str(tmp_path / "m.parquet")}), anywhere)


@pytest.mark.parametrize("cell", ["../secret.png", "/etc/hostname", "link.png", "linked/../../secret.png"])
def test_manifest_paths_do_not_leave_the_roots(tmp_path: Path, cell: str) -> None:
    root = tmp_path / "data"
    save(tmp_path / "secret.png")
    save(tmp_path / "far" / "away" / "x.png")
    save(root / "a.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "linked").symlink_to(tmp_path / "far" / "away")
    (root / "m.csv").write_text(f"path,label\na.png,x\n{cell},x\n")

    def allow(path: Path) -> None:
        if not path.is_relative_to(root.resolve()):
            raise PathForbidden(str(path), [str(root)])

    with pytest.raises(PathForbidden):
        ingest(spec_of({"kind": "manifest", "path": str(root / "m.csv")}), tmp_path / "out", allow=allow)
    assert not (tmp_path / "out" / "packed.json").exists()


@pytest.mark.parametrize("cell", ["link.png", "sub/link.png", "away/x.png", "back/../../secret.png", "{root}/link.png"])
def test_links_out_of_the_roots_are_refused_at_once(tmp_path: Path, cell: str) -> None:
    root = tmp_path / "data"
    for path in (tmp_path / "secret.png", tmp_path / "far" / "x.png", root / "a.png", root / "sub" / "b.png"):
        save(path)
    for link in (root / "link.png", root / "sub" / "link.png"):
        link.symlink_to(tmp_path / "secret.png")
    (root / "away").symlink_to(tmp_path / "far")
    (root / "back").symlink_to(root / "sub")
    (root / "m.csv").write_text(f"path,label\na.png,x\nback/b.png,x\n{cell.format(root=root)},x\n")

    def allow(path: Path) -> None:
        if not path.is_relative_to(root.resolve()):
            raise PathForbidden(str(path), [str(root)])

    with pytest.raises(PathForbidden):
        check(spec_of({"kind": "manifest", "path": str(root / "m.csv")}), allow)


def test_a_folder_of_a_manifest_is_resolved_once(tmp_path: Path) -> None:
    rows = [f"{folder}/{n}.png" for n in range(200) for folder in ("one", tmp_path / "one")]
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{row},x\n" for row in rows[::2]))
    (tmp_path / "one").mkdir()
    asked: list[Path] = []
    check(spec_of({"kind": "manifest", "path": str(tmp_path / "m.csv")}), asked.append)
    assert len(asked) == 3, "the table, its root, the folder; not each of 200 files"
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{row},x\n" for row in rows))
    with pytest.raises(InvalidInput, match="listed twice"):
        check(spec_of({"kind": "manifest", "path": str(tmp_path / "m.csv")}), anywhere)


def test_a_missing_file_follows_the_policy(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("path,label\na.png,x\ngone.png,x\n")
    spec = spec_of({"kind": "manifest", "path": str(tmp_path / "m.csv")}, on_unreadable="skip")
    done = ingest(spec, tmp_path / "out", allow=anywhere)
    assert done.report["skipped"] == [{"path": "gone.png", "reason": "no such file"}]


def save_npz(path: Path, **arrays: object) -> dict[str, object]:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return {"kind": "npz", "path": str(path)}


def test_an_archive_gives_its_splits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"{name}_images": rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8) for name, n in SPLITS.items()}
    labels = {f"{name}_labels": np.arange(n, dtype=np.uint8)[:, None] % 2 for name, n in SPLITS.items()}
    source = save_npz(tmp_path / "m.npz", **arrays, **labels) | {"labels": {"0": "STR", "1": "TUM"}}
    done = ingest(spec_of(source, shard_size=4), tmp_path / "out", allow=anywhere)
    assert done.counts == {
        "pool": {"STR": 4, "TUM": 3},
        "validation": {"STR": 1, "TUM": 1},
        "test": {"STR": 2, "TUM": 1},
    }
    everything = np.concatenate([arrays[f"{name}_images"] for name in SPLITS])
    assert np.array_equal(PackedImages.open(tmp_path / "out").take(np.arange(12)), everything)
    assert done.packed.keys[0] == "train/000000"


SPLITS = {"train": 7, "val": 2, "test": 3}


@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (3, SIZE, SIZE, 1)])
def test_greyscale_archives_become_rgb(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    source = save_npz(tmp_path / "m.npz", train_images=images, train_labels=np.zeros(3, np.int64))
    done = ingest(spec_of(source), tmp_path / "out", allow=anywhere)
    packed = PackedImages.open(tmp_path / "out").take(np.arange(3))
    assert np.array_equal(packed, np.repeat(images.reshape(3, SIZE, SIZE, 1), 3, axis=3))
    assert done.report["converted"] == {"L": 3}


IMAGES = np.zeros((3, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": IMAGES}, "has no `train_images`"),
        ({"train_images": IMAGES.astype(np.float32)}, "is float32"),
        ({"train_images": IMAGES[0, 0]}, "has shape"),
        ({"train_images": np.asfortranarray(IMAGES)}, "Fortran"),
        ({"train_images": IMAGES, "train_labels": np.zeros((3, 14), int)}, r"of shape \(3, 14\)"),
        ({"train_images": IMAGES, "train_labels": np.zeros(2, int)}, r"of shape \(2,\)"),
        ({"train_images": IMAGES, "train_labels": np.array([{}, {}, {}])}, "allow_pickle|object"),
        ({"fold1_images": IMAGES}, "no role for the split 'fold1'"),
    ],
)
def test_bad_archives_are_refused_early(tmp_path: Path, arrays: dict[str, object], reason: str) -> None:
    source = save_npz(tmp_path / "m.npz", **arrays)
    with pytest.raises(InvalidInput, match=reason):
        check(spec_of(source), anywhere)


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps({"a": 1})])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(InvalidInput, match="cannot be used"):
        check(spec_of({"kind": "npz", "path": str(tmp_path / "m.npz")}), anywhere)


def damage(path: Path, how: str) -> None:
    """Break one member of an archive, each in the way that another reader of it raises on."""
    content = bytearray(path.read_bytes())
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    match how:
        case "deflate":
            start = local + 30 + int.from_bytes(content[local + 26 : local + 28], "little")
            start += int.from_bytes(content[local + 28 : local + 30], "little")
            content[start : start + 8] = b"\xff" * 8
        case "method":
            content[local + 8 : local + 10] = content[central + 10 : central + 12] = b"\x63\x00"
        case _:
            content[local + 6] |= 1
            content[central + 8] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["deflate", "method", "encrypted"])
def test_a_damaged_archive_is_refused(tmp_path: Path, how: str) -> None:
    source = save_npz(tmp_path / "m.npz", train_images=IMAGES, train_labels=np.arange(3))
    damage(tmp_path / "m.npz", how)
    with pytest.raises(InvalidInput, match=r"sources\.0\.path: m\.npz cannot be used"):
        check(spec_of(source), anywhere)


def test_damage_past_the_header_ends_the_ingest_with_a_reason(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)
    source = save_npz(tmp_path / "m.npz", train_images=images, train_labels=np.arange(40))
    content = bytearray((tmp_path / "m.npz").read_bytes())
    content[12_000:12_400] = b"\xff" * 400
    (tmp_path / "m.npz").write_bytes(content)
    check(spec_of(source), anywhere)
    with pytest.raises(InvalidInput, match=r"m\.npz cannot be read to its end"):
        ingest(spec_of(source), tmp_path / "out", allow=anywhere)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive, archive.open("train_images.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**7, SIZE, SIZE, 3)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(InvalidInput, match="that its header promises"):
        check(spec_of({"kind": "npz", "path": str(tmp_path / "m.npz")}), anywhere)


@pytest.mark.parametrize(
    ("more", "roles"),
    [
        ({}, ["pool", "validation", "test"]),
        ({"role": "test"}, ["test", "test", "test"]),
        ({"role": "pool"}, ["pool", "pool", "pool"]),
        ({"role": "test", "splits": {"train": "labelled"}}, ["labelled", "test", "test"]),
        ({"splits": {"val": "pool"}}, ["pool", "pool", "test"]),
    ],
)
def test_a_role_of_an_archive_beats_the_names_of_its_splits(
    tmp_path: Path, more: dict[str, object], roles: list[str]
) -> None:
    arrays = {f"{name}_images": IMAGES[:1] for name in SPLITS} | {f"{name}_labels": np.zeros(1, int) for name in SPLITS}
    source = save_npz(tmp_path / "m.npz", **arrays) | more
    assert [role for _, role, _, _ in listed(source)] == roles
    stored = spec_of(source).model_dump(mode="json")["sources"][0]
    assert [role for _, role, _, _ in listed(stored)] == roles, "a spec that was stored means the same"


@pytest.mark.parametrize("kind", ["folder", "manifest", "npz"])
def test_a_path_that_does_not_exist_is_refused_early(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidInput, match=r"sources\.0\.path: no "):
        check(spec_of({"kind": kind, "path": str(tmp_path / "gone")}), anywhere)


def test_check_knows_draws_and_labels(tmp_path: Path) -> None:
    save(tmp_path / "TUM" / "a.png")
    source = {"kind": "folder", "path": str(tmp_path)}
    with pytest.raises(InvalidInput, match=r"draws\.0\.count"):
        check(spec_of(source, draws=[{"count": 2}]), anywhere)
    with pytest.raises(InvalidInput, match=r"draws\.0\.source"):
        check(spec_of(source, draws=[{"count": 1, "source": 1}]), anywhere)
    with pytest.raises(InvalidInput, match=r"sources\.0\.labels: no sample has the label 'STR'; labels: TUM"):
        check(spec_of(source | {"labels": {"STR": "stroma"}}), anywhere)


def test_a_column_of_names_is_not_taken_for_labels(tmp_path: Path) -> None:
    rows = [f"{n}.png,{n}\n" for n in range(10_000)]
    table = tmp_path / "patches.csv"
    source = {"kind": "manifest", "path": str(table), "columns": {"label": "name"}}
    table.write_text("path,name\nno.png,\n" + "".join(rows))
    check(spec_of(source), anywhere)
    table.write_text("path,name\none-more.png,one more\n" + "".join(rows))
    with pytest.raises(InvalidInput, match=r"sources\.0\.columns\.label: 10001 different labels, .* right column"):
        check(spec_of(source), anywhere)


def test_no_label_reads_as_if_there_were_none(tmp_path: Path) -> None:
    save(tmp_path / "(no label)" / "a.png")
    source = {"kind": "folder", "path": str(tmp_path)}
    with pytest.raises(InvalidInput, match=r"sources\.0\.labels: .*give it another name here"):
        check(spec_of(source), anywhere)
    check(spec_of(source | {"labels": {"(no label)": "unknown"}}), anywhere)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no images"):
        check(spec_of({"kind": "folder", "path": str(tmp_path)}), anywhere)


def test_ingest_reports_progress_repeats_and_stops(tmp_path: Path) -> None:
    tissue = {"kind": "synthetic", "synthetic": {"patches": 30, "slides": 5, "test_slides": 2}}
    spec = spec_of(tissue, draws=[{"count": 4}], shard_size=8)
    seen: list[tuple[int, int]] = []
    first = ingest(spec, tmp_path / "a", allow=anywhere, on_progress=lambda done, total: seen.append((done, total)))
    again = ingest(spec, tmp_path / "b", allow=anywhere)
    assert seen == [(n, 30) for n in range(1, 31)]
    assert (list(first.samples()), json.dumps(first.report)) == (list(again.samples()), json.dumps(again.report))
    assert (tmp_path / "a" / "packed.json").read_bytes() == (tmp_path / "b" / "packed.json").read_bytes()
    with pytest.raises(IngestStopped, match="after 10 of 30"):
        ingest(spec, tmp_path / "c", allow=anywhere, should_stop=iter([*[False] * 10, True]).__next__)
    assert not (tmp_path / "c" / "packed.json").exists()
