"""A whole gateway in one process, with one warm child that may be killed: where failures are played quickly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from tests.support.bad_input import make_bundle
from tests.support.lines import CALLER, send

from pneumoscope.serving.analysis.worker import Worker
from pneumoscope.serving.intake.listener import Receiver, start_receiver
from pneumoscope.serving.intake.receipt import open_intake
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, open_store
from pneumoscope.serving.store.tables import Image
from pneumoscope.serving.watch.logs import configure


@dataclass(frozen=True, slots=True)
class Found:
    """What database and page say of the newest image under a UID. `answer`: probability, or `no answer`."""

    state: str
    reason: str
    answer: str
    patient_name: str
    file: str


@dataclass
class Place:
    """A running gateway."""

    config: Gateway
    store: Store
    receiver: Receiver
    worker: Worker
    log: Path

    def send(self, data: bytes, *, port: int | None = None, **titles: str) -> str:
        """Send a file over C-STORE, its data set as it is; returns the status, or what came instead of one."""
        return send(data, port or self.receiver.port, **titles)

    def work(self) -> int:
        """Do all that waits; returns how many jobs that were."""
        count = 0
        while self.worker.step():
            count += 1
        return count

    def find(self, sop_uid: str) -> Found | None:
        """Return what is known about the newest image under a UID."""
        query = select(Image).where(Image.sop_uid == sop_uid).order_by(Image.version.desc()).limit(1)
        with self.store.read() as session:
            image = session.scalar(query)
            if image is None:
                return None
            result = image.job.result
            answer = "no answer"
            if result is not None:
                answer = "declined" if result.abstained else f"p {result.probability:.2f}"
            reason = image.job.reason or (result.reason if result is not None else None) or ""
            return Found(image.job.state, reason, answer, image.patient_name or "", str(image.file))

    def lines(self, since: int) -> list[dict[str, Any]]:
        """Return what was logged since there were so many bytes."""
        with self.log.open(encoding="utf-8") as stream:
            stream.seek(since)
            return [json.loads(line) for line in stream]


@contextmanager
def place(folder: Path, **sections: Any) -> Iterator[Place]:
    """Start a gateway; `sections` replace those of its file.

    Its bundle is an untrained network without a gate: it answers about every image that can be decoded, where the
    shipped one, rightly, declines computed radiographs. No maps.
    """
    log = folder / "log.jsonl"
    values: dict[str, Any] = {
        "folder": folder / "work",
        "receive": {"port": 0, "callers": (CALLER,), "free_mb": 0},
        "bundle": {"path": make_bundle(folder / "bundle"), "explain": "none"},
        "worker": {"attempts": 1, "start_seconds": 300.0},
        "logs": {"file": log},
        "stow": {},
        **sections,
    }
    config = Gateway.model_validate(values)
    config.folder.mkdir(parents=True)
    configure(config.logs)
    store = open_store(config.database, migrate=True)
    receiver = start_receiver(config, open_intake(config, store))
    worker = Worker(config, store, "worker-1")
    try:
        yield Place(config, store, receiver, worker, log)
    finally:
        worker.child.close()
        receiver.close()
        store.close()
