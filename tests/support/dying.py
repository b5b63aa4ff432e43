"""What ends at a named stage, as if the power had failed there; without PyTorch, so that it starts quickly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from pneumoscope.serving.intake.poller import Poller
from pneumoscope.serving.intake.receipt import open_intake
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import open_store


def die_at(wanted: str) -> Callable[[str], None]:
    def stages(stage: str) -> None:
        if stage == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return stages


def poll(config: Gateway, stage: str) -> None:
    """Deal with all that an Orthanc tells, and die at a stage."""
    store = open_store(config.database)
    poller = Poller(config.orthanc[0], open_intake(config, store), config.incoming, most=1 << 30, stages=die_at(stage))
    while poller.step():
        pass
