"""`python -m winnow_trainer.alive`: whether this host's trainer says that it lives; the containers' health check.

A trainer serves nothing that could be asked. It reports to the database, and one that cannot is of no use.
"""

import socket
import sys

from sqlalchemy.exc import OperationalError

from winnow.settings import Settings
from winnow.store import Database, workers


def main() -> None:
    """End with 0 when a worker of this host was seen within a lease, else with 1 and the reason."""
    settings = Settings()
    database = Database(settings.database_url)
    host = socket.gethostname()
    try:
        with database.read() as session:
            seen = workers.is_seen(session, host, within=settings.lease_seconds)
    except OperationalError as error:
        sys.exit(f"the database does not answer: {error.orig}")
    finally:
        database.close()
    if not seen:
        sys.exit(f"no trainer of {host} reported within {settings.lease_seconds:g} s; its log says why")


if __name__ == "__main__":
    main()
