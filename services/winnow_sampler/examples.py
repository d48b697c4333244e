"""The OpenAPI description's examples. A test sends each request and holds the answer against its example."""

from typing import Any

SELECTION_REQUEST: dict[str, Any] = {
    "strategy": "k_center",
    "budget": 2,
    "pool": {"inline": [[0, 0], [0, 1], [5, 5], [9, 9]]},
    "centers": {"inline": [[0, 0]]},
}
SELECTION: dict[str, Any] = {
    "id": "f4fc03ad",
    "status": "done",
    "seconds": 0.002,
    "indices": [3, 2],
    "scores": [12.7279, 5.6569],
    "radius": 1.0,
    "notes": [],
}
COMPARISON_REQUEST: dict[str, Any] = {
    "strategies": [{"strategy": "k_center"}, {"strategy": "random", "seed": 1}],
    "budget": 2,
    "pool": {"inline": [[0, 0], [0, 1], [5, 5], [9, 9]]},
    "groups": {"inline": ["a", "a", "b", "b"]},
}
COMPARISON: dict[str, Any] = {
    "id": "0b1d77c2",
    "status": "done",
    "seconds": 0.1636,
    "strategies": [
        {
            "name": "k_center",
            "strategy": "k_center",
            "indices": [3, 0],
            "seconds": 0.0007,
            "radius": 5.6569,
            "redundancy": 12.7279,
            "groups": {"a": 1, "b": 1},
            "notes": [],
        },
        {
            "name": "random",
            "strategy": "random",
            "indices": [0, 1],
            "seconds": 0.0003,
            "radius": 12.0416,
            "redundancy": 1.0,
            "groups": {"a": 2},
            "notes": [],
        },
    ],
    "shared": [[2, 1], [1, 2]],
    "jaccard": [[1.0, 0.3333], [0.3333, 1.0]],
}
EMBEDDINGS: dict[str, Any] = {
    "id": "40bbfe97f4d382a41ad21f7ee0f5f0fdc2f3fb66edc1559108807c656665bfba",
    "name": "slide-1.npy",
    "rows": 2,
    "columns": 3,
    "dtype": "float32",
    "bytes": 152,
    "sha256": "47d9cb788e60cfff38faf2237400d94063bde1f42a0ad39297e02642caca6b56",
}
"""What `numpy.save("slide-1.npy", numpy.arange(6, dtype="f4").reshape(2, 3))` is, uploaded."""
