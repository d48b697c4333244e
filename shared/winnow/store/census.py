"""How many rows are in which state: what a dashboard asks."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from winnow.store.tables import Dataset, Experiment, Round


def by_status(session: Session) -> dict[tuple[str, str], int]:
    """Rows by (table, status) of datasets, experiments and rounds."""
    found: dict[tuple[str, str], int] = {}
    for table in (Dataset, Experiment, Round):
        for status, count in session.execute(select(table.status, func.count()).group_by(table.status)):
            found[table.__tablename__, status] = count
    return found
