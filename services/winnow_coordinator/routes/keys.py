"""/api/v1/keys"""

from fastapi import APIRouter, Response
from sqlalchemy import event
from sqlalchemy.orm import Session

from winnow.problems import responses
from winnow.store import keys
from winnow_coordinator import pages
from winnow_coordinator.access import Here, Writing
from winnow_coordinator.auth import Admin
from winnow_coordinator.idempotency import Answer, Idempotent
from winnow_coordinator.pages import Cursor, Limit
from winnow_coordinator.schemas import KeyRequest, KeyView, NewKeyView, Page

router = APIRouter(prefix="/keys", tags=["keys"], responses=responses(401, 403, 413, 422, 429, 503))


@router.post("", status_code=201, response_model=NewKeyView)
def create(request: KeyRequest, caller: Admin, once: Idempotent, session: Writing) -> Response:
    """Make a key. Its text is shown this once."""

    def make() -> Answer:
        row, text = keys.create(session, request.name, request.scopes)
        shown = KeyView.model_validate(row).model_dump()
        location = f"/api/v1/keys/{row.id}"
        return Answer(201, NewKeyView(**shown, key=text), location, kept=NewKeyView(**shown, key=None))

    return once.run(session, request.model_dump(mode="json"), make)


@router.get("", response_model=Page[KeyView])
async def list_all(caller: Admin, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """All keys, newest first; revoked ones too."""
    return await caller.reads.show(_page, cursor, limit)


@router.delete("/{id}", status_code=204, responses=responses(404))
def revoke(id: str, caller: Admin, here: Here, session: Writing) -> None:
    """End a key: here at once, for reads from other coordinators within a second."""
    keys.revoke(session, id)
    event.listen(session, "after_commit", lambda _: here.known_keys.forget(), once=True)


def _page(session: Session, cursor: str | None, limit: int) -> Page[KeyView]:
    rows = keys.page(session, before=pages.decode(cursor), limit=limit + 1)
    shown, following = pages.cut(rows, limit, lambda row: row.id)
    return Page(items=[KeyView.model_validate(row) for row in shown], next=following)
