"""Bad images, one by one, under both policies: named with a reason, or skipped and listed; never dropped silently."""

import hashlib
import io
import os
import struct
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from library.packs import ingest
from PIL import Image

from winnow.datasets import SKIPPED_LISTED, PackedImages, check
from winnow.datasets.decode import DECODER, FilePicture, Unreadable, resolve
from winnow.domain import DatasetSpec
from winnow.errors import ImagesUnreadable, InvalidInput, PathForbidden

SIZE = 16


def anywhere(path: Path) -> None:
    """Allow every path."""


def patch(seed: int = 0, size: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def flipped(content: bytes) -> bytes:
    """One byte in the middle of the pixels is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def bomb(width: int = 20_000, height: int = 20_000) -> bytes:
    """A PNG of a few bytes whose header promises 400 million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def grey16(form: str) -> bytes:
    return encoded(Image.fromarray(np.full((SIZE, SIZE), 40_000, np.uint16)), form)


def rgb16_png() -> bytes:
    """16 bits a channel: Pillow alone would cut it to 8 without a word."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + b"\x12\x34" * 3 * SIZE for _ in range(SIZE))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


BAD = {
    "broken.png": (flipped(encoded(patch())), "broken or truncated"),
    "truncated.png": (encoded(patch())[:300], "broken or truncated"),
    "truncated.jpg": (encoded(patch(size=64), "JPEG")[:-600], "broken or truncated"),
    "truncated.tif": (encoded(patch(), "TIFF")[:300], "broken or truncated|not a PNG"),
    "empty.png": (b"", "empty file"),
    "text.png": (b"these are not pixels", "not a PNG, JPEG or TIFF image"),
    "notes.txt": (b"scanner notes", "not a PNG, JPEG or TIFF file name"),
    "gif.png": (encoded(patch(), "GIF"), "not a PNG, JPEG or TIFF image"),
    "deep.png": (grey16("PNG"), "16-bit .*convert to 8-bit RGB"),
    "deep.tif": (grey16("TIFF"), "16-bit .*convert to 8-bit RGB"),
    "deep-rgb.png": (rgb16_png(), "16-bit .*convert to 8-bit RGB"),
    "float.tif": (encoded(Image.fromarray(np.zeros((SIZE, SIZE), np.float32)), "TIFF"), "32-bit"),
    "one.png": (encoded(patch(size=1)), "too small: 1x1"),
    "bomb.png": (bomb(), "too large"),
    "big.png": (bomb(3000, 2000), r"too large: 3000x2000 is above 1000000 pixels"),
}


def folder_with(root: Path, files: dict[str, bytes], good: int = 3) -> Path:
    (root / "TUM").mkdir(parents=True)
    for number in range(good):
        patch(number).save(root / "TUM" / f"good-{number}.png")
    for name, content in files.items():
        (root / "TUM" / name).write_bytes(content)
    return root


def spec_of(folder: Path, **more: object) -> DatasetSpec:
    given = {"name": "d", "sources": [{"kind": "folder", "path": str(folder)}], "image_size": SIZE} | more
    return DatasetSpec.model_validate(given)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_fails_the_ingest_with_its_name_and_reason(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    spec = spec_of(folder_with(tmp_path / "in", {name: content}), max_pixels=1_000_000)
    with pytest.raises(ImagesUnreadable, match=reason) as caught:
        ingest(spec, tmp_path / "out", allow=anywhere)
    assert [path for path, _ in caught.value.problems] == [f"TUM/{name}"]
    assert not (tmp_path / "out").exists()


def test_bad_files_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    files = {name: content for name, (content, _) in BAD.items()}
    spec = spec_of(folder_with(tmp_path / "in", files), max_pixels=1_000_000, on_unreadable="skip")
    done = ingest(spec, tmp_path / "out", allow=anywhere)
    assert [row.key for row in done.samples()] == [f"TUM/good-{n}.png" for n in range(3)]
    assert {problem["path"] for problem in done.report["skipped"]} == {f"TUM/{name}" for name in BAD}
    assert done.report["read"] == done.report["packed"] + len(done.report["skipped"]) == 3 + len(BAD)
    packed = PackedImages.open(tmp_path / "out").take(np.arange(3))
    assert np.array_equal(packed, [np.asarray(patch(n)) for n in range(3)])


def test_the_report_names_the_first_of_many_and_counts_all(tmp_path: Path) -> None:
    files = {f"torn-{n:03d}.png": b"torn" for n in range(SKIPPED_LISTED + 3)}
    done = ingest(spec_of(folder_with(tmp_path / "in", files), on_unreadable="skip"), tmp_path / "out", allow=anywhere)
    keys = [f"TUM/{name}" for name in sorted(files)]
    assert [key for key, _ in done.skipped] == keys
    assert [problem["path"] for problem in done.report["skipped"]] == keys[:SKIPPED_LISTED]
    assert (done.report["skipped_count"], done.report["packed"]) == (len(files), 3)


def test_where_too_little_is_left_the_error_says_what_was_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "TUM"
    folder.mkdir(parents=True)
    for n in range(8):
        (folder / f"e{n}.png").touch()
    with pytest.raises(InvalidInput, match=r"pool is empty.*8 of 8 images could not be read.*; TUM/e0.png: "):
        ingest(spec_of(tmp_path / "in", on_unreadable="skip"), tmp_path / "out", allow=anywhere)


def test_the_error_names_the_first_ten_and_counts_the_rest(tmp_path: Path) -> None:
    spec = spec_of(folder_with(tmp_path / "in", {f"e{n:02d}.png": b"" for n in range(14)}))
    with pytest.raises(ImagesUnreadable, match=r"14 unreadable: TUM/e00.png.*TUM/e09.png.* and 4 more"):
        ingest(spec, tmp_path / "out", allow=anywhere)


def test_other_modes_are_converted_and_counted(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 0))
    palette = patch().convert("P")
    keyed = encoded(Image.new("RGB", (SIZE, SIZE), (9, 8, 7)).quantize(2), transparency=0)
    frames = encoded(patch(1), "TIFF", save_all=True, append_images=[patch(2)])
    files = {
        "cmyk.tif": encoded(patch().convert("CMYK"), "TIFF"),
        "rgba.png": encoded(clear),
        "palette.png": encoded(palette),
        "keyed.png": keyed,
        "grey.JPEG": encoded(patch().convert("L"), "JPEG"),
        "frames.TIFF": frames,
    }
    done = ingest(spec_of(folder_with(tmp_path / "in", files, good=0)), tmp_path / "out", allow=anywhere)
    assert done.report["converted"] == {"P": 2, "CMYK": 1, "L": 1, "RGBA": 1}
    assert done.report["multi_frame"] == 1
    rows = {row.key: row.idx for row in done.samples()}
    images = PackedImages.open(tmp_path / "out")
    for name in ("TUM/rgba.png", "TUM/keyed.png"):
        assert (images.take(np.array([rows[name]])) == 255).all(), f"{name}: transparent pixels become white"
    assert np.array_equal(images.take(np.array([rows["TUM/frames.TIFF"]]))[0], np.asarray(patch(1)))
    grey = images.take(np.array([rows["TUM/grey.JPEG"]]))[0]
    assert (grey[..., 0] == grey[..., 1]).all()


def test_other_sizes_are_resized_and_counted(tmp_path: Path) -> None:
    flat = Image.new("RGB", (40, 20), (200, 100, 150))
    files = {"wide.png": encoded(flat), "wide2.png": encoded(flat), "small.png": encoded(patch(size=8))}
    done = ingest(spec_of(folder_with(tmp_path / "in", files)), tmp_path / "out", allow=anywhere)
    assert done.report["resized"] == {"40x20": 2, "8x8": 1}
    assert done.report["duplicates"] == {"count": 1, "across_roles": 0, "examples": [["TUM/wide.png", "TUM/wide2.png"]]}
    wide = PackedImages.open(tmp_path / "out").take(np.array([4]))
    assert (wide == (200, 100, 150)).all()


def test_downscaling_is_antialiased(tmp_path: Path) -> None:
    lines = np.zeros((128, 128, 3), np.uint8)
    lines[:, ::2] = 255
    files = {"lines.png": encoded(Image.fromarray(lines))}
    ingest(spec_of(folder_with(tmp_path / "in", files, good=0)), tmp_path / "out", allow=anywhere)
    middle = PackedImages.open(tmp_path / "out").take(np.array([0]))[0, 2:-2, 2:-2]
    assert abs(middle.astype(int) - 127).max() <= 8


def test_files_that_are_no_files_are_problems(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "in", {})
    os.mkfifo(root / "TUM" / "pipe.png")
    (root / "TUM" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "TUM" / "self.png").symlink_to(root / "TUM" / "self.png")
    done = ingest(spec_of(root, on_unreadable="skip"), tmp_path / "out", allow=anywhere)
    reasons = {problem["path"]: problem["reason"] for problem in done.report["skipped"]}
    assert reasons["TUM/pipe.png"] == "not a regular file"
    assert reasons["TUM/gone.png"] == "no such file"
    assert "TUM/self.png" in reasons


def test_debris_of_desktops_is_ignored(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "in", {".DS_Store": b"x", "Thumbs.db": b"x", "._good-0.png": b"x"})
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "x.png").write_bytes(b"x")
    done = ingest(spec_of(root), tmp_path / "out", allow=anywhere)
    assert (done.report["read"], done.report["skipped"]) == (3, [])


def test_a_symlink_out_of_the_root_is_refused_early_and_late(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "data", {})
    patch(9).save(tmp_path / "secret.png")
    (root / "TUM" / "way-out.png").symlink_to(tmp_path / "secret.png")

    def allow(path: Path) -> None:
        if not path.is_relative_to(root.resolve()):
            raise PathForbidden(str(path), [str(root)])

    for act in (lambda: check(spec_of(root), allow), lambda: ingest(spec_of(root), tmp_path / "out", allow=allow)):
        with pytest.raises(PathForbidden, match=r"secret\.png"):
            act()
    with pytest.raises(PathForbidden):
        check(spec_of(root / ".." / "elsewhere"), allow)


def test_a_folder_that_links_to_itself_is_refused(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "in", {})
    (root / "TUM" / "again").symlink_to(root)
    with pytest.raises(InvalidInput, match="links back"):
        check(spec_of(root), anywhere)


def test_resolve_names_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="cannot be resolved"):
        resolve(Path("a\0b"))


def test_patches_come_out_as_they_did(tmp_path: Path) -> None:
    """Where this fails an image makes another patch than before: raise DECODER, and write the new digest here."""
    rng, seen = np.random.default_rng(5), hashlib.sha256()
    for mode, size in product(("RGB", "L", "P", "LA", "RGBA", "1", "CMYK"), ((8, 8), (31, 17), (9, 40))):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode)
        image.save(tmp_path / "image.tif")
        seen.update(FilePicture(tmp_path / "image.tif", anywhere, max_pixels=10_000).read(16).pixels.tobytes())
    assert (DECODER, seen.hexdigest()[:16]) == (1, "28dac0ba82dd20a6")
