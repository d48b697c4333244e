"""Who calls, and what they may do: keys with scopes, required when the coordinator is bound off loopback."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from winnow.errors import NotAuthorised
from winnow.perimeter import is_from_here
from winnow.settings import is_loopback
from winnow.store import keys
from winnow.store.tables import ApiKey
from winnow_coordinator.access import Here
from winnow_coordinator.context import Coordinator

LOCAL = "local"
"""The caller without a key, on loopback."""
LOOK_AGAIN_SECONDS = 10.0
"""How long a stream may go on before its key is looked at again."""
_bearer = HTTPBearer(auto_error=False, description="An API key, `wnw_…`; not needed on loopback")
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


@dataclass(frozen=True)
class Principal:
    """A caller: the id of its key, or `local`. Scopes ascend: run includes read, admin includes both."""

    id: str
    scopes: tuple[str, ...]

    def may(self, scope: str) -> bool:
        return any(keys.SCOPES.index(held) >= keys.SCOPES.index(scope) for held in self.scopes)


async def identify(request: Request, coordinator: Here, credentials: _Credentials) -> Principal:
    """The caller. Its transaction ends before the request's own begins, so that a stranger locks nothing.

    Raises NotAuthorised for no key where one is needed, and for a wrong or revoked one; TooManyRequests.
    """
    if credentials is None:
        settings = coordinator.settings
        if is_loopback(settings.coordinator_host) and not settings.require_key and is_from_here(request):
            return Principal(LOCAL, keys.SCOPES)
        raise NotAuthorised("this coordinator needs an API key: Authorization: Bearer wnw_…")
    known = coordinator.known_keys.get(credentials.credentials) if request.method == "GET" else None
    key = known or await run_in_threadpool(_find, coordinator, credentials.credentials)
    coordinator.pace.take(key.id)
    return Principal(key.id, tuple(key.scopes))


def _find(coordinator: Coordinator, text: str) -> ApiKey:
    looked = time.monotonic()
    with coordinator.database.read() as session:
        key = keys.find(session, text)
    if key is None:
        raise NotAuthorised("unknown or revoked API key")
    coordinator.known_keys.put(text, key, looked)
    return key


async def while_valid(coordinator: Coordinator, caller: Principal, frames: AsyncIterator[str]) -> AsyncIterator[str]:
    """`frames` until they end or the caller's key does: a stream may last for days."""
    looked = time.monotonic()
    async for frame in frames:
        if caller.id != LOCAL and time.monotonic() - looked >= LOOK_AGAIN_SECONDS:
            if not await run_in_threadpool(_is_live, coordinator, caller.id):
                return
            looked = time.monotonic()
        yield frame


def _is_live(coordinator: Coordinator, id: str) -> bool:
    with coordinator.database.read() as session:
        return keys.is_live(session, id)


Caller = Annotated[Principal, Depends(identify)]


def _require(caller: Principal, scope: str) -> Principal:
    if not caller.may(scope):
        raise NotAuthorised(f"this needs a key with the scope {scope!r}", missing_scope=scope)
    return caller


async def _reader(caller: Caller) -> Principal:
    return _require(caller, "read")


async def _runner(caller: Caller) -> Principal:
    return _require(caller, "run")


async def _admin(caller: Caller) -> Principal:
    return _require(caller, "admin")


Reader = Annotated[Principal, Depends(_reader)]
Runner = Annotated[Principal, Depends(_runner)]
Admin = Annotated[Principal, Depends(_admin)]
