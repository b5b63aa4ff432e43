"""Counters and times of the processes; each keeps its own in a file, and `/metrics` adds them up.

Labels are stages and names from the configuration: never an image or a patient.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client reads it as it is imported


def folder_of(gateway: Path, host: str | None) -> Path:
    """Return the folder of the counters of one host's processes."""
    return gateway / "metrics" / (host or "local")


def begin_anew(folder: Path) -> None:
    """Remove the counters of earlier processes, as a gateway starts."""
    shutil.rmtree(folder, ignore_errors=True)


def count_in(folder: Path) -> None:
    """Let this process count in a folder; called before prometheus-client is imported."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ[_VARIABLE] = str(folder)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Time a block, also where it fails."""
    started = time.perf_counter()
    try:
        yield
    finally:
        took(stage, time.perf_counter() - started)


def took(stage: str, seconds: float, destination: str = "") -> None:
    """Record how long a stage took."""
    from pneumoscope.serving.watch.prometheus import STAGES

    STAGES.labels(stage, destination).observe(max(0.0, seconds))


def process_started(kind: str) -> None:
    """Count the start of a process, or of a worker's child (`analysis`)."""
    from pneumoscope.serving.watch.prometheus import STARTS

    STARTS.labels(kind).inc()


def answered(label: str | None, *, abstained: bool) -> None:
    """Count an answer by its call."""
    from pneumoscope.serving.watch.prometheus import ANSWERS

    ANSWERS.labels("declined" if abstained else label or "none").inc()
