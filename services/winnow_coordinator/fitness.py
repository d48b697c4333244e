"""Whether an experiment's spec fits its dataset: what can be refused before anything is trained."""

from dataclasses import dataclass

from winnow.datasets import NO_LABEL
from winnow.domain import Arm, DatasetStatus, ExperimentSpec, Role, allowed_from
from winnow.errors import InvalidInput, WrongState
from winnow.store.tables import Dataset

MIN_IMAGE_SIZE = 32
"""Pixels a side below which a ResNet, which halves its input five times, has nothing left to see."""


class DatasetNotReady(WrongState):
    """The dataset is still ingested, its ingest failed, or it is being removed. `need`: what it should be ready for."""

    def __init__(self, dataset: Dataset, need: str) -> None:
        current = DatasetStatus(dataset.status)
        hint = "wait until it is ready"
        if current is DatasetStatus.FAILED:
            hint = dataset.error or "unknown reason"
        if current is DatasetStatus.REMOVING:
            hint = "somebody removes it; add it again once it is gone"
        words = f"dataset {dataset.name} is {current}, {need}: {hint}"
        super().__init__("dataset", dataset.name, current, DatasetStatus.READY, allowed_from(current), words=words)


Labels = dict[str | None, int]
"""Samples by label; None: no label."""


@dataclass(frozen=True)
class Stock:
    """Samples by label of the roles that an experiment uses."""

    name: str
    classes: list[str]
    image_size: int
    pool: Labels
    labelled: Labels
    fitted: Labels
    evaluated: Labels

    @property
    def pool_size(self) -> int:
        return sum(self.pool.values())


def require_ready(dataset: Dataset, need: str = "an experiment needs it ready") -> None:
    """Raise DatasetNotReady."""
    if dataset.status != DatasetStatus.READY:
        raise DatasetNotReady(dataset, need)


def take_stock(dataset: Dataset, spec: ExperimentSpec) -> Stock:
    """What a ready `dataset` has for `spec`, as its ingest counted it."""

    def count(role: str) -> Labels:
        by_label: dict[str, int] = dataset.counts.get(role, {})
        return {None if label == NO_LABEL else label: found for label, found in by_label.items()}

    return Stock(
        name=dataset.name,
        classes=dataset.classes,
        image_size=dataset.spec["image_size"],
        pool=count(Role.POOL),
        labelled=count(Role.LABELLED),
        fitted=count(spec.fit_evaluator_on),
        evaluated=count(spec.evaluate_on),
    )


def require_fit(spec: ExperimentSpec, stock: Stock) -> None:
    """Raise InvalidInput, with the spec's field, for whatever could only fail later."""
    _require_size(spec, stock)
    require_pool(spec, stock.name, stock.pool_size)
    _require_strata(spec, stock)
    _require_positive_class(spec, stock)
    _require_labels(spec, stock)


def _require_size(spec: ExperimentSpec, stock: Stock) -> None:
    if stock.image_size < MIN_IMAGE_SIZE:
        size = f"{stock.name} is packed at {stock.image_size} pixels"
        raise InvalidInput("dataset", f"{size}; {spec.encoder.name} needs {MIN_IMAGE_SIZE} or more")


def require_pool(spec: ExperimentSpec, name: str, pool: int) -> None:
    """Raise InvalidInput, with the spec's field, where the dataset `name` with so many pool samples has too few."""
    if pool == 0:
        raise InvalidInput("dataset", f"{name} has no samples with the role pool")
    if spec.arm is not Arm.FULL:
        _require_budget(spec, name, pool)
    first = pool if spec.arm is Arm.FULL else spec.budget
    if first < 2:
        raise InvalidInput("budget", "contrastive training needs 2 or more samples: the others are the negatives")
    if spec.simclr.drop_last and first < spec.simclr.batch_size:
        reason = f"with drop_last, {first} samples make no batch of {spec.simclr.batch_size}"
        raise InvalidInput("simclr.batch_size", reason)


def _require_budget(spec: ExperimentSpec, name: str, pool: int) -> None:
    needed = spec.rounds * spec.budget
    if needed <= pool:
        return
    reason = f"{spec.rounds} rounds of {spec.budget} need {needed} pool samples; {name} has {pool}"
    if spec.budget > pool:
        fits = pool // spec.rounds
        advice = f"Lower it to {fits} or less" if fits > 1 else "Lower both"
        raise InvalidInput("budget", f"{reason}. {advice}")
    most = pool // spec.budget
    raise InvalidInput("rounds", f"{reason}. {f'At most {most} rounds fit' if most > 1 else 'One round fits'}")


def _require_strata(spec: ExperimentSpec, stock: Stock) -> None:
    if spec.arm is not Arm.FULL and spec.initial == "stratum" and None in stock.pool:
        raise InvalidInput("initial", f"strata need a label for each pool sample; {stock.pool[None]} have none")


def _require_positive_class(spec: ExperimentSpec, stock: Stock) -> None:
    if spec.positive_class is not None and spec.positive_class not in stock.classes:
        known = ", ".join(stock.classes) or "none"
        raise InvalidInput("positive_class", f"{stock.name} has no label {spec.positive_class!r}; its labels: {known}")


def _require_labels(spec: ExperimentSpec, stock: Stock) -> None:
    _require_classes(spec, stock, Role.LABELLED, stock.labelled, "dataset")
    if spec.fit_evaluator_on != Role.LABELLED:
        _require_classes(spec, stock, spec.fit_evaluator_on, stock.fitted, "fit_evaluator_on")
    _require_role(spec, stock, spec.evaluate_on, stock.evaluated, "evaluate_on")


def _require_classes(spec: ExperimentSpec, stock: Stock, role: str, labels: Labels, field: str) -> None:
    """What a classifier is fitted on needs two classes, the positive one among them."""
    _require_role(spec, stock, role, labels, field)
    if len(labels) < 2:
        only = next(iter(labels))
        raise InvalidInput(field, f"all {role} samples of {stock.name} are {only}; two classes are needed")


def _require_role(spec: ExperimentSpec, stock: Stock, role: str, labels: Labels, field: str) -> None:
    """Samples, each with a label, and some of the positive class: without those every F1 is 0."""
    if not labels:
        hint = f"add a draw with role {role}, or a source"
        raise InvalidInput(field, f"{stock.name} has no samples with the role {role}; {hint}")
    if None in labels:
        raise InvalidInput(field, f"{labels[None]} samples of {stock.name} with the role {role} have no label")
    if spec.positive_class is not None and spec.positive_class not in labels:
        named = "positive_class" if field == "dataset" else field
        raise InvalidInput(named, f"no {role} sample of {stock.name} is {spec.positive_class}, the positive class")
