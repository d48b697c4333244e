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


def places(session: Session, *, seconds: float) -> dict[str, bool]:
    """Every place that is noted, in the order of removing, and whether it was noted more than `seconds` ago."""
    noted = select(Removal.prefix, Removal.at < now() - seconds).order_by(Removal.at)
    return dict(session.execute(noted).all())


def forget(session: Session, prefix: str) -> None:
    """Note it no more: nothing lies there, and nobody writes there any longer."""
    session.execute(delete(Removal).where(Removal.prefix == prefix))
