"""The proxy, embeddings and floors; and that training on tissue beats the untrained encoder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from library.arrays import tissue

from winnow import metrics
from winnow.domain import ExperimentSpec, ProxySpec, derive_seed
from winnow.errors import InvalidInput
from winnow.simclr import Proxy, Rig, embed, fit_proxy, floors, load_encoder, train_round, untrained_encoder
from winnow.simclr.embed import one_behind


def clouds(classes: int, n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    centres = np.eye(classes, 6) * 6
    return (centres[labels] + random.normal(size=(n, 6))).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("standardise", [False, True])
def test_it_tells_clouds_apart(classes: int, standardise: bool) -> None:
    features, labels = clouds(classes)
    proxy = fit_proxy(
        features, labels, classes=classes, spec=ProxySpec(learning_rate=0.05, standardise=standardise), seed=0
    )
    probabilities = proxy.probabilities(features)
    assert probabilities.shape == (len(labels), classes)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert (probabilities.argmax(1) == labels).mean() > 0.95
    assert len(proxy.weights) == (1 if classes == 2 else classes)


def test_a_seed_repeats_and_a_file_round_trips(tmp_path: Path) -> None:
    features, labels = clouds(3)
    first, second, other = (fit_proxy(features, labels, classes=3, spec=ProxySpec(), seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.weights, second.weights)
    assert not np.array_equal(first.weights, other.weights)
    first.save(tmp_path / "proxy.safetensors")
    loaded = Proxy.load(tmp_path / "proxy.safetensors")
    assert np.array_equal(loaded.probabilities(features), first.probabilities(features))


def test_a_feature_that_never_varies_is_no_trouble() -> None:
    features, labels = clouds(2)
    features[:, 3] = 7.0
    proxy = fit_proxy(features, labels, classes=2, spec=ProxySpec(standardise=True), seed=0)
    assert np.isfinite(proxy.probabilities(features)).all()


def test_extreme_logits_stay_finite() -> None:
    proxy = Proxy(np.full((1, 2), 1e4, np.float32), np.zeros(1, np.float32), np.zeros(2), np.ones(2))  # type: ignore[arg-type]
    assert proxy.probabilities(np.ones((1, 2), np.float32)).tolist() == [[0.0, 1.0]]


def test_one_class_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one class"):
        fit_proxy(np.ones((5, 3), np.float32), np.ones(5, np.int64), classes=2, spec=ProxySpec(), seed=0)


def test_epochs_are_reported_one_by_one() -> None:
    features, labels = clouds(2)
    seen: list[int] = []
    fit_proxy(features, labels, classes=2, spec=ProxySpec(epochs=4), seed=0, on_epoch=lambda n, _: seen.append(n))
    assert seen == [1, 2, 3, 4]


SPEC = ExperimentSpec.model_validate(
    {
        "name": "t",
        "dataset": "t",
        "positive_class": "TUM",
        "budget": 5,
        "simclr": {"epochs": 12, "batch_size": 32, "learning_rate": 1e-3},
        "proxy": {"task": "classes", "standardise": True, "epochs": 100, "learning_rate": 1e-2},
    }
)


def test_embedding_keeps_order_and_writes_a_memmap(tmp_path: Path) -> None:
    images, _ = tissue(12, 32)
    encoder = untrained_encoder(SPEC.encoder, 0, "cpu")
    indices = np.array([5, 1, 9, 0, 3], np.int64)
    whole = embed(encoder, images, indices, batch_size=2, out=tmp_path / "h.npy")
    assert whole.shape == (5, 512) and whole.dtype == np.float32
    assert np.allclose(embed(encoder, images, indices), whole, atol=1e-4)
    assert np.array_equal(np.load(tmp_path / "h.npy", allow_pickle=False), whole)
    assert embed(encoder, images, indices[:0]).shape == (0, 512)


def test_where_memory_runs_out_fewer_images_are_embedded_at_a_time(tmp_path: Path) -> None:
    """On a device that holds one pass of 40 images in three, and any of 20; and on one that holds none."""
    images, taken = tissue(150, 32)[0], list[int]()
    indices = np.arange(150, dtype=np.int64)[::-1].copy()
    encoder = untrained_encoder(SPEC.encoder, 0, "cpu")
    whole = embed(encoder, images, indices)

    def bear(_: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        taken.append(len(given[0]))
        if len(given[0]) > 20 and taken.count(40) != 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    hook, rig = encoder.register_forward_pre_hook(bear), Rig()
    found = embed(encoder, images, indices, rig=rig, batch_size=40, out=tmp_path / "h.npy")
    assert taken == [1, 40, 40, 20, 20, 20, 20, 20, 20, 20, 10] and np.allclose(found, whole, atol=1e-4)
    assert rig.notes == ["out of memory: features are made of 20 images at a time"]
    hook.remove()
    encoder.register_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="unable to find an engine"):
        embed(encoder, images, indices, batch_size=40)


def refuse(_: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
    if len(given[0]) > 1:
        raise RuntimeError("GET was unable to find an engine to execute this computation")


def test_a_batch_is_asked_for_when_the_next_one_was_started() -> None:
    done: list[str] = []

    def start(name: str) -> Callable[[], str]:
        done.append(f"start {name}")
        return lambda: (done.append(f"finish {name}"), name)[1]

    assert list(one_behind(start(name) for name in "abc")) == ["a", "b", "c"]
    assert done == ["start a", "start b", "finish a", "start c", "finish b", "finish c"]


def test_the_floor_is_the_arms_own_proxy() -> None:
    images, names = tissue(60, 32)
    labels, every = np.array([name == "TUM" for name in names], np.int64), np.arange(60, dtype=np.int64)
    encoder = untrained_encoder(SPEC.encoder, derive_seed(SPEC.seed, "weights"), "cpu")
    features = embed(encoder, images, every)
    for arm, epochs in (("entropy", 2), ("full", 5)):
        proxy = {"task": "positive", "epochs": 2, "full_epochs": 5}
        spec = ExperimentSpec.model_validate(SPEC.model_dump() | {"arm": arm, "proxy": proxy})
        floor = floors.untrained_floor(images, every, labels, every, classes=2, spec=spec)
        seed = derive_seed(spec.seed, "floor")
        same = fit_proxy(features, labels, classes=2, spec=spec.proxy, seed=seed, epochs=epochs)
        assert np.array_equal(floor, same.probabilities(features))


def test_training_on_tissue_beats_the_untrained_encoder(tmp_path: Path) -> None:
    """Over several seeds: of one, twelve epochs on 200 patches may end worse than none, as the rounding has it."""
    images, names = tissue(1200, 32)
    classes = sorted(set(names))
    labels = np.array([classes.index(name) for name in names])
    every = np.arange(1200, dtype=np.int64)
    pool, labelled, test = every[:200], every[200:300], every[300:]

    def score(probabilities: np.ndarray) -> float:
        return metrics.score(probabilities, labels[test], classes=classes, positive="TUM")["macro_f1"]

    learned, untrained = [], []
    for seed in range(5):
        spec = SPEC.model_copy(update={"seed": seed})
        trained = train_round(images, pool, spec=spec, number=0, workspace=tmp_path / str(seed), start=None)
        encoder = load_encoder(spec.encoder, trained.state, "cpu")
        features = embed(encoder, images, labelled)
        proxy = fit_proxy(features, labels[labelled], classes=len(classes), spec=spec.proxy, seed=0)
        learned.append(score(proxy.probabilities(embed(encoder, images, test))))
        floor = floors.untrained_floor(images, labelled, labels[labelled], test, classes=len(classes), spec=spec)
        untrained.append(score(floor))
    assert np.mean(learned) > np.mean(untrained), (learned, untrained)
    histogram = floors.colour_histogram_floor(images, labelled, labels[labelled], test, classes=len(classes))
    assert score(histogram) > 1.5 / len(classes), "colour alone tells tissue apart better than chance"
