"""A worker and a sender that end at a named stage, as if the power had failed there."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.dying import die_at
from tests.support.findings import CARD, finding, saved

from pneumoscope.records import PNEUMONIA, Prediction
from pneumoscope.serving.analysis.task import Analysis, Task
from pneumoscope.serving.analysis.worker import Worker
from pneumoscope.serving.delivery import send
from pneumoscope.serving.intake.receipt import open_intake
from pneumoscope.serving.results import Encoded, encode
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import open_store


def quick_factory(settings: Any) -> Callable[[Task], Analysis]:
    """The answer without a network: real objects about the real header."""
    import pydicom

    def analyse(task: Task) -> Analysis:
        answer = Prediction("", 0.87, PNEUMONIA, 0.42, bundle="made-up@0123456789ab")
        result = finding(saved(pydicom.dcmread(task.path)), answer)
        objects: tuple[Encoded, ...] = encode(result, task.kinds, task.made)
        return Analysis(answer, str(CARD["sha256"]), True, "balanced", True, objects)

    return analyse


class Here:
    """The child's answer without the child, which is slow to start; what kills it is tested elsewhere."""

    pid = None

    def warm_up(self) -> None:
        """There is nothing to start."""

    def ask(self, question: Task, seconds: float) -> Analysis:
        return quick_factory(None)(question)


def take(config: Gateway, arrival: Path, stage: str) -> None:
    """Take a file in, and die before it is acknowledged or not at all."""
    store = open_store(config.database)
    open_intake(config, store).take(arrival, "test")
    die_at(stage)("stored")


def work(config: Gateway, stage: str) -> None:
    """Do what waits as a worker of the same name as its dead predecessor, then send what is due."""
    from pneumoscope.serving.store import jobs

    store = open_store(config.database)
    jobs.release(store, "worker-1")
    worker = Worker(config, store, "worker-1", stages=die_at(stage))
    worker.child = Here()  # type: ignore[assignment]
    while worker.step():
        pass
    while send.step(store, config.destination[0], random.Random(0), die_at(stage)):
        pass
