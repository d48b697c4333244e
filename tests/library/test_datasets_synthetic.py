"""Synthetic tissue: repeatable to the byte, coloured like H&E, and not to be told apart by colour alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from winnow.datasets import synthetic
from winnow.datasets.sources import list_sources
from winnow.domain import TISSUE_TYPES, DatasetSpec, Role, SyntheticTissue

SIZE = 64
TISSUE = SyntheticTissue(patches=360, slides=6, seed=3)


@pytest.fixture(scope="module")
def drawn() -> tuple[NDArray[np.uint8], NDArray[np.str_], NDArray[np.int64]]:
    labels, slides = synthetic.layout(TISSUE)
    images = np.stack([synthetic.draw(TISSUE, index, SIZE) for index in range(TISSUE.patches)])
    return images, np.array(labels), np.array(slides)


def density(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean optical density by channel, (n, 3)."""
    return -np.log10(np.maximum(images, 1) / 245).reshape(len(images), -1, 3).mean(axis=1)


def test_a_patch_is_the_same_however_many_there_are() -> None:
    short = SyntheticTissue(patches=20, slides=6, seed=3)
    labels, slides = synthetic.layout(TISSUE)
    assert synthetic.layout(short) == (labels[:20], slides[:20])
    for index in (0, 7, 19):
        assert np.array_equal(synthetic.draw(short, index, 32), synthetic.draw(TISSUE, index, 32))


def test_seeds_and_patches_differ() -> None:
    other = SyntheticTissue(patches=360, slides=6, seed=4)
    assert not np.array_equal(synthetic.draw(other, 0, 32), synthetic.draw(TISSUE, 0, 32))
    assert not np.array_equal(synthetic.draw(TISSUE, 1, 32), synthetic.draw(TISSUE, 0, 32))
    with pytest.raises(IndexError):
        synthetic.draw(TISSUE, 360, 32)


def test_types_follow_the_balance() -> None:
    even = Counter(synthetic.layout(SyntheticTissue(patches=900))[0])
    assert set(even) == set(TISSUE_TYPES)
    assert all(abs(count - 100) <= 3 for count in even.values())
    rare = SyntheticTissue(patches=1000, balance=dict.fromkeys(TISSUE_TYPES, 0.0) | {"TUM": 0.1, "STR": 0.9})
    assert Counter(synthetic.layout(rare)[0])["TUM"] == pytest.approx(100, abs=3)
    assert set(synthetic.layout(rare)[0]) == {"TUM", "STR"}


def test_every_slide_has_every_type() -> None:
    labels, slides = synthetic.layout(SyntheticTissue(patches=2000, slides=10))
    table = Counter(zip(slides, labels, strict=True))
    assert len(table) == 90
    assert Counter(slides) == dict.fromkeys(range(10), 200)


@pytest.mark.parametrize("balance", [{"FOO": 1.0}, {"TUM": -1.0}, dict.fromkeys(TISSUE_TYPES, 0.0), {"TUM": np.inf}])
def test_impossible_balances_are_refused(balance: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="balance"):
        SyntheticTissue(balance=balance)


@pytest.mark.parametrize("change", [{"patches": 200_001}, {"slides": 10_001}])
def test_more_than_a_coordinator_could_list_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="less than or equal to"):
        SyntheticTissue.model_validate(change)


def test_test_slides_are_held_out_whole() -> None:
    tissue = {"patches": 60, "slides": 6, "test_slides": 2}
    spec = DatasetSpec.model_validate({"name": "d", "sources": [{"kind": "synthetic", "synthetic": tissue}]})
    found = list_sources(spec, allow=lambda path: None).entries
    sides = {role: {entry.group for entry in found if entry.role is role} for role in (Role.POOL, Role.TEST)}
    assert sides[Role.TEST] == {"slide-004", "slide-005"}
    assert len(sides[Role.POOL]) == 4
    assert not sides[Role.POOL] & sides[Role.TEST]
    with pytest.raises(ValueError, match="leave none for the pool"):
        SyntheticTissue(slides=2, test_slides=2)


def test_one_default_tissue_needs_no_numbers(tmp_path: Path) -> None:
    spec = DatasetSpec.model_validate({"name": "d", "sources": [{"kind": "synthetic"}]})
    assert len(list_sources(spec, allow=lambda path: None).entries) == 2000


@pytest.mark.parametrize("size", [8, 32, 50, 96])
def test_any_size_is_drawn(size: int) -> None:
    for index in range(18):
        patch = synthetic.draw(TISSUE, index, size)
        assert (patch.shape, patch.dtype) == ((size, size, 3), np.uint8)


def test_stain_vectors_are_those_of_haematoxylin_and_eosin() -> None:
    for slide in range(6):
        stain = synthetic.stain_of(TISSUE, slide)
        assert np.allclose(np.linalg.norm(stain.vectors, axis=1), 1)
        for vector, reference in zip(stain.vectors, synthetic.RUIFROK, strict=True):
            cosine = vector @ reference / np.linalg.norm(reference)
            assert cosine > 0.8
        assert stain.vectors[0, 0] > stain.vectors[1, 0], "haematoxylin takes more red than eosin"


def test_colours_are_those_of_the_tissue(drawn: tuple[NDArray[np.uint8], NDArray[np.str_], NDArray[np.int64]]) -> None:
    images, labels, _ = drawn
    mean = {name: density(images[labels == name]).mean(axis=0) for name in TISSUE_TYPES}
    total = {name: float(value.sum()) for name, value in mean.items()}
    assert total["BACK"] < total["ADI"] < total["MUC"] < total["STR"] < total["MUS"]
    assert min(total["LYM"], total["TUM"]) > total["NORM"]
    for name, value in mean.items():
        if name != "BACK":
            assert value[1] == value.max(), f"{name}: green is taken most, by both stains"
    blue = {name: value[0] / value[1] for name, value in mean.items()}
    assert min(blue["LYM"], blue["TUM"], blue["MUC"]) > max(blue["MUS"], blue["STR"]), "nuclei are blue, fibres pink"


def test_slides_differ_in_stain(drawn: tuple[NDArray[np.uint8], NDArray[np.str_], NDArray[np.int64]]) -> None:
    images, labels, slides = drawn
    tumour = density(images[labels == "TUM"])
    by_slide = np.stack([tumour[slides[labels == "TUM"] == slide].mean(axis=0) for slide in range(6)])
    assert (by_slide.std(axis=0) > 0.02).all()


def test_colour_alone_tells_much_but_not_all(
    drawn: tuple[NDArray[np.uint8], NDArray[np.str_], NDArray[np.int64]],
) -> None:
    images, labels, slides = drawn
    histograms = np.stack([np.histogramdd(image.reshape(-1, 3), 6, [(0, 256)] * 3)[0].ravel() for image in images])
    histograms = np.sqrt(histograms / histograms.sum(axis=1, keepdims=True))
    seen = slides < 4
    nearest = (histograms[~seen] @ histograms[seen].T).argmax(axis=1)
    right = labels[seen][nearest] == labels[~seen]
    assert 0.4 < right.mean() < 0.95, "nearest neighbour by colour, on slides it has not seen"
