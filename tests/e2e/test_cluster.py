"""The deployment that chaos and failpoints are tried on: whole, restartable, and gone afterwards."""

import signal
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, Kind
from processes import Member, wait_until

from winnow.store import Database, workers


@pytest.mark.parametrize("kind", ["embedded", "scaled"])
def test_every_member_can_be_killed_and_is_the_same_afterwards(kind: Kind, tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", kind=kind, coordinators=2, samplers=1, trainers=2) as cluster:
        cluster.http.get("/experiments").raise_for_status()
        before = {name: member.pid for name, member in cluster.members.items()}
        for member in cluster.members.values():
            member.kill_family()
        assert sorted(cluster.revive()) == sorted(before)
        cluster.wait_ready()
        assert all(cluster[name].pid != pid and cluster[name].starts == 2 for name, pid in before.items())
        assert cluster.http.get("/experiments").json()["items"] == []
        wait_until(lambda: count_workers(cluster) >= 2, 60, "both trainers to say that they live")
        family = [process for member in cluster.members.values() for process in member.family()]
        codes = cluster.stop()
    assert set(codes.values()) <= {0, -signal.SIGTERM}, codes
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_request_goes_to_any_coordinator_that_lives(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", kind="embedded", coordinators=2, samplers=1, trainers=0) as cluster:
        cluster["coordinator-0"].kill()
        assert cluster.http.get("/experiments").status_code == 200
        cluster.revive()
        cluster["coordinator-0"].wait_ready()
        cluster["coordinator-1"].kill()
        assert cluster.http.get("/experiments").status_code == 200


def test_a_half_open_gateway_keeps_everybody_waiting_and_then_lets_them_on(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", coordinators=1, samplers=0, trainers=0, gateways=True) as cluster:
        coordinator = cluster["coordinator-0"]
        for cut in (False, True):
            cluster.gateways["postgres"].close_half()
            assert not coordinator.is_ready(), "an answer came through a closed gateway"
            cluster.gateways["postgres"].heal(cut=cut)
            coordinator.wait_ready()


def count_workers(cluster: Cluster) -> int:
    database = Database(cluster.database_url)
    with database.read() as session:
        seen = len(workers.alive(session, within=10, after=None, limit=10))
    database.close()
    return seen


def is_stopped(member: Member) -> bool:
    return all(process.status() == psutil.STATUS_STOPPED for process in member.family())


def test_a_paused_member_stands_still_until_it_is_resumed(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", kind="embedded", coordinators=1, samplers=0, trainers=0) as cluster:
        member = cluster["coordinator-0"]
        member.pause()
        wait_until(lambda: is_stopped(member), 60, "the coordinator to stand still")
        assert not member.is_ready()
        member.resume()
        member.wait_ready()
