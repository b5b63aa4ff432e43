"""A gateway in this process, a modality that sends to it and a PACS that takes its results."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from scripts.pacs.gateway import CALLER
from scripts.pacs.radiographs import radiograph
from sqlalchemy import select

from pneumoscope.serving.delivery import assurance
from pneumoscope.serving.intake.listener import Receiver, start_receiver
from pneumoscope.serving.intake.receipt import open_intake
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, open_store
from pneumoscope.serving.store.tables import Job


@dataclass
class Sink:
    """A PACS that keeps what it got, and answers as configured."""

    port: int
    objects: list[pydicom.Dataset] = field(default_factory=list)
    bytes_: list[bytes] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@contextmanager
def sink(tls: Any = None) -> Iterator[Sink]:
    application = AE(ae_title="SINK")
    for context in AllStoragePresentationContexts:
        application.add_supported_context(str(context.abstract_syntax))
    kept = Sink(0)

    def on_store(event: Any) -> int:
        status = kept.statuses.pop(0) if kept.statuses else 0
        if status & 0xF000 in (0x0000, 0xB000):
            kept.objects.append(event.dataset)
            kept.bytes_.append(event.encoded_dataset(include_meta=False))
        return status

    server = application.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=tls, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    kept.port = server.socket.getsockname()[1]
    try:
        yield kept
    finally:
        server.shutdown()


def gateway(folder: Path, port: int = 1, **changes: Any) -> Gateway:
    values: dict[str, Any] = {
        "folder": folder,
        "receive": {"port": 0, "callers": (CALLER,), "free_mb": 0},
        "destination": ({"name": "pacs", "kind": "dicom", "host": "127.0.0.1", "port": port, "aet": "SINK"},),
        **changes,
    }
    return Gateway.model_validate(values)


@contextmanager
def receiving(config: Gateway) -> Iterator[tuple[Receiver, Store]]:
    config.folder.mkdir(exist_ok=True)
    store = open_store(config.database, migrate=True)
    temporary = tempfile.tempdir  # the listener, which has a process of its own otherwise, changes it
    receiver = start_receiver(config, open_intake(config, store), handlers=assurance.handlers(store))
    try:
        yield receiver, store
    finally:
        tempfile.tempdir = temporary
        receiver.close()
        store.close()


def push(receiver: Receiver, *sources: pydicom.Dataset, caller: str = CALLER) -> list[int | None]:
    application = AE(ae_title=caller)
    application.add_requested_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
    association = application.associate("127.0.0.1", receiver.port, ae_title="PNEUMOSCOPE")
    if not association.is_established:
        return [None] * len(sources)
    statuses = [association.send_c_store(source).get("Status") for source in sources]
    association.release()
    return statuses


def chest(**changes: Any) -> pydicom.Dataset:
    uid = changes.pop("SOPInstanceUID", None) or generate_uid()
    source = radiograph(SOPInstanceUID=uid, **changes)
    source.file_meta.MediaStorageSOPInstanceUID = uid
    return source


def only_job(store: Store) -> Job:
    with store.read() as session:
        job = session.scalars(select(Job)).one()
        session.expunge(job)
        return job
