"""Who calls, and what they may do: keys with scopes, required when the coordinator is bound off loopback."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from winnow.errors import NotAuthorised
from winnow.perimeter import is_from_here
from winnow.problems import require_known_query
from winnow.settings import is_loopback
from winnow.store import keys
from winnow.store.tables import ApiKey
from winnow_coordinator.context import Coordinator
from winnow_coordinator.reads import Reads

LOCAL = "local"
"""The caller without a key, on loopback."""
LOOK_AGAIN_SECONDS = 10.0
"""How long a stream may go on before its key is looked at again."""
_bearer = HTTPBearer(auto_error=False, description="An API key, `wnw_…`; not needed on loopback")
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


@dataclass(frozen=True)
class Principal:
    """A caller: the id of its key, or `local`, and how it is answered. Scopes ascend: run includes read, admin both."""

    id: str
    scopes: tuple[str, ...]
    coordinator: Coordinator
    reads: Reads

    def may(self, scope: str) -> bool:
        return any(keys.SCOPES.index(held) >= keys.SCOPES.index(scope) for held in self.scopes)


async def identify(request: Request, credentials: _Credentials) -> Principal:
    """The caller. It is known before the request's transaction begins, so that a stranger locks nothing.

    Raises NotAuthorised for no key where one is needed, and for a wrong or revoked one; TooManyRequests.
    """
    coordinator, reads = request.app.state.coordinator, request.app.state.reads
    if credentials is None:
        settings = coordinator.settings
        if is_loopback(settings.coordinator_host) and not settings.require_key and is_from_here(request):
            return Principal(LOCAL, keys.SCOPES, coordinator, reads)
        raise NotAuthorised("this coordinator needs an API key: Authorization: Bearer wnw_…")
    known = coordinator.known_keys.get(credentials.credentials) if request.method == "GET" else None
    key = known or await _find(coordinator, reads, credentials.credentials)
    coordinator.pace.take(key.id)
    return Principal(key.id, tuple(key.scopes), coordinator, reads)


async def _find(coordinator: Coordinator, reads: Reads, text: str) -> ApiKey:
    looked = time.monotonic()
    key = await reads(keys.find, text)
    if key is None:
        raise NotAuthorised("unknown or revoked API key")
    coordinator.known_keys.put(text, key, looked)
    return key


async def while_valid(caller: Principal, frames: AsyncIterator[str]) -> AsyncIterator[str]:
    """`frames` until they end or the caller's key does: a stream may last for days."""
    looked = time.monotonic()
    async for frame in frames:
        if caller.id != LOCAL and time.monotonic() - looked >= LOOK_AGAIN_SECONDS:
            if not await caller.reads(keys.is_live, caller.id):
                return
            looked = time.monotonic()
        yield frame


Caller = Annotated[Principal, Depends(identify)]


async def _require(request: Request, caller: Principal, scope: str) -> Principal:
    if not caller.may(scope):
        raise NotAuthorised(f"this needs a key with the scope {scope!r}", missing_scope=scope)
    await require_known_query(request)
    return caller


# Without the level between: what FastAPI does for each dependency is most of what a small read costs.
async def _reader(request: Request, credentials: _Credentials) -> Principal:
    return await _require(request, await identify(request, credentials), "read")


async def _runner(request: Request, caller: Caller) -> Principal:
    return await _require(request, caller, "run")


async def _admin(request: Request, caller: Caller) -> Principal:
    return await _require(request, caller, "admin")


Reader = Annotated[Principal, Depends(_reader)]
Runner = Annotated[Principal, Depends(_runner)]
Admin = Annotated[Principal, Depends(_admin)]
