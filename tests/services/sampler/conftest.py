"""A sampler over real HTTP, with its artefacts and a data root in a temporary directory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from services.conftest import serving

from winnow.artefacts import DirectoryStore, put_array
from winnow.settings import Settings
from winnow_sampler.app import make_app

RANDOM = np.random.default_rng(4)
POOL = RANDOM.normal(size=(80, 5)).astype(np.float32)
CENTERS = RANDOM.normal(size=(4, 5)).astype(np.float32)
PROBABILITIES = RANDOM.dirichlet(np.ones(3), 80).astype(np.float32)
SLOW = RANDOM.normal(size=(40_000, 64)).astype(np.float32)
Json = dict[str, Any]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Patient settings: what does not take seconds is answered at once."""
    (tmp_path / "data").mkdir()
    roots = (tmp_path / "data",)
    return Settings(state_dir=tmp_path / "state", data_roots=roots, inline_limit=1000, answer_seconds=20)


@pytest.fixture
def store(settings: Settings) -> DirectoryStore:
    return DirectoryStore(settings.artefact_dir)


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    with serving(make_app(settings)) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def hasty(settings: Settings) -> Iterator[httpx.Client]:
    """A sampler that answers 202 at once."""
    quick = settings.model_copy(update={"answer_seconds": 0.01})
    with serving(make_app(quick)) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def inline(arrays: dict[str, np.ndarray[Any, Any]]) -> Json:
    """Arrays as a request has them."""
    return {name: {"inline": array.tolist()} for name, array in arrays.items()}


def slow_request(store: DirectoryStore) -> Json:
    """A selection that takes seconds."""
    stored = put_array(store, "slow/pool.npy", SLOW)
    return {"strategy": "k_center", "budget": 20_000, "pool": {"key": stored.key, "sha256": stored.sha256}}
