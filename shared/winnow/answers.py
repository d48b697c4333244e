"""How a coordinator answers a client: with what it was asked for, a problem, or not at all."""

import json
import threading
import time
from typing import Any

import httpx

from winnow.errors import WinnowError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
"""Seconds before the second try, which double up to the longest."""
_AWAY = frozenset({502, 503, 504})


class ApiProblem(WinnowError):
    """The coordinator refused. `code` is stable, `problem` the whole RFC 9457 document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or f"HTTP {status}")
        self.status = status
        self.problem = problem
        self.code = str(problem.get("code", "http-error"))

    @property
    def is_not_found(self) -> bool:
        return self.code == "not-found"


class Patience:
    """Pauses that double, until `seconds` have passed without an answer."""

    def __init__(self, seconds: float, pause: threading.Event) -> None:
        self._until = time.monotonic() + seconds
        self._event = pause
        self._pause = FIRST_PAUSE

    @property
    def is_over(self) -> bool:
        """Whether it is time to give up."""
        return time.monotonic() >= self._until

    def wait(self) -> None:
        """Pause before the next try."""
        self._event.wait(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def is_final(error: httpx.TransportError | ApiProblem) -> bool:
    """Whether asking again would change nothing."""
    return isinstance(error, ApiProblem) and error.status not in _AWAY


def may_have_acted(error: Exception) -> bool:
    """Whether a call that ended so may have reached the coordinator."""
    if isinstance(error, ApiProblem):
        return error.status == 504
    return not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def require_success(answer: httpx.Response) -> None:
    """Raises ApiProblem for what is none."""
    if answer.is_success:
        return
    try:
        problem = json.loads(answer.read())
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"title": f"HTTP {answer.status_code} from {answer.url}, and no problem document: is that Winnow?"}
    raise ApiProblem(answer.status_code, problem)
