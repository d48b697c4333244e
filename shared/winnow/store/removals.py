"""What people removed: its rows are gone at once, its files by and by.

The place is noted in the transaction that deletes the rows, so that files which somebody dies over are found again. It
stays noted for a while: a worker that lost its claim long ago may still be writing there.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from winnow.store.engine import now
from winnow.store.tables import Removal


def insert(session: Session, prefix: str) -> None:
    """Note that whatever lies below `prefix` in the artefact store may go."""
    session.add(Removal(prefix=prefix, at=now()))
    session.flush()


def prefixes(session: Session) -> list[str]:
    """Every place that is noted, in the order of removing."""
    return list(session.scalars(select(Removal.prefix).order_by(Removal.at)))


def outdated(session: Session, seconds: float) -> list[str]:
    """Those that were noted so long ago."""
    return list(session.scalars(select(Removal.prefix).where(Removal.at < now() - seconds)))


def forget(session: Session, prefix: str) -> None:
    """Note it no more: nothing lies there, and nobody writes there any longer."""
    session.execute(delete(Removal).where(Removal.prefix == prefix))
