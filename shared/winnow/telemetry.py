"""Structured logs: the event's name first, ids bound at the edge. The library stays silent."""

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog

from winnow.settings import Settings


class Unfailing:
    """A stream whose lines are lost where they cannot be written, on a full disk say: no work ends for that."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def configure(settings: Settings, service: str) -> None:
    """Send this process's logs to standard error, as lines for people or as JSON."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    final: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    out: Any = Unfailing(sys.stderr)
    before: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Made text here, for our lines and for the frameworks': a renderer's own traceback would print the values of
        # local variables, and an API key is one of them.
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*before, final],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=final, foreign_pre_chain=before))
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    structlog.contextvars.bind_contextvars(service=service)
    if settings.failpoint:
        logger("failpoints").warning(
            "failpoint.armed",
            at=settings.failpoint,
            next="this process dies there; unset WINNOW_FAILPOINT",
        )


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry `source`; the first word of every line is the event."""
    return structlog.get_logger(source=name)
