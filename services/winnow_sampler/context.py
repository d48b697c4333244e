"""What every route shares, and who may call it."""

import hmac
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Header, Request
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, Gauge, Histogram

from winnow.artefacts import DirectoryStore
from winnow.errors import NotAuthorised
from winnow.perimeter import is_from_here
from winnow.settings import Settings
from winnow_sampler.jobs import Jobs
from winnow_sampler.memory import GIB, budget_of
from winnow_sampler.sources import Sources
from winnow_sampler.uploads import Uploads


class Sampler:
    """The parts of one sampler.

    `reading` and `rendering` are the threads that make requests of JSON, and answers of other formats: each takes many
    times the bytes, and lets no other work in.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = DirectoryStore(settings.artefact_dir)
        self.jobs = Jobs(self.store, budget_of(settings.sampler_memory_gib))
        sizes = int(settings.upload_gib * GIB), int(settings.uploads_gib * GIB)
        self.uploads = Uploads(self.store, *sizes, held=self.jobs.held)
        self.sources = Sources(settings, self.store, self.uploads)
        self.reading, self.rendering = CapacityLimiter(1), CapacityLimiter(1)
        self.registry = CollectorRegistry()
        self._computed = Histogram(
            "winnow_selection_seconds", "Time to compute a selection", ("strategy",), registry=self.registry
        )
        running = Gauge("winnow_selections_running", "Selections under way or waiting", registry=self.registry)
        running.set_function(lambda: self.jobs.running)

    def observe(self, strategy: str, seconds: float) -> None:
        """Count a selection that was computed."""
        self._computed.labels(strategy).observe(seconds)


def here_of(request: Request) -> Sampler:
    """The sampler that a request came to."""
    return request.app.state.sampler


Here = Annotated[Sampler, Depends(here_of)]
Accept = Annotated[str | None, Header()]
bearer = HTTPBearer(auto_error=False, description="WINNOW_SAMPLER_TOKEN; not needed where none is set")


async def authorise(request: Request) -> None:
    """Raise NotAuthorised unless the token came along or, where there is none, the caller is on this machine."""
    token, given = here_of(request).settings.sampler_token.get_secret_value(), await bearer(request)
    if not token and not is_from_here(request):
        raise NotAuthorised("without WINNOW_SAMPLER_TOKEN the sampler serves programs on its own machine alone; set it")
    if token and not hmac.compare_digest(token.encode(), (given.credentials if given else "").encode()):
        raise NotAuthorised("the sampler needs its token: Authorization: Bearer …")
