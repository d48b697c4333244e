"""The Python client: one class, the same verbs as REST.

    from winnow.client import Client

    with Client("http://127.0.0.1:8000") as client:
        experiment = client.create_experiment({"name": "first", "dataset": "tissue", "positive_class": "TUM"})
        for event in client.events(experiment["id"]):
            print(event.type, event.data)

Answers are the JSON objects that docs/rest.md shows. A call that may be repeated without harm is repeated when the
coordinator does not answer: reads and removals as they are, calls that create under one Idempotency-Key. One that
answered before is waited for while it restarts; one that never did is soon given up.
"""

import csv
import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx
import numpy as np
from httpx_sse import ServerSentEvent, connect_sse
from numpy.typing import NDArray

from winnow.addresses import address, artefact_address
from winnow.answers import FIRST_PAUSE, ApiProblem, require_success
from winnow.calls import Calls
from winnow.domain import DatasetSpec, ExperimentSpec, ExperimentStatus, has_ended
from winnow.errors import ArtefactCorrupt

Json = dict[str, Any]
QUIET_SECONDS = 60.0
"""The coordinator sends a comment every 15 s on a silent event stream; after this long it is taken for dead."""


@dataclass(frozen=True)
class Event:
    """One server-sent event. `id` is None for `progress`, which is not replayed."""

    type: str
    data: Json
    id: int | None = None


class Client:
    """A coordinator, by its address.

    Args:
        url: where the coordinator is, without `/api/v1`.
        key: an API key; not needed on loopback.
        timeout: seconds to wait for an answer.
        on_silence: called with a sentence when one that answered before is waited for, once until it answers again.

    Threads may share one. Every method raises ApiProblem when the coordinator refuses and Unavailable when it does not
    answer.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str = "",
        *,
        timeout: float = 30.0,
        on_silence: Callable[[str], object] | None = None,
    ) -> None:
        self._calls = Calls(url.rstrip("/"), key, timeout, on_silence)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where the coordinator is."""
        return self._calls.url

    def close(self) -> None:
        """Close the connections."""
        self._calls.http.close()

    def is_ready(self) -> bool:
        """Whether the coordinator answers and reaches its database."""
        try:
            return self._calls.http.get(f"{self.url}/readyz").is_success
        except httpx.TransportError:
            return False

    # Datasets

    def create_dataset(self, spec: DatasetSpec | Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Have a dataset ingested. It is usable once its `status` is ready: `wait_for_dataset`.

        The coordinator looks through the sources before it answers: a minute for a table of ten million rows.
        """
        return self._create("/datasets", spec, idempotency_key, is_long=True)

    def datasets(self) -> Iterator[Json]:
        """All datasets, newest first."""
        return self._calls.pages("/datasets")

    def dataset(self, name: str) -> Json:
        """One dataset, by name or id."""
        return self._calls.get(address("dataset", name))

    def wait_for_dataset(self, name: str) -> Iterator[Json]:
        """Looks at a dataset, twice a second, until it is ready, failed or being removed; the last one says which."""
        while True:
            found = self.dataset(name)
            yield found
            if found["status"] in ("ready", "failed", "removing"):
                return
            self._calls.pause.wait(0.5)

    def remove_dataset(self, name: str) -> None:
        """Forget a dataset that no experiment is on, by name or id. The files it was taken in from stay."""
        id = self.dataset(name)["id"]  # a repeat must not meet another one of that name
        self._calls.delete(address("dataset", id))

    def samples(self, dataset: str, *, role: str | None = None) -> Iterator[Json]:
        """A dataset's samples by idx: idx, key, role, label, group. One stream, whatever their number."""
        id = self.dataset(dataset)["id"]  # a stream that breaks must not be taken up with another one of that name
        return self._calls.lines(address("dataset", id, "samples"), role=role)

    def skipped(self, dataset: str) -> list[dict[str, str]]:
        """The files of a dataset that could not be read: path, reason. Its report names the first of them."""
        answer = self._calls.send("GET", address("dataset", dataset, "skipped"))
        return list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))

    # Experiments

    def create_experiment(
        self, spec: ExperimentSpec | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Json:
        """Begin one experiment. A mapping may name a `preset`."""
        return self._create("/experiments", spec, idempotency_key)

    def experiments(self, *, status: str | None = None, name: str | None = None) -> Iterator[Json]:
        """Experiments, newest first."""
        return self._calls.pages("/experiments", status=status, name=name)

    def experiment(self, id: str) -> Json:
        """One experiment."""
        return self._calls.get(address("experiment", id))

    def pause(self, id: str) -> Json:
        """Ask for a pause; it takes effect within one training step and keeps a checkpoint."""
        return self._calls.post(address("experiment", id, "pause"))

    def resume(self, id: str) -> Json:
        """Go on after a pause, or from the last checkpoint of a round that failed."""
        return self._calls.post(address("experiment", id, "resume"))

    def cancel(self, id: str) -> Json:
        """End an experiment for good. Results so far stay."""
        return self._calls.post(address("experiment", id, "cancel"))

    def remove_experiment(self, id: str) -> None:
        """Forget an experiment that has ended, for good: its rounds, picks and metrics, and its files."""
        self._calls.delete(address("experiment", id))

    def metrics(self, id: str) -> Json:
        """`items`: samples, visits, seconds and metrics by round; `floors`: what they are held against."""
        return self._calls.get(address("experiment", id, "metrics"))

    def events(self, id: str, *, after: int = 0, until_paused: bool = False) -> Iterator[Event]:
        """Events until the experiment has ended, or is paused, too. A stream that breaks is taken up where it broke."""
        effort, ended = self._calls.begin(), False
        while True:
            news = False
            try:
                for heard in self._stream(id, after, until_paused):
                    news, ended = True, False  # somebody may have resumed it
                    effort.succeed()
                    after = int(heard.id) if heard.id else after
                    yield _event(heard)
            except (httpx.TransportError, ApiProblem) as error:
                effort.miss(error)
                continue
            if ended and not news:
                return  # a coordinator that stops ends its streams, too: the last is silent and begins after the end
            status = ExperimentStatus(self.experiment(id)["status"])
            ended = status.is_at_rest if until_paused else has_ended(status)
            self._calls.pause.wait(FIRST_PAUSE)

    # Rounds

    def rounds(self, id: str) -> Iterator[Json]:
        """An experiment's rounds so far, by number."""
        return self._calls.pages(address("experiment", id, "rounds"))

    def round(self, id: str, number: int) -> Json:
        """One round, with the manifests of its artefacts."""
        return self._calls.get(address("experiment", id, "rounds", number))

    def selection(self, id: str, number: int) -> list[Json]:
        """The batch that a round added, in the order of picking: rank, idx, key, score."""
        return self._calls.get(address("experiment", id, "rounds", number, "selection"))["items"]

    def artefact(self, id: str, number: int, kind: str) -> bytes:
        """The bytes of an artefact, say `candidates/embeddings`. Raises ArtefactCorrupt unless their sha256 fits."""
        answer = self._calls.send("GET", artefact_address(id, number, kind))
        if hashlib.sha256(answer.content).hexdigest() != answer.headers["ETag"].strip('"'):
            raise ArtefactCorrupt(f"{id}/{number}/{kind}: what arrived does not match its sha256; try again")
        return answer.content

    def array(self, id: str, number: int, kind: str) -> NDArray[Any]:
        """An artefact that is an array."""
        return np.load(io.BytesIO(self.artefact(id, number, kind)), allow_pickle=False)

    def download(self, id: str, number: int, kind: str, path: Path) -> None:
        """Stream an artefact to a file. Raises ArtefactCorrupt, and leaves no file, unless its sha256 fits."""
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("wb") as file:
                digest, recorded = self.measure(id, number, kind, file)
            if digest != recorded:
                raise ArtefactCorrupt(f"{id}/{number}/{kind}: what arrived does not match its sha256; try again")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def measure(self, id: str, number: int, kind: str, into: BinaryIO) -> tuple[str, str]:
        """Stream an artefact's bytes; their sha256, and the one that was recorded when they were stored."""
        digest = hashlib.sha256()
        try:
            with self._calls.http.stream("GET", artefact_address(id, number, kind)) as answer:
                require_success(answer)
                for chunk in answer.iter_bytes():
                    digest.update(chunk)
                    into.write(chunk)
        except httpx.TransportError as error:
            self._calls.give_up(error)
        return digest.hexdigest(), answer.headers["ETag"].strip('"')

    # The rest

    def workers(self) -> Iterator[Json]:
        """Trainers seen lately."""
        return self._calls.pages("/workers")

    def storage(self, *, limit: int = 20) -> Json:
        """`items`: the datasets and experiments that take most of the artefact store's room, the largest first, with
        kind, id, name, status, bytes, and may_go: whether they can be removed now. `free`: bytes that are left.
        """
        return self._calls.get("/storage", limit=limit)

    def create_key(self, name: str, scopes: list[str]) -> Json:
        """Make an API key. `key` holds its text, which is shown this once."""
        while True:
            made = self._create("/keys", {"name": name, "scopes": scopes}, None)
            if made["key"] is not None:
                return made
            self.revoke_key(made["id"])  # the answer that held its text was lost, and is not given again

    def api_keys(self) -> Iterator[Json]:
        """All API keys, without their texts."""
        return self._calls.pages("/keys")

    def revoke_key(self, id: str) -> None:
        """End an API key at once."""
        self._calls.delete(address("key", id))

    def _create(
        self,
        path: str,
        spec: DatasetSpec | ExperimentSpec | Mapping[str, Any],
        idempotency_key: str | None,
        *,
        is_long: bool = False,
    ) -> Json:
        body = dict(spec) if isinstance(spec, Mapping) else spec.model_dump(mode="json")
        return self._calls.post(path, body, key=idempotency_key or uuid.uuid4().hex, is_long=is_long)

    def _stream(self, id: str, after: int, until_paused: bool) -> Iterator[ServerSentEvent]:
        asked = {"params": {"until_paused": until_paused}, "headers": {"Last-Event-ID": str(after)}}
        path = address("experiment", id, "events")
        with connect_sse(self._calls.http, "GET", path, timeout=QUIET_SECONDS, **asked) as source:
            require_success(source.response)
            self._calls.hear()
            yield from (heard for heard in source.iter_sse() if heard.data)  # comments come through empty


def _event(heard: ServerSentEvent) -> Event:
    return Event(heard.event, json.loads(heard.data), int(heard.id) if heard.event != "progress" and heard.id else None)
