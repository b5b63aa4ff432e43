"""Logs for machines: one JSON object per line, and never a patient.

Own events carry row numbers, states and counts. Messages of other packages may quote a header, such as a name that
breaks the rules of its value representation, so only their logger and level are kept.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

from pneumoscope.serving.settings.gateway import Logs

_TALKATIVE = ("pydicom", "pynetdicom", "highdicom", "py.warnings", "sqlalchemy", "dicomweb_client", "httpx", "httpcore")
WITHHELD = "message withheld, because it may quote a patient's header"


def configure(settings: Logs) -> None:
    """Send all logs of this process through one JSON handler; called once, as a process starts."""
    level = getattr(logging, settings.level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        error_location,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, withhold],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )
    handler = logging.StreamHandler(sys.stderr) if settings.file is None else _appending(settings.file)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in _TALKATIVE:
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def logger(name: str, **bound: Any) -> Any:
    """Return a logger for this package's own events; each carries `bound`."""
    return structlog.stdlib.get_logger(f"pneumoscope.serving.{name}").bind(**bound)


def error_location(source: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace an exception by its class and line: messages and local values may quote a header."""
    error = event.pop("exc_info", None)
    if error is True or isinstance(error, tuple):
        error = sys.exc_info()[1] if error is True else error[1]
    if isinstance(error, BaseException):
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        event["error"] = type(error).__name__
        if trace is not None:
            event["place"] = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    return event


def withhold(source: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the message of a package that reads headers."""
    if str(event.get("logger", "")).startswith(_TALKATIVE):
        event["event"] = WITHHELD
    return event


def _appending(path: Path) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    return logging.handlers.WatchedFileHandler(path, encoding="utf-8")
