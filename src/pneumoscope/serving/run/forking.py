"""The small process from which the gateway's processes are forked, after the imports that all of them need.

It opens no connection and starts no thread, so its forks share nothing but code. Imports are most of a start: six
seconds of a core if worker, receiver and sender were each spawned alone.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

# Without prometheus-client, which decides at its import whether processes count together.
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
    """Start the process where it does not run yet; it imports while the caller goes on."""
    context().set_forkserver_preload(_SHARED)
    forkserver.ensure_running()
