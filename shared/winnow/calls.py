"""Calls to a coordinator, repeated where that does no harm.

One that answered before is waited for while it restarts; one that never did is soon given up.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

import httpx

from winnow.answers import ApiProblem, Patience, is_final, may_have_acted, require_success
from winnow.errors import Unavailable
from winnow.negotiation import NDJSON

Json = dict[str, Any]
START_SECONDS, RESTART_SECONDS = 3.0, 60.0
"""How long a coordinator that never answered, or that answered before, is asked again."""
LONG_SECONDS = 900.0
"""How long a call may take that removes millions of rows, or looks through the files of as many patches."""
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Calls:
    """The connections to one coordinator. Threads may share them.

    Args:
        url: where it is, without `/api/v1`. key: an API key. timeout: seconds to wait for an answer.
        on_silence: called with a sentence when one that answered before is waited for, once until it answers again.

    What asks raises ApiProblem when the coordinator refuses, and Unavailable when it does not answer.
    """

    def __init__(self, url: str, key: str, timeout: float, on_silence: Callable[[str], object] | None) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        outside = httpx.URL(url).host not in _LOOPBACK  # a proxy for the outside world does not know this machine
        self.http = httpx.Client(
            base_url=f"{url}/api/v1",
            headers=headers,
            timeout=timeout,
            limits=httpx.Limits(max_connections=None),  # an event stream holds one as long as it lasts
            trust_env=outside,
            follow_redirects=True,
        )
        self.pause = threading.Event()
        self._usual, self._long = httpx.Timeout(timeout), httpx.Timeout(timeout, read=LONG_SECONDS)
        self._answered = False
        self._is_silent = False
        self._telling = threading.Lock()
        self._on_silence = on_silence

    def get(self, path: str, **query: Any) -> Json:
        """One JSON object. Query values that are None are left out, as in all that follow."""
        return self.send("GET", path, params=_given(query)).json()

    def pages(self, path: str, **query: Any) -> Iterator[Json]:
        """The items of all pages of a list."""
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, **query)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def lines(self, path: str, **query: Any) -> Iterator[Json]:
        """Objects, a line each. A stream that breaks is asked for anew, and taken up behind what was had of it."""
        had, effort = 0, self.begin()
        while True:
            try:
                for line in islice(self._stream_lines(path, _given(query)), had, None):
                    had += 1
                    effort.succeed()
                    yield json.loads(line)
                return
            except (httpx.TransportError, ApiProblem) as error:
                effort.miss(error)

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, key: str = "", is_long: bool = False) -> Json:
        """What came of it. It is repeated under its Idempotency-Key, and where it has none not at all."""
        headers = {"Idempotency-Key": key} if key else {}
        timeout = self._long if is_long else self._usual
        return self.send("POST", path, repeatable=bool(key), json=body, headers=headers, timeout=timeout).json()

    def delete(self, path: str) -> None:
        """Remove it. One that is gone when it is asked for again went with the first call, whose answer was lost."""
        missed: list[Exception] = []
        try:
            self.send("DELETE", path, on_repeat=missed.append, timeout=self._long)
        except ApiProblem as problem:
            if not problem.is_not_found or not any(map(_may_have_removed, missed)):
                raise

    def send(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        on_repeat: Callable[[Exception], object] = lambda error: None,
        **request: Any,
    ) -> httpx.Response:
        """One call and its repeats."""
        effort = self.begin()
        while True:
            try:
                answer = self.http.request(method, path, **request)
                require_success(answer)
            except (httpx.TransportError, ApiProblem) as error:
                if not repeatable:
                    self.give_up(error)
                effort.miss(error, lambda error=error: on_repeat(error))
            else:
                self.hear()
                return answer

    def begin(self) -> "Effort":
        """Something that several calls are one try of."""
        return Effort(self)

    def be_patient(self) -> Patience:
        """As long as this coordinator is worth it."""
        return Patience(RESTART_SECONDS if self._answered else START_SECONDS, self.pause)

    def hear(self) -> None:
        """Note an answer."""
        self._answered, self._is_silent = True, False

    def miss(self, error: Exception) -> None:
        """Say once what is waited for, if there was an answer before."""
        with self._telling:
            is_news, self._is_silent = self._answered and not self._is_silent, True
        if is_news and self._on_silence is not None:
            found = f"{self.url} says: {error}" if isinstance(error, ApiProblem) else f"no answer from {self.url}"
            self._on_silence(f"{found}; it is asked again for {RESTART_SECONDS:g} s")

    def give_up(self, error: httpx.TransportError | ApiProblem) -> NoReturn:
        """Raise what a caller is to see."""
        if isinstance(error, ApiProblem):
            raise error
        reason = str(error) or type(error).__name__
        raise Unavailable(f"no answer from {self.url} ({reason}); is the stack up? `winnow up` starts one") from error

    def _stream_lines(self, path: str, query: Json) -> Iterator[bytes]:
        with self.http.stream("GET", path, params=query, headers={"Accept": NDJSON}) as answer:
            require_success(answer)
            if not answer.headers.get("Content-Type", "").startswith(NDJSON):  # it knows pages alone
                raise ApiProblem(406, {"detail": f"the coordinator at {self.url} is older than this client: update it"})
            self.hear()
            rest = b""
            for chunk in answer.iter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")  # httpx would end a line at any of Unicode's ends, too
                yield from lines
            if rest:
                raise httpx.RemoteProtocolError("the answer ended within a line")


class Effort:
    """One thing that is tried until it is done, or patience is over.

    Patience begins with the first failure: a call may itself take longer.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._patience: Patience | None = None

    def succeed(self) -> None:
        """It got on: the next failure is a first one again."""
        self._patience = None

    def miss(self, error: httpx.TransportError | ApiProblem, tell: Callable[[], object] = lambda: None) -> None:
        """Pause before the next try, which `tell` hears of. Raises where there is to be none."""
        self._patience = self._patience or self._calls.be_patient()
        if is_final(error) or self._patience.is_over:
            self._calls.give_up(error)
        self._calls.miss(error)
        tell()
        self._patience.wait()


def _given(query: Json) -> Json:
    return {name: value for name, value in query.items() if value is not None}


def _may_have_removed(error: Exception) -> bool:
    """Whether a removal went on after it was answered so: one that a coordinator leaves to another (503) does."""
    return may_have_acted(error) or (isinstance(error, ApiProblem) and error.status == 503)
