"""While the sampler computes: what ends the wait, what is borne, and what becomes of the selection."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
from conftest import wait_until
from processes import free_port
from services.conftest import Driver, add_dataset, experiment_body, serving
from services.sampler.conftest import slow_request
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from winnow.artefacts import DirectoryStore
from winnow.errors import Fenced, Unavailable, WinnowError
from winnow.settings import Settings
from winnow.store import claims, rounds
from winnow.store.tables import Experiment, Round
from winnow_coordinator.context import Coordinator
from winnow_coordinator.picking import Heart, Interrupted, Picker
from winnow_coordinator.sampler import CalledOff, Sampler
from winnow_sampler import selecting
from winnow_sampler.app import make_app as make_sampler


@pytest.mark.parametrize("status", ["pausing", "paused", "cancelling", "cancelled"])
def test_a_pick_stops_when_its_experiment_is_not_to_go_on(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, status: str
) -> None:
    add_dataset(coordinator)
    assert api.post("/experiments", json=experiment_body()).status_code == 201
    driver.train()
    with coordinator.database.begin() as session:
        row = claims.claim(session, claims.SELECT, "steward", 30)
        assert isinstance(row, Round)
    heart = Heart(coordinator, row, time.monotonic())
    heart.beat({})
    with coordinator.database.begin() as session:
        session.execute(update(Experiment).values(status=status))
    with pytest.raises(CalledOff, match=status):
        heart.beat({})


def test_a_database_that_is_away_is_borne_while_the_claim_lasts(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, settings: Settings
) -> None:
    add_dataset(coordinator)
    assert api.post("/experiments", json=experiment_body()).status_code == 201
    row = driver.claim()
    gone = {"database_url": f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"}
    with closing(Coordinator.open(Settings(**{**settings.model_dump(), **gone}))) as cut_off:
        Heart(cut_off, row, time.monotonic()).beat({})
    short = Settings(**{**settings.model_dump(), **gone, "lease_seconds": 0.1, "renew_seconds": 0.05})
    with closing(Coordinator.open(short)) as cut_off, pytest.raises(OperationalError):
        heart = Heart(cut_off, row, time.monotonic())
        for _ in range(3):
            heart.beat({})


@pytest.mark.parametrize(("arm", "status"), [("full", "done"), ("entropy", "trained")])
@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_a_database_that_is_away_when_a_claim_ends_is_waited_for(
    api: httpx.Client, coordinator: Coordinator, driver: Driver, picker: Picker, moment: str, arm: str, status: str
) -> None:
    """Also where it went with the answer alone. Nobody picks for the one arm, and no sampler is there for the other."""
    add_dataset(coordinator)
    id = api.post("/experiments", json=experiment_body(arm=arm)).raise_for_status().json()["id"]
    driver.train()
    ending: list[Session] = []

    def note(session: Session) -> None:
        if not session.scalar(select(Round.id).where(Round.status == "selecting")):
            ending.append(session)

    def go_away(session: Session) -> None:
        if ending == [session]:
            raise OperationalError("", {}, Exception("the database is away"))

    event.listen(Session, "before_commit", note)
    event.listen(Session, moment, go_away)
    try:
        assert picker.pick_next()
    finally:
        event.remove(Session, moment, go_away)
        event.remove(Session, "before_commit", note)
    assert len(ending) == (2 if moment == "before_commit" else 1)
    with coordinator.database.read() as session:
        row = rounds.get(session, id, 0)
    assert (row.status, row.owner, row.losses, row.failures) == (status, None, 0, 0)


@pytest.mark.parametrize(
    ("reason", "end"),
    [(CalledOff, "cancelled"), (Interrupted, "done"), (Fenced, "done")],
)
def test_a_selection_that_somebody_else_may_ask_for_goes_on(
    settings: Settings, reason: type[Exception], end: str
) -> None:
    """A coordinator that stops, or lost its claim, leaves what is computed to the next one."""

    def beat(progress: dict[str, Any]) -> None:
        raise reason("round", "r", 1) if reason is Fenced else reason("over")

    request = slow_request(DirectoryStore(settings.artefact_dir))
    port = free_port()
    hasty = settings.model_copy(update={"answer_seconds": 0.01, "sampler_url": f"http://127.0.0.1:{port}"})
    with serving(make_sampler(hasty), port=port) as url, closing(Sampler(hasty)) as asking:
        place = httpx.post(f"{url}/v1/selections", json=request).json()["id"]
        with pytest.raises(reason):
            asking.select(request, beat)

        def status() -> str:
            return httpx.get(f"{url}/v1/selections/{place}").json()["status"]

        wait_until(lambda: status() == end, 120, f"it to be {end}")


def test_a_selection_that_somebody_else_called_off_begins_anew(settings: Settings) -> None:
    """Another experiment that asks for the same shares the job."""
    request = slow_request(DirectoryStore(settings.artefact_dir)) | {"budget": 4000}
    port = free_port()
    hasty = settings.model_copy(update={"answer_seconds": 0.01, "sampler_url": f"http://127.0.0.1:{port}"})
    with serving(make_sampler(hasty), port=port) as url, closing(Sampler(hasty)) as asking:
        place = httpx.post(f"{url}/v1/selections", json=request).json()["id"]
        ends: list[str] = []

        def beat(progress: dict[str, Any]) -> None:
            if not ends:
                ends.append(httpx.delete(f"{url}/v1/selections/{place}").json()["status"])

        assert len(asking.select(request, beat).positions) == 4000
    assert ends == ["cancelled"]


@contextmanager
def asked(settings: Settings) -> Iterator[Callable[[], object]]:
    """A selection of a sampler of its own, to be asked for."""
    request = slow_request(DirectoryStore(settings.artefact_dir)) | {"budget": 3}
    port = free_port()
    known = settings.model_copy(update={"sampler_url": f"http://127.0.0.1:{port}"})
    with serving(make_sampler(known), port=port), closing(Sampler(known)) as asking:
        yield lambda: asking.select(request, lambda progress: None)


def test_a_sampler_that_fails_at_a_selection_is_not_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fail at it again and again: that is counted."""

    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(selecting, "select", fail)
    with asked(settings) as ask, pytest.raises(WinnowError, match="a defect") as refused:
        ask()
    assert type(refused.value) is WinnowError


def test_a_sampler_that_cannot_store_its_answer_is_waited_for(settings: Settings) -> None:
    """People make room in time."""
    settings.artefact_dir.mkdir(parents=True, exist_ok=True)
    (settings.artefact_dir / "selections").write_text("in the way")
    with asked(settings) as ask, pytest.raises(Unavailable, match="could not be stored"):
        ask()
