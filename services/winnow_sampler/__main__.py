"""`python -m winnow_sampler`: serve."""

import sys

import uvicorn

from winnow import telemetry
from winnow.settings import Settings, is_loopback
from winnow_sampler.app import make_app


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = Settings()
    telemetry.configure(settings, "sampler")
    if not is_loopback(settings.sampler_host) and not settings.sampler_token.get_secret_value():
        sys.exit("off loopback the sampler needs WINNOW_SAMPLER_TOKEN, the same for the coordinator; set it")
    uvicorn.run(
        make_app(settings),
        host=settings.sampler_host,
        port=settings.sampler_port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
