"""Files that were damaged at random: a clear error or a result, never a crash, a hang, or memory beyond the limit."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.reader import Reader
from fuzz.scale import played, report
from fuzz.specimens import Specimen, patch, specimens
from hypothesis import given
from hypothesis import strategies as st

FILES = specimens()
KINDS = sorted({(reader, suffix) for reader, suffix, _ in FILES})
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = [b"\0", b"nan", b"-1", b"1e999", b"9" * 5000, b"\xff\xfe", b"\xed\xa0\x80", b"..", b'"', b"'", b"&a", b"*a"]


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    opened = Reader()
    yield opened
    opened.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the images that manifests name."""
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(patch())
    return tmp_path


@st.composite
def damages(draw: st.DrawFn, of: list[Specimen]) -> Specimen:
    """A file with one to four changes: bits, numbers, words, pieces cut, doubled or taken from another file."""
    reader, suffix, data = draw(st.sampled_from(of))
    for _ in range(draw(st.integers(1, 4))):
        data = _damage(draw, data, draw(st.sampled_from(of))[2])
    return reader, suffix, data


def _damage(draw: st.DrawFn, data: bytes, other: bytes) -> bytes:  # noqa: PLR0911 - one for each kind of damage
    at = draw(st.integers(0, len(data)))
    length = draw(st.integers(1, 64))
    match draw(st.sampled_from(["bit", "byte", "number", "word", "cut", "end", "double", "splice"])):
        case "bit":
            return _over(data, at, bytes([(data[at : at + 1] or b"\0")[0] ^ 1 << draw(st.integers(0, 7))]))
        case "byte":
            return _over(data, at, draw(st.binary(min_size=1, max_size=4)))
        case "number":
            width = draw(st.sampled_from([2, 4, 8]))
            number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * width)
            return _over(data, at, number.to_bytes(width, draw(st.sampled_from(["little", "big"]))))
        case "word":
            return data[:at] + draw(st.sampled_from(WORDS)) + data[at:]
        case "cut":
            return data[:at] + data[at + length :]
        case "end":
            return data[:at]
        case "double":
            return data[:at] + data[at : at + length] * 2 + data[at + length :]
        case _:
            return data[:at] + other[at : at + length] + data[at + length :]


def _over(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(("kind", "suffix"), KINDS, ids=[f"{kind}{suffix}" for kind, suffix in KINDS])
def test_a_damaged_file_is_read_or_refused(kind: str, suffix: str, reader: Reader, place: Path) -> None:
    mine = [one for one in FILES if one[:2] == (kind, suffix)]
    numbers = itertools.count()
    verdicts: Counter[str] = Counter()

    @played(40)
    @given(damages(mine))
    def damaged(specimen: Specimen) -> None:
        path = place / f"{next(numbers)}{suffix}"  # a new name: nothing that is remembered of the last one
        path.write_bytes(specimen[2])
        verdict = reader.read(kind, path)
        path.unlink()
        verdicts[verdict.kind] += 1
        assert verdict.is_sound, f"{verdict.kind}: {verdict.text}"

    try:
        damaged()
    finally:
        report(f"reader of {kind}, {suffix}", cases=verdicts.total(), **verdicts)


@pytest.mark.parametrize("number", range(len(FILES)), ids=[f"{n}-{one[0]}{one[1]}" for n, one in enumerate(FILES)])
def test_each_whole_file_is_read(number: int, reader: Reader, place: Path) -> None:
    kind, suffix, data = FILES[number]
    (path := place / f"one{suffix}").write_bytes(data)
    verdict = reader.read(kind, path)
    assert verdict.kind == "read", verdict
