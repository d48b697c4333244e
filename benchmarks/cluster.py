"""A whole deployment as processes on loopback, each of which can be killed, paused and started again.

    with Cluster(Path("/tmp/here"), coordinators=2, samplers=2, trainers=2) as cluster:
        cluster.http.post("/datasets", json=...)       # any coordinator that lives
        cluster["trainer-0"].kill()
        cluster.revive()

`scaled` is Postgres and Redis, `embedded` SQLite and a folder, as `winnow up` has them. Nobody restarts what dies but
`revive`. Every member keeps its address, its data and its log for the life of the cluster.
"""

import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import httpx
from gateway import Gateway
from processes import Guard, Member, free_port, wait_until
from servers import create_database, make_postgres, make_redis

from winnow.settings import Settings
from winnow.store import Database

Kind = Literal["scaled", "embedded"]
QUICK: dict[str, str] = {
    "WINNOW_LEASE_SECONDS": "6",
    "WINNOW_RENEW_SECONDS": "1",
    "WINNOW_POLL_SECONDS": "2",
    "WINNOW_STEWARD_SECONDS": "0.2",
    "WINNOW_RETRY_SECONDS": "0.5",
}
"""Impatient timings, for tests and for many faults in little time. The settings' defaults are the other choice."""
READY_SECONDS = 90


class AnyOf(httpx.BaseTransport):
    """Sends each request to the first coordinator that answers it, and tries for a while."""

    def __init__(self, urls: list[str], *, patience: float = 60.0) -> None:
        self._bases = [httpx.URL(url) for url in urls]
        self._patience = patience
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return wait_until(lambda: self._ask_each(request), self._patience, f"a coordinator to answer {request.url}")

    def close(self) -> None:
        self._inner.close()

    def _ask_each(self, request: httpx.Request) -> httpx.Response | None:
        for base in self._bases:
            request.url = request.url.copy_with(scheme=base.scheme, host=base.host, port=base.port)
            request.headers["Host"] = base.netloc.decode()
            with suppress(httpx.TransportError):
                answer = self._inner.handle_request(request)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer
                answer.close()
        return None


class Cluster:
    """Members by name: postgres, redis, coordinator-N, sampler-N, trainer-N.

    Args:
        root: an empty or missing folder for everything.
        settings: WINNOW_ variables for every service; QUICK by default, {} for the settings' defaults.
        gateways: put a Gateway before Postgres and Redis, under the same names in `gateways`.
    """

    def __init__(
        self,
        root: Path,
        *,
        kind: Kind = "scaled",
        coordinators: int = 1,
        samplers: int = 1,
        trainers: int = 1,
        settings: Mapping[str, str] = QUICK,
        gateways: bool = False,
    ) -> None:
        self.root, self.kind = root.absolute(), kind
        self.root.mkdir(parents=True, exist_ok=True)
        self.members: dict[str, Member] = {}
        self.gateways: dict[str, Gateway] = {}
        self._guard = Guard()
        self._data: Path | None = None
        self.database_url = f"sqlite:///{self.root / 'winnow.sqlite3'}"
        self.broker_url = f"filesystem://{self.root / 'broker'}"
        if kind == "scaled":
            logs = self.root / "logs"
            postgres, self.database_url, self._data = make_postgres(logs / "postgres.log", self._guard)
            broker, self.broker_url = make_redis(self.root / "redis", logs / "redis.log", self._guard)
            self.members |= {"postgres": postgres, "redis": broker}
        seen_database, seen_broker = self.database_url, self.broker_url
        if gateways:
            seen_database, seen_broker = self._gate("postgres", seen_database), self._gate("redis", seen_broker)
        self.environment = {
            "WINNOW_STATE_DIR": str(self.root),
            "WINNOW_DATABASE_URL": seen_database,
            "WINNOW_BROKER_URL": seen_broker,
            "WINNOW_ARTEFACT_DIR": str(self.root / "artefacts"),
            "WINNOW_DEVICE": "cpu",
            "WINNOW_THREADS": "1",
            "WINNOW_SAMPLER_TOKEN": "of-this-cluster",
            "WINNOW_KEEP_STATES": "0",  # what a run left is compared whole
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        self.urls: list[str] = []
        self._add_services(coordinators, samplers, trainers)
        self.http = httpx.Client(base_url="http://any/api/v1", transport=AnyOf(self.urls), timeout=60)

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def named(self, stem: str) -> list[Member]:
        """The members of one service."""
        return [member for name, member in self.members.items() if name.partition("-")[0] == stem]

    def start(self) -> None:
        """Everything, servers first. Raises TimeoutError for a member that does not answer."""
        for name in ("postgres", "redis"):
            for member in self.named(name):
                member.start()
                member.wait_ready()
        if self.kind == "scaled":
            create_database(self.database_url)
        database = Database(self.database_url)
        database.migrate()
        database.close()
        self.revive()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until everything that serves answers."""
        for member in self.members.values():
            member.wait_ready(READY_SECONDS)

    def revive(self) -> list[str]:
        """Start again whatever does not run; the names. Returns before they answer."""
        dead = [member for member in self.members.values() if not member.is_alive()]
        for member in dead:
            member.start()
        return [member.name for member in dead]

    def stop(self) -> dict[str, int]:
        """Everything in the order of an orderly stop; exit codes by name."""
        order = ("trainer", "coordinator", "sampler", "redis", "postgres")
        return {member.name: member.stop() for stem in order for member in self.named(stem)}

    def close(self) -> None:
        """End what still runs, at once, and let go of everything. Files stay, but Postgres's."""
        for member in self.members.values():
            member.kill_family()
        for gateway in self.gateways.values():
            gateway.close()
        self.http.close()
        self._guard.close()
        if self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)

    def training_child(self, name: str) -> int | None:
        """Process id of the training process that a trainer started, if there is one."""
        children = self[name].family()[1:]
        return children[0].pid if children else None

    def services_settings(self) -> Settings:
        """Settings as the services have them, but around the gateways."""
        given = {key.removeprefix("WINNOW_").lower(): value for key, value in self.environment.items()}
        given |= {"database_url": self.database_url, "broker_url": self.broker_url}
        return Settings.model_validate({name: given[name] for name in Settings.model_fields if name in given})

    def _add_services(self, coordinators: int, samplers: int, trainers: int) -> None:
        sampler_ports = [free_port() for _ in range(samplers)]
        for n, port in enumerate(sampler_ports):
            self._add("sampler", n, port, {"WINNOW_SAMPLER_PORT": str(port), "WINNOW_STATE_DIR": f"{self.root}/s{n}"})
        asked = sampler_ports or [free_port()]
        for n in range(coordinators):
            port = free_port()
            sampler = f"http://127.0.0.1:{asked[n % len(asked)]}"
            self._add("coordinator", n, port, {"WINNOW_COORDINATOR_PORT": str(port), "WINNOW_SAMPLER_URL": sampler})
            self.urls.append(f"http://127.0.0.1:{port}")
        for n in range(trainers):
            self._add("trainer", n, None, {"WINNOW_SCRATCH_DIR": str(self.root / f"scratch-{n}")})

    def _add(self, service: str, n: int, port: int | None, own: dict[str, str]) -> None:
        name = f"{service}-{n}"
        self.members[name] = Member(
            name,
            [sys.executable, "-m", f"winnow_{service}"],
            self.root / "logs" / f"{name}.log",
            self._guard,
            environment=self.environment | own,
            answers=None if port is None else lambda: _is_ready(port),
        )

    def _gate(self, name: str, url: str) -> str:
        address = httpx.URL(url.replace("+psycopg", ""))
        assert address.port is not None, "only servers have gateways"
        gateway = self.gateways[name] = Gateway(address.port)
        return url.replace(f":{address.port}/", f":{gateway.port}/")


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False
