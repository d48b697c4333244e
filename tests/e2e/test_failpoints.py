"""A process dies at every durable step, on both stacks, and every experiment ends as if nothing had happened."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
from cluster import Kind
from e2e.failpoint_bench import Bench, Life, Story
from e2e.failpoint_lives import LIVES
from e2e.nursery import Nursery

from winnow.failpoints import Failpoint

KINDS: tuple[Kind, ...] = ("embedded", "scaled")
ROWS = [
    pytest.param(life, kind, point, id=f"{life.name}-{kind}-{point}")
    for life in LIVES
    for kind in KINDS
    for point in life.points
]


class Benches:
    """Both stacks, which live through the same at the same time."""

    def __init__(self, benches: list[Bench], pool: ThreadPoolExecutor) -> None:
        self._by_kind = {bench.kind: bench for bench in benches}
        self._pool = pool

    def __getitem__(self, kind: Kind) -> Bench:
        return self._by_kind[kind]

    def live(self, life: Life) -> dict[Kind, Story]:
        stories = self._pool.map(lambda bench: bench.story(life), self._by_kind.values())
        return dict(zip(self._by_kind, stories, strict=True))


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benches]:
    root = tmp_path_factory.mktemp("benches")
    with ExitStack() as stack:
        nursery = stack.enter_context(closing(Nursery()))
        pool = stack.enter_context(ThreadPoolExecutor(len(KINDS)))
        yield Benches([stack.enter_context(Bench(root / kind, kind, nursery)) for kind in KINDS], pool)


@pytest.mark.timeout(1200)  # the first test of a life waits for all of it, on a machine that may be busy with others
@pytest.mark.parametrize(("life", "kind", "point"), ROWS)
def test_a_death_there_changes_nothing(benches: Benches, life: Life, kind: Kind, point: Failpoint) -> None:
    story = benches.live(life)[kind]
    if not benches[kind].takes(point):
        pytest.skip("patches are cached on another file system than the artefacts', and there is one alone")
    assert not story.complaint
    assert point in story.ended


def test_every_step_is_lived_through() -> None:
    assert {point for life in LIVES for point in life.points} == set(Failpoint)
