"""Who calls, and what they may do: keys with scopes, required when the coordinator is bound off loopback."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from winnow.errors import NotAuthorised
from winnow.settings import is_loopback
from winnow.store import keys
from winnow_coordinator.access import Here

_bearer = HTTPBearer(auto_error=False, description="An API key, `wnw_…`; not needed on loopback")
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


@dataclass(frozen=True)
class Principal:
    """A caller: the id of its key, or `local`. Scopes ascend: run includes read, admin includes both."""

    id: str
    scopes: tuple[str, ...]

    def may(self, scope: str) -> bool:
        return any(keys.SCOPES.index(held) >= keys.SCOPES.index(scope) for held in self.scopes)


def identify(request: Request, coordinator: Here, credentials: _Credentials) -> Principal:
    """The caller. Its transaction ends before the request's own begins, so that a stranger locks nothing.

    Raises NotAuthorised for no key where one is needed, and for a wrong or revoked one.
    """
    if credentials is None:
        # A page in a browser can resolve its own name to 127.0.0.1: the name asked for must be loopback's, too.
        if is_loopback(coordinator.settings.coordinator_host) and is_loopback(request.url.hostname or ""):
            return Principal("local", keys.SCOPES)
        raise NotAuthorised("this coordinator needs an API key: Authorization: Bearer wnw_…")
    with coordinator.database.read() as session:
        key = keys.find(session, credentials.credentials)
    if key is None:
        raise NotAuthorised("unknown or revoked API key")
    return Principal(key.id, tuple(key.scopes))


Caller = Annotated[Principal, Depends(identify)]


def _require(caller: Principal, scope: str) -> Principal:
    if not caller.may(scope):
        raise NotAuthorised(f"this needs a key with the scope {scope!r}", missing_scope=scope)
    return caller


def _reader(caller: Caller) -> Principal:
    return _require(caller, "read")


def _runner(caller: Caller) -> Principal:
    return _require(caller, "run")


def _admin(caller: Caller) -> Principal:
    return _require(caller, "admin")


Reader = Annotated[Principal, Depends(_reader)]
Runner = Annotated[Principal, Depends(_runner)]
Admin = Annotated[Principal, Depends(_admin)]
