"""Where the gateway's processes come from: a small process that imports once what all of them need, and forks.

It opens no connection and starts no thread, so nothing is shared with its forks but code. Importing is most of a start:
six seconds of a core for a worker, the receiver and the sender, were each spawned alone.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

# What counts for Prometheus is left out: it decides at its import whether processes count together.
_SHARED = [
    "pneumoscope.serving.run.processes",
    "pneumoscope.serving.analysis.worker",
    "pneumoscope.serving.intake.listener",
    "pneumoscope.serving.delivery.send",
]


def context() -> ForkServerContext:
    """Return the context whose processes are forks."""
    return multiprocessing.get_context("forkserver")


def begin() -> None:
    """Start it, where it does not run yet; it imports while the caller does other things."""
    context().set_forkserver_preload(_SHARED)
    forkserver.ensure_running()
