"""A dataset's samples: a page of them, or all in the formats that people's tools read, however many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from winnow.domain import Role, SampleRow
from winnow.errors import NotFound
from winnow.store import Database, datasets
from winnow.store.tables import Dataset
from winnow_coordinator import fitness, pages
from winnow_coordinator.schemas import Page, SampleView
from winnow_coordinator.streams import CutShort

PAGE = 5000
"""Samples that are read, rendered and held at a time."""


@dataclass(frozen=True)
class Listing:
    """All samples of a dataset, or of one role of it, by idx from above `after` on."""

    dataset_id: str
    role: Role | None
    after: int

    def pages(self, database: Database) -> Iterator[Sequence[SampleRow]]:
        """All of them. Each page is a read of its own: a client that takes its time holds nothing.

        Raises CutShort.
        """
        last = self.after
        while rows := self._behind(database, last):
            yield rows
            last = rows[-1].idx

    def _behind(self, database: Database, last: int) -> Sequence[SampleRow]:
        with database.read() as session:
            rows = datasets.samples_page(session, self.dataset_id, after=last, limit=PAGE, role=self.role)
            if not rows:
                self._require_all(session, last)
            return rows

    def _require_all(self, session: Session, last: int) -> None:
        try:
            _ready(session, self.dataset_id)
        except (NotFound, fitness.DatasetNotReady) as error:
            words = f"dataset {self.dataset_id} was removed while its samples were sent, to idx {last}"
            raise CutShort(words) from error


def listing(session: Session, name: str, role: Role | None, cursor: str | None) -> Listing:
    """All samples behind the cursor. Raises NotFound and DatasetNotReady."""
    return Listing(_ready(session, name).id, role, pages.decode_number(cursor))


def page(session: Session, name: str, role: Role | None, cursor: str | None, limit: int) -> Page[SampleView]:
    """Samples by idx. Raises NotFound, and DatasetNotReady before all are there and once they are being removed."""
    id = _ready(session, name).id
    rows = datasets.samples_page(session, id, after=pages.decode_number(cursor), limit=limit + 1, role=role)
    if not rows:  # all were shown, or its removal began after the look
        session.expire_all()
        _ready(session, id)
    shown, following = pages.cut(rows, limit, lambda row: row.idx)
    return Page(items=[SampleView.model_validate(row) for row in shown], next=following)


def _ready(session: Session, name: str) -> Dataset:
    dataset = datasets.get(session, name)
    fitness.require_ready(dataset, "its samples show when it is ready")
    return dataset
