"""The rules of `winnow select` as they were typed, and what the library makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow import embeddings
from winnow.embeddings import Survey
from winnow.errors import InvalidInput
from winnow.selection import Constraints

Groups = NDArray[Any]


@dataclass(frozen=True)
class Rules:
    """What every pick is to keep to. `selected` are rows of the pool that are selected already: never picked again."""

    groups: str | None
    cap: list[str]
    quota: list[str]
    quota_is_exact: bool
    exclude: Path | None
    pinned: Path | None
    minimum_distance: float | None

    @property
    def files(self) -> dict[str, Path]:
        """The files that are read for them, by option."""
        given = {"--exclude": self.exclude, "--pinned": self.pinned}
        if self.groups is not None and self.groups != "file" and not self.groups.startswith("column:"):
            given["--groups"] = Path(self.groups)
        return {option: path for option, path in given.items() if path is not None}

    def constraints(self, survey: Survey, selected: list[int]) -> Constraints | None:
        """As the library takes them; None where there are none. Raises InvalidInput naming the option."""
        given = (self.groups, self.cap, self.quota, self.exclude, self.pinned, self.minimum_distance, selected)
        if not any(one is not None and one != [] for one in given):
            return None
        groups = self._groups(survey)
        return Constraints(
            groups=groups,
            cap=self._cap(groups),
            quota=dict(_counted("--quota", text) for text in self.quota) or None,
            quota_is_exact=self.quota_is_exact,
            exclude=[*selected, *_rows(self.exclude, "--exclude", survey)],
            pinned=_rows(self.pinned, "--pinned", survey),
            minimum_distance=self.minimum_distance,
        )

    def _groups(self, survey: Survey) -> Groups | None:
        if self.groups is None:
            return None
        if self.groups == "file":
            return np.array(survey.groups("--groups"))
        kind, _, column = self.groups.partition(":")
        if kind == "column" and column:
            return np.array(survey.values(column, "--groups"))
        return np.array(embeddings.read_labels(Path(self.groups), "--groups", survey.rows))

    def _cap(self, groups: Groups | None) -> int | Mapping[str, int] | None:
        """One number for all groups, or a number for each: that of its name, else the one that stands alone."""
        alone = [text for text in self.cap if text.isdecimal()]
        named = dict(_counted("--cap", text) for text in self.cap if not text.isdecimal())
        if len(alone) > 1:
            raise InvalidInput("--cap", f"needs one number for all groups, got {' and '.join(alone)}")
        if not named:
            return int(alone[0]) if alone else None
        if groups is None:
            raise InvalidInput("--cap", "needs --groups, the group of each row")
        labels: list[str] = np.unique(groups).tolist()
        unknown = sorted(named.keys() - labels)
        if unknown:
            raise InvalidInput("--cap", f"no row of the pool is of group {unknown[0]!r}")
        return {label: int(alone[0]) for label in labels if alone} | named


def read_selected(path: Path | None, survey: Survey) -> list[int]:
    """The rows of the pool that `--selected` names; none where it holds embeddings. Raises InvalidInput."""
    if path is None or embeddings.holds_features(path, "--selected"):
        return []
    rows = _rows(path, "--selected", survey)
    beyond = next((row for row in rows if row >= survey.rows), None)
    if beyond is not None:
        raise InvalidInput("--selected", f"{path.name}: needs rows 0 to {survey.rows - 1}, got {beyond}")
    return rows


def _rows(path: Path | None, option: str, survey: Survey) -> list[int]:
    return [] if path is None else embeddings.read_rows(path, option, survey.keys)


def _counted(option: str, text: str) -> tuple[str, int]:
    group, _, count = text.rpartition("=")
    if not group or not count.isdecimal():
        raise InvalidInput(option, f"needs {'N or ' if option == '--cap' else ''}GROUP=N, got {text!r}")
    return group, int(count)
