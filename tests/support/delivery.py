"""Results that wait for a destination, and what a validator says of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.uid import generate_uid
from tests.support.findings import finding
from tests.support.gateway import chest, gateway

from pneumoscope.serving.results import Encoded, encode
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store import outbox
from pneumoscope.serving.store.database import Store, now, open_store
from pneumoscope.serving.store.tables import DONE, Image, Job, Object, Result


@contextmanager
def queued(folder: Path, kinds: tuple[str, ...], **destination: Any) -> Iterator[tuple[Gateway, Store, list[Encoded]]]:
    """A gateway with queued results of one radiograph for one destination."""
    config = gateway(folder, destination=({"name": "peer", "seconds": 10.0, **destination},))
    folder.mkdir(exist_ok=True)
    store = open_store(config.database, migrate=True)
    source, moment = chest(StudyInstanceUID=generate_uid()), now()
    built = list(encode(finding(source), kinds, moment))
    image = Image(
        sop_uid=source.SOPInstanceUID, version=1, digest="0" * 64, sop_class=source.SOPClassUID,
        study_uid=source.StudyInstanceUID, series_uid=source.SeriesInstanceUID, size=1, source="test",
        received_at=moment, patient_name="Doe^Jane", patient_id="4711", header={},
    )  # fmt: skip
    image.job = Job(state=DONE, priority=0, attempts=0, claims=1, created_at=moment, not_before=moment, ended_at=moment)
    image.job.result = Result(
        bundle="b", bundle_sha256="0" * 64, threshold=0.4, abstained=False, quality={}, milliseconds=1.0, urgent=True,
        shadow=False, created_at=moment,
    )  # fmt: skip
    with store.write() as session:
        session.add(image)
        for item in built:
            row = Object(kind=item.kind, uid=item.uid, sop_class=item.sop_class, suffix=item.suffix, data=item.data)
            image.job.result.objects.append(row)
            outbox.enqueue(session, row, ["peer"], moment)
    try:
        yield config, store, built
    finally:
        store.close()


def verify(result: Encoded, folder: Path) -> list[str]:
    """What dciodvfy complains of; its exit code is 0 all the same."""
    file = folder / f"{result.kind}.dcm"
    file.write_bytes(result.data)
    done = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]
