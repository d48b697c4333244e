"""One frozen Settings, built at each composition root and passed down.

Every field is an environment variable with the prefix WINNOW_; .env.example lists them all and a test holds the
two together. The defaults run the embedded stack: everything under one state directory, loopback only.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from winnow import failpoints
from winnow.errors import PathForbidden
from winnow.secret_files import read_secrets, with_password

SECRETS = (
    *("database_url", "database_password", "broker_url", "broker_password"),
    *("coordinator_role_password", "worker_role_password"),
    *("sampler_token", "api_key", "bootstrap_key"),
)
"""Settings that hold a secret. Each may come from a file instead: WINNOW_…_FILE names it."""


class Settings(BaseSettings):
    """Where things are and how patient the services are. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="WINNOW_",
        frozen=True,
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,  # a value that is refused may stand beside a password
    )

    state_dir: Path = Field(default=Path(".winnow"), description="Holds everything of the embedded stack")
    database_url: str = Field(default="", repr=False, description="SQLAlchemy address; SQLite in state_dir by default")
    database_password: SecretStr = Field(default=SecretStr(""), description="Of a database_url that has none")
    broker_url: str = Field(
        default="", repr=False, description="redis://… or filesystem:///DIR; a folder in state_dir by default"
    )
    broker_password: SecretStr = Field(default=SecretStr(""), description="Of a broker_url that has none")
    coordinator_role_password: SecretStr = Field(
        default=SecretStr(""), description="`migrate` makes the Postgres role winnow_coordinator with it"
    )
    worker_role_password: SecretStr = Field(
        default=SecretStr(""), description="`migrate` makes the Postgres role winnow_worker with it"
    )
    artefact_dir: Path = Field(default=Path(), description="Artefact store; artefacts/ in state_dir by default")
    scratch_dir: Path = Field(
        default=Path(), description="Local work space of a trainer; scratch/ in state_dir by default"
    )
    data_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="Folders that datasets and embeddings may be read from, separated by ':'"
    )

    coordinator_host: str = Field(default="127.0.0.1", description="Off loopback, every request needs an API key")
    coordinator_port: int = Field(default=8000, ge=0, le=65535)
    require_key: bool = Field(
        default=False, description="Ask for an API key on loopback, too: behind a proxy, which calls from there"
    )
    requests_per_second: float = Field(
        default=300.0, ge=0, description="What one API key may ask for in the long run, twice that at once; 0: no limit"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Web pages that may call from a browser, https://HOST[:PORT], separated by ','"
    )
    coordinator_url: str = Field(default="http://127.0.0.1:8000", description="Where clients find the coordinator")
    sampler_host: str = Field(default="127.0.0.1", description="Off loopback, sampler_token is required")
    sampler_port: int = Field(default=8001, ge=0, le=65535)
    sampler_url: str = Field(default="http://127.0.0.1:8001", description="Where the coordinator finds the sampler")
    sampler_token: SecretStr = Field(default=SecretStr(""), description="Shared by coordinator and sampler")
    api_key: SecretStr = Field(default=SecretStr(""), description="What the command line and the client send")
    bootstrap_key: SecretStr = Field(
        default=SecretStr(""), description="Stored (hashed) as the first admin key at start"
    )

    lease_seconds: float = Field(default=28.0, gt=0, description="A claim that is not renewed for this long is lost")
    renew_seconds: float = Field(default=5.0, gt=0, description="Between renewals of a claim")
    poll_seconds: float = Field(
        default=15.0, gt=0, description="Between a worker's looks for work it heard no bell for"
    )
    steward_seconds: float = Field(default=1.0, gt=0, description="Between the steward's rounds")
    ring_again_seconds: float = Field(
        default=30.0, gt=0, description="A waiting row unclaimed for this long is rung again"
    )
    max_losses: int = Field(
        default=10, ge=1, description="Attempts that may end with their machine lost; one more fails the work"
    )
    max_failures: int = Field(
        default=3, ge=1, description="Attempts that end in an error of the code or the data: this many fail the work"
    )
    retry_seconds: float = Field(default=5.0, ge=0, description="Wait before a failed attempt is repeated")
    inline_limit: int = Field(
        default=200_000,
        ge=1,
        description="Numbers that one inline array of the sampler may hold; the most bytes of JSON follow from it",
    )
    answer_seconds: float = Field(
        default=2.0, gt=0, description="The sampler answers 202 when a selection takes longer"
    )
    sampler_memory_gib: float = Field(
        default=0.0, ge=0, description="Memory that selections may take together; 0 is three quarters of what there is"
    )
    upload_gib: float = Field(default=4.0, gt=0, description="The largest file that the sampler takes as an upload")
    uploads_gib: float = Field(
        default=50.0, gt=0, description="Disk for uploads; the one unused for longest goes first"
    )

    keep_states: int = Field(
        default=2, ge=0, description="Of each experiment, the newest rounds whose state is kept; 0 keeps all"
    )
    sweep_seconds: float = Field(
        default=86_400.0,
        gt=0,
        description="How long the sampler's answers stay, and the place of what was removed is looked at",
    )
    ingest_memory_gib: float = Field(
        default=16.0, ge=0, description="Address space of what lists or decodes a dataset's files; 0: no limit"
    )
    decode_seconds: float = Field(
        default=120.0, ge=0, description="One image that takes longer ends its ingest, with its name; 0: no limit"
    )

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d+)$", description="auto, cpu, cuda or cuda:N")
    devices: int = Field(
        default=1, ge=1, le=64, description="GPUs of this machine that share a round; processes, where there are none"
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile: auto compiles on a GPU and nowhere else"
    )
    idle_seconds: float = Field(
        default=300.0, ge=0, description="A training process that has no work is kept this long, with its GPU memory"
    )
    cache_gib: float = Field(
        default=100.0, ge=0, description="Disk for copies of patches whose artefact store is on another file system"
    )
    profile_dir: Path | None = Field(default=None, description="Each round leaves a torch profiler trace here")
    threads: int = Field(default=0, ge=0, description="CPU threads of a training process; 0 leaves it to torch")
    failpoint: str = Field(
        default="", description="For tests of durability alone: the step at which a process dies (docs/durability.md)"
    )
    log_format: str = Field(default="console", pattern="^(console|json)$")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")

    @field_validator("data_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return tuple(Path(part) for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(f"{origin} is no origin: https://HOST or https://HOST:PORT, without a path or a *")
        return origins

    @field_validator("failpoint")
    @classmethod
    def _is_a_failpoint(cls, value: str) -> str:
        failpoints.parse(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _place_under_state_dir(cls, values: dict[str, object]) -> dict[str, object]:
        state = Path(str(values.get("state_dir") or ".winnow")).absolute()
        places: dict[str, object] = {
            "state_dir": state,
            "database_url": f"sqlite:///{state / 'winnow.sqlite3'}",
            "broker_url": f"filesystem://{state / 'broker'}",
            "artefact_dir": state / "artefacts",
            "scratch_dir": state / "scratch",
        }
        given = {key: value for key, value in values.items() if value not in ("", None)}
        found = places | read_secrets("WINNOW_", SECRETS) | given | {"state_dir": state}
        for address in ("database", "broker"):
            found[f"{address}_url"] = with_password(str(found[f"{address}_url"]), found.get(f"{address}_password"))
        return found

    @model_validator(mode="after")
    def _renews_in_time(self) -> Self:
        if self.renew_seconds * 2 > self.lease_seconds:
            raise ValueError("renew_seconds: must be at most half of lease_seconds, so that one renewal may fail")
        return self

    def require_allowed(self, path: Path) -> None:
        """Raise PathForbidden unless `path`, with its symlinks resolved, lies under an allow-listed data root."""
        resolved = path.resolve()
        if not any(resolved.is_relative_to(root.resolve()) for root in self.data_roots):
            raise PathForbidden(str(path), [str(root) for root in self.data_roots])


def is_loopback(host: str) -> bool:
    """Whether a socket bound to `host` is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
