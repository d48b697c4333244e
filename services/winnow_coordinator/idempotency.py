"""Idempotency-Key: the first answer to a POST is kept for a day and replayed to its repeats."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.orm import Session

from winnow.errors import IdempotencyConflict
from winnow.failpoints import Failpoint, reach
from winnow.store import keys
from winnow_coordinator.auth import Caller
from winnow_coordinator.context import Coordinator

_Key = Annotated[
    str | None,
    Header(min_length=1, max_length=200, description="Any text of your own; repeats of it replay the first answer"),
]


@dataclass(frozen=True)
class Answer:
    """What a creating POST answers. `kept` is what a repeat sees, where that differs (a key's text is never stored)."""

    status: int
    body: BaseModel
    location: str
    kept: BaseModel | None = None


@dataclass(frozen=True)
class Once:
    """Runs a creation at most once for each caller and Idempotency-Key."""

    caller: str
    path: str
    key: str | None

    def run(self, session: Session, document: Any, create: Callable[[], Answer]) -> Response:
        """The answer of `create`, or the first one again. Raises IdempotencyConflict for another document."""
        if self.key is None:
            return _respond(create())
        digest = self._digest(document)
        first = keys.reserve(session, self.caller, self.key, digest)
        if first is None:
            reach(Failpoint.KEY_RESERVED)
            return self._keep(session, self.key, create())
        if first.digest != digest:
            raise IdempotencyConflict(self.key)
        return _send(first.status, first.body, first.location, replayed=True)

    def was_answered(self, coordinator: Coordinator) -> bool:
        """Whether this request only asks for the first answer again."""
        if self.key is None:
            return False
        with coordinator.database.read() as session:
            return keys.answered(session, self.caller, self.key) is not None

    def _keep(self, session: Session, key: str, made: Answer) -> Response:
        body = (made.kept or made.body).model_dump(mode="json")
        keys.remember(session, self.caller, key, status=made.status, body=body, location=made.location)
        reach(Failpoint.ANSWER_REMEMBERED)
        return _respond(made)

    def _digest(self, document: Any) -> str:
        text = json.dumps([self.path, document], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _once(request: Request, caller: Caller, idempotency_key: _Key = None) -> Once:
    return Once(caller.id, request.url.path, idempotency_key)


Idempotent = Annotated[Once, Depends(_once)]


def _respond(made: Answer) -> Response:
    return _send(made.status, made.body.model_dump(mode="json"), made.location)


def _send(status: int, body: dict[str, Any], location: str | None, *, replayed: bool = False) -> Response:
    headers = {"Location": location} if location else {}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse(body, status, headers=headers)
