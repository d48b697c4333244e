"""Random picks: the arm that every other one is held against."""

import numpy as np

from winnow.selection.batch import Selection, require_budget, require_integer, require_seed


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
