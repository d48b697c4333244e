"""A round that fails at every attempt is given up, and people hear why: of all attempts."""

from services.conftest import Driver, Winnow, add_dataset, experiment_body
from sqlalchemy import update

from winnow.client import Client
from winnow.store import claims, rounds
from winnow.store.tables import Round
from winnow_coordinator.context import Coordinator
from winnow_coordinator.tidying import Tidier


def test_a_poison_round_stops_after_the_cap_with_the_reasons_of_all_attempts(
    coordinator: Coordinator, driver: Driver, winnow: Winnow, url: str
) -> None:
    add_dataset(coordinator)
    api = Client(url)
    id = api.create_experiment(experiment_body())["id"]
    tidier, cap = Tidier(coordinator), coordinator.settings.max_failures
    row = driver.claim()
    with coordinator.database.begin() as session:
        session.execute(update(Round).values(lease_until=0.0))
    tidier.tidy()
    for attempt in range(2, cap + 2):
        row = driver.claim()
        with coordinator.database.begin() as session:
            boom = f"CUDA error {attempt}"
            rounds.give_back(session, claims.TRAIN, row.id, row.attempt, "failed", boom, coordinator.patience)
            session.execute(update(Round).values(not_before=0.0))
    body = api.experiment(id)
    assert (body["status"], body["error"]) == ("failed", f"round 0: CUDA error {cap + 1}")
    attempts = api.round(id, 0)["attempts"]
    assert [one["attempt"] for one in attempts] == list(range(1, cap + 2))
    assert [one["cause"] for one in attempts] == ["lost"] + ["failed"] * cap
    said = winnow("watch", id)
    assert said.code == 1
    reasons = [
        "attempt 1 lost: trainer stopped renewing",
        *(f"attempt {n} failed: CUDA error {n}" for n in (2, cap + 1)),
    ]
    assert all(reason in said.err for reason in reasons), said.err
    with coordinator.database.begin() as session:
        assert claims.claim(session, claims.TRAIN, "w", 30) is None, "it is not tried again"
    api.close()
