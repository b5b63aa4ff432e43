"""A whole gateway in one process, with one warm child that may be killed: where failures are played quickly."""

from __future__ import annotations

import json
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bad_input import make_bundle
from benchmarks.gateway_files import meta_of
from pydicom.uid import UID
from pynetdicom import AE, _config
from sqlalchemy import select

from pneumoscope.serving.analysis.worker import Worker
from pneumoscope.serving.intake.listener import Receiver, start_receiver
from pneumoscope.serving.intake.receipt import open_intake
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, open_store
from pneumoscope.serving.store.tables import Image
from pneumoscope.serving.watch.logs import configure

CALLER, TITLE = "XRAYROOM1", "PNEUMOSCOPE"


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


def send(data: bytes, port: int, *, calling: str = CALLER, called: str = TITLE, tls: Any = None, most: int = -1) -> str:
    """Send a file over C-STORE; returns the status, or what came instead of one.

    `most`: while it is sent, no file of this process may grow over so many bytes, as on a disk that is full.
    """
    meta = meta_of(data)
    application = AE(ae_title=calling)
    application.acse_timeout = application.dimse_timeout = application.network_timeout = 60
    application.add_requested_context(meta.MediaStorageSOPClassUID, UID(meta.TransferSyntaxUID))
    _config.STORE_SEND_CHUNKED_DATASET = True
    association = application.associate("127.0.0.1", port, ae_title=called, tls_args=tls)
    if not association.is_established:
        if association.rejected_contexts and not association.is_rejected:
            return "class or transfer syntax refused"
        return "association rejected" if association.is_rejected else "no association"
    with tempfile.NamedTemporaryFile(suffix=".dcm") as stream:
        stream.write(data)
        stream.flush()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if most < 0 else most, hard))
        try:
            status = association.send_c_store(Path(stream.name)).get("Status")
        except RuntimeError:
            status = None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if association.is_established:
        association.release()
    return "no status" if status is None else f"0x{status:04X}"


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
