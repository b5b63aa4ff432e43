"""A gateway that is killed at a stage boundary, in processes of its own."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from tests.support.crashing import take, work
from tests.support.gateway import chest, gateway, sink

from pneumoscope.journal.journal import Journal
from pneumoscope.serving.store.database import open_store
from pneumoscope.serving.store.tables import DONE, SENT, Delivery, Image, Job, Result

NEVER = "never"
STAGES = ("stored", "claimed", "analysed", "journaled", "recorded", "sending", "sent")
FORKS = multiprocessing.get_context("forkserver")  # imports once what each process needs
FORKS.set_forkserver_preload(["tests.support.crashing"])


def outside(target: Callable[..., None], *arguments: Any) -> int:
    """Run in a process of its own; returns its exit code."""
    process = FORKS.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def killed_at(stage: str, folder: Path, database: dict[str, str]) -> None:
    """Take an image in and answer it, killed once at `stage`; assert that nothing is lost and nothing doubled."""
    with sink() as pacs:
        config = gateway(folder / "gateway", pacs.port, store=database)
        for needed in (config.incoming, config.images):
            needed.mkdir(parents=True)
        open_store(config.database, migrate=True).close()
        source, original = chest(), folder / "original.dcm"
        source.save_as(original, enforce_file_format=True)
        for wanted in (stage, NEVER) if stage == "stored" else (NEVER,):
            arrival = config.incoming / "arrival.dcm"
            shutil.copy(original, arrival)
            code = outside(take, config, arrival, wanted)
            assert code == (0 if wanted == NEVER else -signal.SIGKILL)
        if stage != "stored":
            assert outside(work, config, stage) == -signal.SIGKILL
        assert outside(work, config, NEVER) == 0
        store = open_store(config.database)
        with store.read() as session:
            assert session.scalar(select(func.count()).select_from(Image)) == 1
            assert session.scalar(select(func.count()).select_from(Result)) == 1
            assert list(session.scalars(select(Job.state))) == [DONE]
            assert list(session.scalars(select(Delivery.state))) == [SENT, SENT]
        store.close()
        assert len(list(Journal(config.journal_file).entries())) == 1
        received = {(item.SOPInstanceUID, data) for item, data in zip(pacs.objects, pacs.bytes_, strict=True)}
        assert len(received) == 2, "sent again after a crash are the same bytes under the same UID"
