"""What must hold of every experiment, checked from what REST returns alone.

From a shell: `python tests/e2e/invariants.py URL ID [ID ...]` (WINNOW_API_KEY, if the coordinator wants one).
"""

import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

Json = dict[str, Any]


class Api:
    """The few calls that checking needs; deliberately not the project's own client."""

    def __init__(self, url: str, key: str = "", transport: httpx.BaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=60, transport=transport)

    def get(self, path: str) -> Json:
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.json()

    def every(self, path: str, **query: str) -> Iterator[Json]:
        cursor: str | None = ""
        while cursor is not None:
            answer = self.http.get(path, params={"limit": 500, **query, **({"cursor": cursor} if cursor else {})})
            answer.raise_for_status()
            page = answer.json()
            yield from page["items"]
            cursor = page.get("next")

    def array(self, experiment: str, round: int, kind: str) -> NDArray[Any]:
        answer = self.http.get(f"/experiments/{experiment}/rounds/{round}/artefacts/{kind}")
        answer.raise_for_status()
        return np.load(io.BytesIO(answer.content), allow_pickle=False)


def check(api: Api, id: str) -> str:
    """Assert the invariants of one experiment. Returns a line that says what was checked."""
    experiment = api.get(f"/experiments/{id}")
    spec = experiment["spec"]
    assert experiment["status"] == "completed", experiment
    rounds = list(api.every(f"/experiments/{id}/rounds"))
    assert [r["number"] for r in rounds] == list(range(experiment["rounds_total"]))
    assert all(r["status"] == "done" and r["metrics"] for r in rounds)
    if spec["arm"] == "full":
        return f"{experiment['name']}: {len(rounds)} evaluations of the full pool"
    roles = {role: set(_indices(api, spec["dataset"], role)) for role in ("pool", "labelled", "test", "validation")}
    selected: set[int] = set()
    recomputed = 0
    for number in range(len(rounds)):
        batch = api.get(f"/experiments/{id}/rounds/{number}/selection")["items"]
        indices = [pick["idx"] for pick in batch]
        assert [pick["rank"] for pick in batch] == list(range(len(batch)))
        assert len(set(indices)) == len(indices) == spec["budget"]
        assert set(indices) <= roles["pool"] - selected
        assert not set(indices) & (roles["labelled"] | roles["test"] | roles["validation"])
        if number:
            recomputed += _explain(api, id, spec, number - 1, indices)
        selected |= set(indices)
        assert rounds[number]["samples"] == len(selected)
    return f"{experiment['name']}: {len(rounds)} batches of {spec['budget']}, {recomputed} of them recomputed"


def most_uncertain(probabilities: NDArray[np.float64], budget: int, measure: str) -> list[int]:
    """Rows with the highest uncertainty, by loops over Python floats; ties to the lowest row."""
    scores: list[float] = []
    for row in probabilities:
        ranked = sorted((float(p) for p in row), reverse=True)
        if measure == "entropy":
            scores.append(-sum(p * float(np.log(p)) for p in ranked if p > 0))
        elif measure == "margin":
            scores.append(ranked[1] - ranked[0])
        else:
            scores.append(-ranked[0])
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:budget]


def k_center(pool: NDArray[np.float64], centers: NDArray[np.float64], budget: int) -> tuple[list[int], list[float]]:
    """The paper's Algorithm 1 in float64: picks and the distance of each at its pick. Equal in float32 is a tie."""
    distance = np.full(len(pool), np.inf)
    for center in centers:
        distance = np.minimum(distance, np.sqrt(((pool - center) ** 2).sum(1)))
    picks: list[int] = []
    radii: list[float] = []
    for _ in range(budget):
        best = int(np.argmax(distance.astype(np.float32)))
        picks.append(best)
        radii.append(float(distance[best]))
        distance = np.minimum(distance, np.sqrt(((pool - pool[best]) ** 2).sum(1)))
        distance[picks] = -np.inf
    return picks, radii


def _explain(api: Api, id: str, spec: Json, round: int, indices: list[int]) -> bool:
    """Recompute the batch picked after `round` from the arrays it was picked from."""
    arm, budget = spec["arm"], spec["budget"]
    index = api.array(id, round, "candidates/index")
    if arm == "k_center" and spec["centers"] == "selected":
        pool = api.array(id, round, "candidates/embeddings").astype(np.float64)
        centers = api.array(id, round, "selected/embeddings").astype(np.float64)
        expected, _ = k_center(pool, centers, budget)
    elif arm in ("entropy", "margin", "least_confidence") and spec["direction"] == "high":
        probabilities = api.array(id, round, "candidates/probabilities").astype(np.float64)
        expected = most_uncertain(probabilities, budget, arm)
    else:
        assert set(indices) <= set(index.tolist()) or spec["random_from"] == "pool"
        return False
    assert indices == index[expected].tolist(), f"{arm}: round {round + 1}'s batch differs from the recomputed one"
    return True


def _indices(api: Api, dataset: str, role: str) -> Iterator[int]:
    return (sample["idx"] for sample in api.every(f"/datasets/{dataset}/samples", role=role))


if __name__ == "__main__":
    opened = Api(sys.argv[1], os.environ.get("WINNOW_API_KEY", ""))
    for given in sys.argv[2:]:
        print(check(opened, given))
