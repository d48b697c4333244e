"""Errors as RFC 9457 problem+json: the one place where Winnow's errors meet HTTP codes, for every service."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.params import Query
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from winnow import errors
from winnow.telemetry import logger

MEDIA_TYPE = "application/problem+json"
MOST_ERRORS = 20
"""Values at fault that an answer names."""
_log = logger("problems")

STATUS: dict[type[errors.WinnowError], int] = {
    errors.InvalidInput: 422,
    errors.PathForbidden: 403,
    errors.NotAuthorised: 401,
    errors.TooManyRequests: 429,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.InUse: 409,
    errors.WrongState: 409,
    errors.Fenced: 409,
    errors.ArtefactCorrupt: 500,
    errors.TrainingFailed: 500,
    errors.Unavailable: 503,
    errors.WrongSchema: 503,
}
"""HTTP status by error; a subclass answers as its parent does."""

_FRAMEWORK_CODES = {404: "not-found", 405: "method-not-allowed", 406: "not-acceptable", 413: "too-large"}
_SHOWN = ("field", "users", "current", "allowed", "missing_scope", "needed_bytes", "budget_bytes")


class FieldProblem(BaseModel):
    """One value that cannot be used, by its dotted path."""

    field: str
    reason: str


class Problem(BaseModel):
    """What every error answers. Clients may branch on `code`; it does not change."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:winnow:problem:invalid",
                "title": "Unprocessable Content",
                "status": 422,
                "detail": "rounds: 20 rounds of 1000 need 20000 pool samples; nct has 9900",
                "code": "invalid",
                "field": "rounds",
                "errors": [{"field": "rounds", "reason": "20 rounds of 1000 need 20000 pool samples; nct has 9900"}],
            }
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = Field(default=None, description="The value at fault")
    errors: list[FieldProblem] | None = Field(default=None, description=f"Values at fault, {MOST_ERRORS} at most")
    users: list[str] | None = Field(default=None, description="in-use: the ids of what needs it")
    current: str | None = Field(default=None, description="wrong-state: the state now")
    allowed: list[str] | None = Field(default=None, description="wrong-state: the states that it may become")
    needed_bytes: int | None = Field(default=None, description="does-not-fit: the memory that it would need")
    budget_bytes: int | None = Field(default=None, description="does-not-fit: the memory that there is for all")
    missing_scope: str | None = Field(default=None, description="not-authorised: the scope that the key lacks")


class TooLarge(errors.InvalidInput):
    """More than one request may carry."""

    code = "too-large"


class NotAcceptable(errors.WinnowError):
    """The Accept header names nothing that can be sent."""

    code = "not-acceptable"

    def __init__(self, accept: str, offered: Sequence[str]) -> None:
        super().__init__(f"Accept: {accept} names none of {', '.join(offered)}")


STATUS[NotAcceptable] = 406
STATUS[TooLarge] = 413


def install(app: FastAPI) -> None:
    """Let `app` answer every error as a problem."""
    app.add_exception_handler(errors.WinnowError, _answer_winnow)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_framework)
    app.add_exception_handler(Exception, _answer_unexpected)


def answer(
    status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """A problem document. `more` holds the fields of this kind of problem; None is left out."""
    problem = Problem(
        type=f"urn:winnow:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        **more,
    )
    body = problem.model_dump(mode="json", exclude_none=True)
    return JSONResponse(body, status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


async def require_known_query(request: Request) -> None:
    """Raise InvalidInput for a query key that the route has not: a filter that is passed over shows too much.

    For whoever may ask at all: a stranger is told of the missing key first.
    """
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    known = [field.alias for field in get_flat_params(route.dependant) if isinstance(field.field_info, Query)]
    for key in request.query_params:
        if key not in known:
            raise errors.InvalidInput(key, f"is no query parameter here; these are: {', '.join(known) or 'none'}")


def status_of(error: errors.WinnowError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, errors.NotAuthorised) and error.missing_scope:
        return 403
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI: the problems that a route answers."""
    return {
        status: {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": HTTPStatus(status).phrase}
        for status in statuses
    }


def relabel(document: dict[str, Any], *, needs_key: bool) -> dict[str, Any]:
    """An OpenAPI description as this service is run.

    Problems are under their own media type (FastAPI puts every model under JSON's), and a key is called optional where
    the service asks for none.
    """
    for operations in document["paths"].values():
        for operation in operations.values():
            for described in operation["responses"].values():
                content = described.get("content", {})
                if MEDIA_TYPE in content and "application/json" in content:
                    content[MEDIA_TYPE] = content.pop("application/json")
            if "security" in operation and not needs_key and {} not in operation["security"]:
                operation["security"] = [*operation["security"], {}]
    return document


def field_errors(found: Sequence[Mapping[str, Any]]) -> list[FieldProblem]:
    """What pydantic found, by dotted path. A check over several fields names its field first: `field: reason`."""
    return [_field_error(one) for one in found]


def _field_error(found: Mapping[str, Any]) -> FieldProblem:
    if found["type"] == "json_invalid":
        return FieldProblem(field="body", reason=f"is no JSON: {found['ctx']['error']} at character {found['loc'][-1]}")
    first, *rest = [str(part) for part in found["loc"]] or ["body"]
    path = rest if first in ("body", "query", "path", "header") else [first, *rest]
    reason = str(found["msg"]).removeprefix("Value error, ")
    if named := re.match(r"([a-z_.]+): (.+)", reason, re.DOTALL):
        path.append(named[1])
        reason = named[2]
    return FieldProblem(field=".".join(path) or "body", reason=reason)


def _answer_winnow(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.WinnowError)
    status = status_of(error)
    if status >= 500:
        _log.error("request.failed", code=error.code, reason=str(error))
    more = {name: getattr(error, name) for name in _SHOWN if getattr(error, name, None) is not None}
    if isinstance(error, errors.InvalidInput):
        more["errors"] = [FieldProblem(field=error.field, reason=error.reason)]
    return answer(status, error.code, str(error), headers=_headers_of(error, status), **more)


def _headers_of(error: errors.WinnowError, status: int) -> dict[str, str]:
    if isinstance(error, errors.TooManyRequests):
        return {"Retry-After": str(error.retry_after)}
    return {"WWW-Authenticate": "Bearer"} if status == 401 else {}


def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    wrong = error.errors()
    found = field_errors(wrong[:MOST_ERRORS])
    if isinstance(error.body, bytes) and found[0].field == "body":  # the framework reads no other type as JSON
        type = request.headers.get("content-type", "none")
        found = [FieldProblem(field="body", reason=f"needs the header Content-Type: application/json, got {type}")]
    more = [f"and {len(wrong) - len(found)} more"] if len(wrong) > len(found) else []
    detail = "; ".join([*(f"{one.field}: {one.reason}" for one in found), *more])
    return answer(422, "invalid", detail, field=found[0].field, errors=found)


def _answer_framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's for a body that is no JSON text at all: not UTF-8, nested without end
        why = "needs JSON in UTF-8, nested less deeply"
        return answer(422, "invalid", f"body: {why}", field="body", errors=[FieldProblem(field="body", reason=why)])
    code = _FRAMEWORK_CODES.get(error.status_code, "http-error")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request, headers.get("Allow", ""))
    return answer(error.status_code, code, str(error.detail), headers=headers)


def _allowed(request: Request, known: str) -> str:
    """Every method that the path has: each is a route of its own, and the framework knows those of the first."""
    path = request.scope["path"]
    found = [operations for template, operations in request.app.openapi()["paths"].items() if _fits(template, path)]
    methods = {method.upper() for operations in found for method in operations}
    return ", ".join(sorted(methods | {method.strip() for method in known.split(",") if method.strip()}))


def _fits(template: str, path: str) -> bool:
    return compile_path(template)[0].match(path) is not None


def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("request.failed", code="internal", path=request.url.path, exc_info=error)
    return answer(500, "internal", "the service failed; its log says why")
