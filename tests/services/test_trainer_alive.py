"""The trainer's health check, as a container runs it."""

import os
import socket
import subprocess
import sys

from sqlalchemy import update

from winnow.store import Database, workers
from winnow.store.tables import Worker


def alive(database_url: str) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "winnow_trainer.alive"],
        env=os.environ | {"WINNOW_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.returncode, ran.stderr


def test_a_trainer_is_alive_while_its_host_reports(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    seen = {"pid": 1, "devices": [], "version": "0", "busy_with": None}
    with database.begin() as session:
        workers.report(session, "other:1", host="other", **seen)
    code, reason = alive(database_url)
    assert code == 1 and "no trainer" in reason
    with database.begin() as session:
        workers.report(session, "here:1", host=socket.gethostname(), **seen)
    assert alive(database_url) == (0, "")
    with database.begin() as session:
        session.execute(update(Worker).values(seen_at=Worker.seen_at - 60))
    assert alive(database_url)[0] == 1
    database.close()


def test_a_database_that_is_away_is_said() -> None:
    code, reason = alive("postgresql://nobody@127.0.0.1:1/none")
    assert code == 1 and reason.startswith("the database does not answer")
