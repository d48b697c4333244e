"""The sampling service, asked over HTTP: one request is one selection, however often it is sent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httpx

from winnow.errors import ArtefactCorrupt, InvalidInput, Unavailable, WinnowError
from winnow.failpoints import Failpoint, reach
from winnow.settings import Settings

POLL_SECONDS = 0.5
Beat = Callable[[dict[str, Any]], None]
"""Called with the progress ({done, total}) while a selection is computed; it waits a little, and raises to stop."""


class CalledOff(WinnowError):
    """Nobody wants the selection any more."""

    code = "called-off"


@dataclass(frozen=True)
class Picked:
    """What the sampler answered: positions among the candidates, in the order of picking."""

    id: str
    positions: list[int]
    scores: list[float]
    radius: float | None
    seconds: float
    notes: list[str]


class Sampler:
    """A client of one sampler."""

    def __init__(self, settings: Settings) -> None:
        token = settings.sampler_token.get_secret_value()
        self._url = settings.sampler_url
        self._http = httpx.Client(
            base_url=settings.sampler_url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(settings.answer_seconds + 5, connect=5),
            trust_env=False,  # a proxy for the outside world does not know the sampler
        )

    def close(self) -> None:
        self._http.close()

    def select(self, request: dict[str, Any], beat: Beat) -> Picked:
        """The selection for `request`, waited for.

        Raises Unavailable when the sampler is down or has no room (try again), InvalidInput when it refuses the request
        and ArtefactCorrupt when it refuses the arrays (trying again is in vain), WinnowError when it fails at them, and
        whatever `beat` raises. The job is cancelled when that is CalledOff, and else goes on: whoever asks for the same
        later joins it.
        """
        answer = self._ask("POST", "/v1/selections", json=request)
        reach(Failpoint.SAMPLER_ASKED)
        while answer["status"] in ("queued", "running", "cancelled"):
            path = f"/v1/selections/{answer['id']}"
            try:
                beat(answer.get("progress") or {})
            except CalledOff:
                self._cancel(path)
                raise
            answer = self._ask("GET", path, missing=True)
            if answer.get("status") in (None, "cancelled"):  # a restarted sampler knows no jobs; others call them off
                answer = self._ask("POST", "/v1/selections", json=request)
        return _read(answer)

    def _cancel(self, path: str) -> None:
        try:
            self._http.delete(path)
        except httpx.HTTPError:
            return  # nobody waits for its result; the sampler ends it by itself

    def _ask(self, method: str, path: str, *, json: Any = None, missing: bool = False) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=json)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"the sampler at {self._url} does not answer ({reason}); it is asked again") from error
        if missing and response.status_code == 404:
            return {}
        if response.is_success:
            return _document(response)
        raise self._refusal(response)

    def _refusal(self, response: httpx.Response) -> Exception:
        problem = _document(response, strict=False)
        reason = f"{response.status_code} {problem.get('detail') or response.reason_phrase}"
        if response.status_code in (401, 403):
            return Unavailable(f"the sampler at {self._url} refuses the token ({reason}); check WINNOW_SAMPLER_TOKEN")
        if problem.get("code") == ArtefactCorrupt.code:  # bytes do not mend themselves
            return ArtefactCorrupt(f"the sampler refuses it: {reason}")
        if response.status_code == 500 and "code" in problem:
            return WinnowError(f"the sampler at {self._url} fails at it ({reason}); its log says more")
        if response.is_server_error or response.status_code in (408, 429):
            return Unavailable(f"the sampler at {self._url} fails ({reason}); it is asked again")
        return InvalidInput("selection", f"the sampler refuses it: {reason}")


def _document(response: httpx.Response, *, strict: bool = True) -> dict[str, Any]:
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return cast("dict[str, Any]", body)
    if strict:
        raise Unavailable(f"{response.url} answers something that is not a selection; is it the sampler?")
    return {}


def _read(answer: dict[str, Any]) -> Picked:
    if answer["status"] == "done":
        return Picked(
            id=answer["id"],
            positions=answer["indices"],
            scores=answer["scores"],
            radius=answer.get("radius"),
            seconds=answer["seconds"],
            notes=answer.get("notes") or [],
        )
    raise Unavailable(f"the sampler ended the selection as {answer['status']}: {answer.get('error') or 'no reason'}")
