"""Studies of the past for a gateway's database: what an archive of years leaves behind, without pixels."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydicom.uid import generate_uid
from sqlalchemy import insert

from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import now, open_store
from pneumoscope.serving.store.tables import DONE, SENT, Delivery, Image, Job, Object, Result

_BATCH = 2000
_APART = timedelta(minutes=10)
_KEPT = 2048  # bytes of each object: most have been erased, as retention does
_DIGEST = "0" * 64


def remember(config: Gateway, studies: int) -> None:
    """Put studies that were analysed and delivered, ten minutes apart until now, into an empty database."""
    config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = open_store(config.database, migrate=True)
    try:
        for first in range(1, studies + 1, _BATCH):
            numbers = range(first, min(first + _BATCH, studies + 1))
            with store.write() as session:
                for table, rows in _rows(numbers, studies, config.destination[0].name).items():
                    session.execute(insert(table), rows)
    finally:
        store.close()


def _rows(numbers: range, studies: int, destination: str) -> dict[type[Any], list[dict[str, Any]]]:
    end = now()
    rows: dict[type[Any], list[dict[str, Any]]] = {Image: [], Job: [], Result: [], Object: [], Delivery: []}
    for number in numbers:
        at = end - _APART * (studies - number + 1)
        sick = number % 4 == 0
        rows[Image].append({
            "id": number, "sop_uid": generate_uid(), "version": 1, "digest": f"{number:064x}", "sop_class": "1.2.840",
            "study_uid": generate_uid(), "series_uid": generate_uid(), "file": None, "size": 8_400_000,
            "source": "dicom:XRAYROOM1", "received_at": at, "patient_id": f"P{number // 3}",
            "patient_name": f"Name^{number // 3}", "accession": f"A{number}",
            "header": {"modality": "DX", "view": "PA", "age_years": number % 6},
        })  # fmt: skip
        rows[Job].append({
            "id": number, "image_id": number, "state": DONE, "priority": 0, "attempts": 0, "claims": 1,
            "created_at": at, "not_before": at, "ended_at": at,
        })  # fmt: skip
        rows[Result].append({
            "id": number, "job_id": number, "bundle": "lite0@000000000000", "bundle_sha256": _DIGEST,
            "probability": 0.9 if sick else 0.1, "label": PNEUMONIA if sick else NORMAL, "threshold": 0.5,
            "abstained": False, "quality": {}, "milliseconds": 300.0, "urgent": sick, "shadow": False, "created_at": at,
        })  # fmt: skip
        for kind in ("sr", "sc"):
            own = 2 * number - (kind == "sr")
            rows[Object].append({
                "id": own, "result_id": number, "kind": kind, "uid": generate_uid(), "sop_class": "1.2.840",
                "suffix": ".dcm", "data": bytes(_KEPT),
            })  # fmt: skip
            rows[Delivery].append({
                "id": own, "object_id": own, "destination": destination, "state": SENT, "attempts": 1, "created_at": at,
                "not_before": at, "sent_at": at,
            })  # fmt: skip
    return rows
