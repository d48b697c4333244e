"""Random picks, the arm that every other one is held against; and picks along a ranking."""

import numpy as np

from winnow.selection.batch import Limits, Selection, require_budget, require_integer, require_seed


def random_choice(n: int, budget: int, *, seed: int = 0) -> Selection:
    """Draw `budget` of `n` candidates, all equally likely, without replacement.

    A smaller budget with the same seed gives the first picks of a larger one. Scores are 0.0: nothing ranks
    them. `radius` is None.

    Raises ValueError that says which: n (below 1), budget (not in 1..n), seed.
    """
    candidates = require_integer("n", n)
    budget = require_budget("n", candidates, budget)
    order = np.random.default_rng(require_seed(seed)).permutation(candidates)
    return Selection(indices=order[:budget].astype(np.int64), scores=np.zeros(budget, np.float32))


class Unlimited:
    """The limits of a run that has none, but for picking no row twice."""

    def __init__(self, rows: int, selected: tuple[int, ...] = ()) -> None:
        self.allowed = np.ones(rows, np.bool_)
        self.allowed[list(selected)] = False

    def take(self, row: int) -> None:
        self.allowed[row] = False


def lowest_allowed(limits: Limits) -> int:
    """The lowest row that may still be picked. Raises ValueError where none may."""
    row = int(np.argmax(limits.allowed))
    if not limits.allowed[row]:
        raise ValueError("budget: the limits allow no further pick")
    return row


def pick_in_order(ranked: Selection, budget: int, limits: Limits) -> Selection:
    """The first `budget` rows of `ranked` that `limits` allow when their turn comes; fewer if they allow fewer.

    Rows that are forbidden stay so: one walk finds them all, and for caps and quotas no other choice of rows
    stands higher in the ranking (the greedy algorithm of a matroid).
    """
    places: list[int] = []
    for place, row in enumerate(map(int, ranked.indices)):
        if len(places) == budget:
            break
        if limits.allowed[row]:
            limits.take(row)
            places.append(place)
    return Selection(indices=ranked.indices[places], scores=ranked.scores[places])
