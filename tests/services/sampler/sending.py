"""Files of embeddings, sent to a sampler and picked from."""

import io
from typing import Any

import h5py
import httpx
import numpy as np
from services.sampler.conftest import Json

RANDOM = np.random.default_rng(8)
FEATURES = RANDOM.normal(size=(30, 4)).astype(np.float32)
COORDS = RANDOM.integers(0, 9000, (30, 2))


def npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    data = io.BytesIO()
    np.save(data, array, **options)
    return data.getvalue()


def slide(features: np.ndarray[Any, Any] = FEATURES, coords: np.ndarray[Any, Any] = COORDS) -> bytes:
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file["features"], file["coords"] = features, coords
    return data.getvalue()


def send(http: httpx.Client, name: str, body: bytes) -> httpx.Response:
    return http.post("/v1/embeddings", params={"name": name}, content=body)


def pick(http: httpx.Client, pool: Json, **more: Any) -> Json:
    answer = http.post("/v1/selections", json={"strategy": "k_center", "budget": 5, "pool": pool, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()
