"""API keys, stored hashed, and the answers kept for Idempotency-Keys."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from winnow.errors import NotFound
from winnow.store.engine import now
from winnow.store.tables import ApiKey, IdempotencyKey

SCOPES = ("read", "run", "admin")
KEPT_SECONDS = 86_400.0
_OUTDATED = IdempotencyKey.created_at < now() - KEPT_SECONDS
_LIVE = select(ApiKey).where(ApiKey.digest == bindparam("digest"), ApiKey.revoked_at.is_(None))


def digest_of(key: str) -> str:
    """sha256 of a key. Keys are 256 random bits, so a slow password hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def create(session: Session, name: str, scopes: Sequence[str], *, key: str | None = None) -> tuple[ApiKey, str]:
    """A new key and, once, its text. A given `key` (the bootstrap key) is stored at most once."""
    text = key or f"wnw_{secrets.token_urlsafe(32)}"
    known = session.scalar(select(ApiKey).where(ApiKey.digest == digest_of(text)))
    if known is None:
        known = ApiKey(name=name, digest=digest_of(text), scopes=list(scopes), created_at=now())
        session.add(known)
        session.flush()
        session.refresh(known)
    return known, text


def find(session: Session, text: str) -> ApiKey | None:
    """The live key with this text.

    Looking up a digest leaks nothing by its timing: nobody can choose a text by its sha256. What was found is compared
    in constant time all the same, so that this does not rest on how a database compares.
    """
    digest = digest_of(text)
    found = session.scalar(_LIVE, {"digest": digest})
    return found if found is not None and hmac.compare_digest(found.digest, digest) else None


def is_live(session: Session, id: str) -> bool:
    """Whether a key is there and not revoked."""
    live = select(ApiKey.id).where(ApiKey.id == id, ApiKey.revoked_at.is_(None))
    return session.execute(live).first() is not None


def any_admin(session: Session) -> bool:
    """Whether a live key may make others."""
    live = session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)))
    return any("admin" in key.scopes for key in live)


def page(session: Session, *, before: str | None, limit: int) -> list[ApiKey]:
    """Keys from the newest on, starting below the id `before`."""
    wanted = select(ApiKey).order_by(ApiKey.id.desc()).limit(limit)
    return list(session.scalars(wanted.where(ApiKey.id < before) if before else wanted))


def revoke(session: Session, id: str) -> None:
    """End a key. Raises NotFound."""
    ended = update(ApiKey).where(ApiKey.id == id, ApiKey.revoked_at.is_(None)).values(revoked_at=now())
    if session.execute(ended.returning(ApiKey.id)).first() is None:
        raise NotFound("key", id)


def answered(session: Session, principal: str, key: str) -> IdempotencyKey | None:
    """The first answer given to this key, if there is one that is still kept."""
    wanted = select(IdempotencyKey).where(IdempotencyKey.principal == principal, IdempotencyKey.key == key)
    return session.scalar(wanted.where(IdempotencyKey.created_at >= now() - KEPT_SECONDS))


def reserve(session: Session, principal: str, key: str, digest: str) -> IdempotencyKey | None:
    """Take an Idempotency-Key for this transaction, or return the row with the first answer.

    A request that arrives while the first one is still at work waits here until that one commits or rolls back.
    """
    mine = IdempotencyKey.principal == principal, IdempotencyKey.key == key
    session.execute(delete(IdempotencyKey).where(*mine, _OUTDATED))
    try:
        with session.begin_nested():
            session.add(
                IdempotencyKey(principal=principal, key=key, digest=digest, status=0, body={}, created_at=now())
            )
    except IntegrityError:
        return session.get_one(IdempotencyKey, (principal, key), populate_existing=True)
    return None


def forget_answers(session: Session) -> None:
    """Delete the answers that are kept no more."""
    session.execute(delete(IdempotencyKey).where(_OUTDATED))


def remember(
    session: Session, principal: str, key: str, *, status: int, body: dict[str, Any], location: str | None
) -> None:
    """Keep the answer to a reserved key for a day."""
    session.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.principal == principal, IdempotencyKey.key == key)
        .values(status=status, body=body, location=location)
        .execution_options(synchronize_session=False)
    )
