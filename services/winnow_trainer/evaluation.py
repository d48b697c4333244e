"""What follows the training of a round: features, the proxy, scores, floors (the paper's Algorithm 2, lines 6 to 8)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from winnow import metrics
from winnow.domain import Arm, derive_seed
from winnow.selection import requirements
from winnow.simclr import Proxy, TrainedRound, fit_proxy, floors, load_encoder
from winnow_trainer.round import Round

FITTED = {
    "labelled": "the same labels fit the picking proxy and the evaluated one",
    "validation": "the evaluated proxy is fitted on the validation labels, the picking one on the labelled",
}


def evaluate(round: Round, trained: TrainedRound) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything that a trained encoder is asked, its answers stored: (metrics, report). Raises TrainingStopped."""
    encoder = load_encoder(round.spec.encoder, trained.state, round.rig.device)
    with round.phase("embed"):
        labelled = round.embed(round.array("labelled"), encoder)
        evaluated = round.embed(round.array("evaluated"), encoder)
        candidates = _embed_candidates(round, encoder)
    with round.phase("proxy"):
        proxy, curve = _fit(round, labelled, evaluated)
    if round.spec.fit_evaluator_on == "labelled":
        evaluator = proxy
    else:
        evaluator, curve = _fit_evaluator(round, encoder, evaluated)
    with round.phase("evaluate"):
        probabilities = evaluator.probabilities(evaluated)
        scores = _score(round, probabilities)
    _keep_features(round, proxy, labelled, probabilities)
    if candidates is not None:
        round.keep_array("candidates/probabilities", proxy.probabilities(candidates))
    return scores, _report(round, trained, curve)


def _embed_candidates(round: Round, encoder: torch.nn.Module) -> NDArray[np.float32] | None:
    """Store what the next batch is picked from. Arms that do not look at features do not pay for them."""
    index = round.array("candidates")
    if not round.job["picks"]:
        return None
    round.keep_array("candidates/index", index)
    needs = requirements(round.spec.arm)
    if not needs.requires:
        return None
    candidates = round.embed(index, encoder)
    round.keep_array("candidates/embeddings", candidates)
    if "centers" in needs.reads:
        selected = round.array("selected")
        round.keep_array("selected/index", selected)
        round.keep_array("selected/embeddings", round.embed(selected, encoder))
    return candidates


def _fit_evaluator(
    round: Round, encoder: torch.nn.Module, evaluated: NDArray[np.float32]
) -> tuple[Proxy, list[dict[str, Any]]]:
    """A proxy of its own for the metrics, fitted on labels that the picks never saw."""
    with round.phase("embed"):
        features = round.embed(round.array("fitted"), encoder)
    with round.phase("proxy"):
        evaluator, curve = _fit(round, features, evaluated, role="fitted")
    round.keep_array("fitted/index", round.array("fitted"))
    round.keep_array("fitted/embeddings", features)
    evaluator.save(round.scratch / "evaluator.safetensors")
    round.keep_file("evaluator", round.scratch / "evaluator.safetensors")
    return evaluator, curve


def _fit(
    round: Round, features: NDArray[np.float32], evaluated: NDArray[np.float32], role: str = "labelled"
) -> tuple[Proxy, list[dict[str, Any]]]:
    """The proxy; for the full arm also its scores along the way, as the paper's benchmark reports them."""
    spec, curve = round.spec, list[dict[str, Any]]()
    full = spec.arm is Arm.FULL

    def look(epoch: int, proxy: Proxy) -> None:
        round.go_on()
        if full and epoch % spec.proxy.full_evaluate_every == 0:
            scores = _score(round, proxy.probabilities(evaluated))
            curve.append({"epoch": epoch, "f1": scores["f1"], "macro_f1": scores["macro_f1"]})

    proxy = fit_proxy(
        features,
        round.targets(role),
        classes=len(round.classes),
        spec=spec.proxy,
        seed=derive_seed(spec.seed, "proxy", round.job["number"]),
        epochs=spec.proxy_epochs,
        on_epoch=look,
    )
    return proxy, curve


def _score(round: Round, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    targets = round.targets("evaluated")
    return metrics.score(probabilities, targets, classes=round.classes, positive=round.spec.positive_class)


def _keep_features(
    round: Round, proxy: Proxy, labelled: NDArray[np.float32], probabilities: NDArray[np.float32]
) -> None:
    round.keep_array("labelled/index", round.array("labelled"))
    round.keep_array("labelled/embeddings", labelled)
    round.keep_array("evaluated/index", round.array("evaluated"))
    round.keep_array("evaluated/probabilities", probabilities)
    proxy.save(round.scratch / "proxy.safetensors")
    round.keep_file("proxy", round.scratch / "proxy.safetensors")


def _report(round: Round, trained: TrainedRound, curve: list[dict[str, Any]]) -> dict[str, Any]:
    report: dict[str, Any] = {
        "losses": trained.losses,
        "images_per_second": _rounded(trained.images_per_second),
        "waiting_share": _rounded(trained.waiting_share),
        "labelled": len(round.array("labelled")),
        "evaluated": len(round.array("evaluated")),
        "candidates": len(round.array("candidates")),
        "fitted": len(round.array("fitted")),
        "device": round.rig.device,
        "notes": [*round.notes, *round.rig.notes, FITTED[round.spec.fit_evaluator_on]],
    }
    if curve:
        report["proxy_curve"] = curve
    if round.spec.floors and round.job["number"] == 0:
        report["floors"] = _floors(round)
    return report


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _floors(round: Round) -> dict[str, Any]:
    round.go_on()
    fitted, evaluated = round.array("fitted"), round.array("evaluated")
    targets, count, spec = round.targets("fitted"), len(round.classes), round.spec
    colour = floors.colour_histogram_floor(
        round.images, fitted, targets, evaluated, classes=count, seed=derive_seed(spec.seed, "floor")
    )
    round.go_on()
    untrained = floors.untrained_floor(
        round.images, fitted, targets, evaluated, classes=count, spec=spec, rig=round.rig
    )
    return {"colour_histogram": _score(round, colour), "untrained_encoder": _score(round, untrained)}
