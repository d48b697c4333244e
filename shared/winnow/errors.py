"""Every error Winnow raises on purpose, in one tree.

    WinnowError
    ├── InvalidInput            a value a person gave; `field` says which
    │   ├── ImagesUnreadable    files of a dataset that could not be decoded, the first ten with the reason
    │   └── IdempotencyConflict the same key came with another body
    ├── PathForbidden           outside the allow-listed roots
    ├── NotAuthorised           no key, a wrong key, or a key without the scope
    ├── TooManyRequests         a key asks faster than it may; carries when to come back
    ├── NotFound                no such row or artefact
    ├── AlreadyExists           a name that is taken
    ├── InUse                   something that others need cannot go
    ├── WrongState              a transition that the table does not allow; carries current and allowed
    ├── Fenced                  another worker holds the claim now: discard the work
    ├── ArtefactCorrupt         bytes that do not match their sha256
    ├── ImageTooSlow            one image whose decoding does not end
    ├── TrainingFailed          the round cannot go on: NaN loss, out of memory, disk full
    ├── BeginAnew               one process of a team met a limit: all of them begin the round anew within it
    ├── WrongSchema             the database's schema is older or newer than the code
    └── Unavailable             a service is down for now; trying again is right

The selection library raises plain ValueError, so that it stands alone. HTTP codes live in the services.
"""

from collections.abc import Mapping, Sequence
from typing import Self

from winnow.paths import as_text

NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find an engine to execute",
)
"""What torch, CUDA and the C library say, in whatever type of exception. The last is cuDNN's convolution, which passes
over each algorithm whose memory it does not get and then has none left.
"""


SHOWN = 5
"""Of a longer list that an error names."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a processor's host or of a GPU."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY)


class WinnowError(Exception):
    """The root. `code` is stable: clients may branch on it."""

    code = "error"


class InvalidInput(WinnowError):
    """A value a person gave cannot be used. `field` is a dotted path into what was sent."""

    code = "invalid"

    def __init__(self, field: str, reason: str) -> None:
        reason = as_text(reason)  # files are named in it, and it is sent and stored
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason

    @classmethod
    def of(cls, error: ValueError) -> Self:
        """What the library refused as `name: what it needs, got what`."""
        field, _, reason = str(error).partition(": ")
        return cls(field, reason) if reason else cls("request", field)


class ImagesUnreadable(InvalidInput):
    """Some files of a dataset could not be decoded and the policy is `fail`."""

    code = "images-unreadable"

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        shown = "; ".join(f"{name}: {why}" for name, why in problems[:10])
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        hint = "Set `on_unreadable: skip` to leave them out and list them, and add it again: what is packed is kept. "
        hint += "Or mend or remove them: what is packed before the first of them is kept."
        super().__init__("sources", f"{len(problems)} unreadable: {shown}{more}. {hint}")
        self.problems = list(problems)


class IdempotencyConflict(InvalidInput):
    """One Idempotency-Key, two different bodies."""

    code = "idempotency-conflict"

    def __init__(self, key: str) -> None:
        super().__init__("Idempotency-Key", f"{key!r} was already used with another body; send a new key")


class PathForbidden(WinnowError):
    """A path resolves outside the allow-listed roots."""

    code = "path-forbidden"

    def __init__(self, path: str, roots: Sequence[str]) -> None:
        path, allowed = as_text(path), ", ".join(roots) or "none"
        advice = "allow its folder by WINNOW_DATA_ROOTS, or winnow up --data-root"
        super().__init__(f"{path} lies outside the allowed data roots ({allowed}); {advice}")
        self.path = path
        self.roots = list(roots)


class NotAuthorised(WinnowError):
    """No key, a wrong key, or a key without the scope that the call needs."""

    code = "not-authorised"

    def __init__(self, reason: str, *, missing_scope: str | None = None) -> None:
        super().__init__(reason)
        self.missing_scope = missing_scope


class TooManyRequests(WinnowError):
    """A key asks faster than it may. `retry_after` is in whole seconds."""

    code = "too-many-requests"

    def __init__(self, per_second: float, retry_after: int) -> None:
        super().__init__(f"this key may ask {per_second:g} times a second; try again in {retry_after} s")
        self.retry_after = retry_after


class NotFound(WinnowError):
    """No such thing."""

    code = "not-found"

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"no {kind} {id!r}")
        self.kind = kind
        self.id = id


class AlreadyExists(WinnowError):
    """The name is taken."""

    code = "already-exists"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name!r} already exists; choose another name")
        self.kind = kind
        self.name = name


class InUse(WinnowError):
    """It cannot go while others need it."""

    code = "in-use"

    def __init__(self, kind: str, name: str, users: Sequence[str], advice: str) -> None:
        shown = ", ".join(users[:SHOWN]) + (f" and {len(users) - SHOWN} more" if len(users) > SHOWN else "")
        super().__init__(f"{kind} {name} is in use by experiments: {shown}; {advice}")
        self.kind = kind
        self.name = name
        self.users = list(users)


class WrongState(WinnowError):
    """A transition that is not in the table, or that lost a race."""

    code = "wrong-state"

    def __init__(
        self, kind: str, id: str, current: str, target: str, allowed: Sequence[str], *, words: str | None = None
    ) -> None:
        choices = ", ".join(allowed) or "nothing: it has ended"
        super().__init__(words or f"{kind} {id} is {current} and cannot become {target}; from here: {choices}")
        self.kind = kind
        self.id = id
        self.current = current
        self.target = target
        self.allowed = list(allowed)


class Fenced(WinnowError):
    """A later attempt holds this row: whatever was computed under the old one is discarded."""

    code = "fenced"

    def __init__(self, kind: str, id: str, attempt: int) -> None:
        super().__init__(f"{kind} {id}: attempt {attempt} no longer holds the claim")
        self.kind = kind
        self.id = id
        self.attempt = attempt


class ArtefactCorrupt(WinnowError):
    """Stored bytes do not match the sha256 recorded when they were written."""

    code = "artefact-corrupt"


class TrainingFailed(WinnowError):
    """The round cannot go on with this spec on this machine. The text says what a person can do."""

    code = "training-failed"


class BeginAnew(WinnowError):
    """One process of a team met a limit of its own while the others wait for it in mid-step: all must begin anew."""

    code = "begin-anew"

    def __init__(self, limits: Mapping[str, int | str | None]) -> None:
        super().__init__(f"one of several processes cannot go on as they began; within these limits all may: {limits}")
        self.limits = dict(limits)


class WrongSchema(WinnowError):
    """The database's schema is not the one that this code is written for. The text says what to update."""

    code = "wrong-schema"

    def __init__(self, found: str | None, wanted: str) -> None:
        newer = found is not None and found > wanted
        state = f"has schema {found}" if found else "has no tables"
        advice = "update this program" if newer else "run `python -m winnow_coordinator migrate` of this version first"
        super().__init__(f"the database {state}, and this program is written for schema {wanted}: {advice}")
        self.found = found
        self.wanted = wanted


class ImageTooSlow(WinnowError):
    """Decoding one image took longer than it may: the file is made to, or the disk hangs."""

    code = "image-too-slow"

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(f"{name} was not decoded within {seconds:g} s; remove it, or allow more time")
        self.name = name


class Unavailable(WinnowError):
    """A service does not answer for now."""

    code = "unavailable"
