"""`python -m winnow_sampler`: serve."""

import sys

import uvicorn

from winnow import failpoints, telemetry
from winnow.perimeter import LEAST_SECRET, LIMITS
from winnow.settings import Settings, is_loopback
from winnow_sampler.app import make_app


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = Settings()
    telemetry.configure(settings, "sampler")
    failpoints.arm(settings.failpoint)
    if not is_loopback(settings.sampler_host) and len(settings.sampler_token.get_secret_value()) < LEAST_SECRET:
        sys.exit(
            f"off loopback the sampler needs WINNOW_SAMPLER_TOKEN with {LEAST_SECRET} characters or more, the same for "
            "the coordinator: openssl rand -hex 32 makes one"
        )
    uvicorn.run(
        make_app(settings),
        host=settings.sampler_host,
        port=settings.sampler_port,
        timeout_graceful_shutdown=5,
        **LIMITS,
    )


if __name__ == "__main__":
    main()
