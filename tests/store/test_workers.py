"""A GPU is leased by (host, uuid): one holder at a time, whoever asks at once, by the database's clock."""

import multiprocessing

import pytest
from sqlalchemy import select, update

from winnow.store import Database, workers
from winnow.store.tables import DeviceLease, Worker


def lease(database: Database, owner: str, *, host: str = "h", device: str = "GPU-1", seconds: float = 60) -> bool:
    with database.begin() as session:
        return workers.lease_device(session, host, device, owner, seconds)


def test_a_device_has_one_holder_who_may_renew(database: Database) -> None:
    assert lease(database, "w1")
    assert lease(database, "w1")
    assert not lease(database, "w2")
    assert lease(database, "w2", device="GPU-2"), "another device of the host"
    assert lease(database, "w2", host="i"), "the same uuid on another host is another device"


def test_a_lease_that_ran_out_is_anybodys_by_the_databases_clock(database: Database) -> None:
    assert lease(database, "w1")
    with database.begin() as session:
        session.execute(update(DeviceLease).values(lease_until=DeviceLease.lease_until - 61))
    assert lease(database, "w2")
    assert not lease(database, "w1")


def test_a_worker_that_leaves_takes_its_leases_along(database: Database) -> None:
    assert lease(database, "w1") and lease(database, "w2", device="GPU-2")
    with database.begin() as session:
        workers.forget(session, "w1")
    assert lease(database, "w3")
    assert not lease(database, "w3", device="GPU-2")


def test_killed_workers_are_forgotten_after_a_while(database: Database) -> None:
    seen = {"host": "h", "pid": 1, "devices": [], "version": "0"}
    with database.begin() as session:
        for id, busy_with in (("killed", None), ("busy", "round"), ("idle", None)):
            workers.report(session, id, busy_with=busy_with, **seen)
        session.execute(update(Worker).where(Worker.id == "killed").values(seen_at=Worker.seen_at - 100))
    assert lease(database, "killed") and lease(database, "idle", device="GPU-2")
    with database.begin() as session:
        killed = update(DeviceLease).where(DeviceLease.owner == "killed")
        session.execute(killed.values(lease_until=DeviceLease.lease_until - 160))
        workers.forget_silent(session, seconds=90)
    with database.read() as session:
        assert set(session.scalars(select(Worker.id))) == {"busy", "idle"}
        assert set(session.scalars(select(DeviceLease.owner))) == {"idle"}
        assert workers.count_idle(session, within=60) == 1


def _lease_all(url: str, owner: str, won: "multiprocessing.Queue[list[str]]") -> None:
    database = Database(url)
    won.put([device for device in map(str, range(20)) if lease(database, owner, device=device)])
    database.close()


@pytest.mark.usefixtures("database")
def test_processes_that_ask_at_once_never_share_a_device(database_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    won = spawn.Queue()
    racers = [spawn.Process(target=_lease_all, args=(database_url, f"w{i}", won)) for i in range(6)]
    for racer in racers:
        racer.start()
    taken = [device for _ in racers for device in won.get(timeout=120)]
    for racer in racers:
        racer.join(30)
        assert racer.exitcode == 0, "nobody stumbled over the others"
    assert sorted(taken, key=int) == [str(device) for device in range(20)]
