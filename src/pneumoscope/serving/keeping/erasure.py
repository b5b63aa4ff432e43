"""Erasing the file of an image, all its data, or all data of one patient, as the law gives the right to.

The file goes first, then the row, in a transaction that locks the row: a crash between the two leaves a row without its
file, and the next erasure finishes it. The other way round a file would be left that no row names. The row of an image
stays, empty, because its number stands in addresses and in the audit trail and must never mean another patient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.orm import Session

from pneumoscope.errors import storage_errors
from pneumoscope.files import sync_folder
from pneumoscope.journal.journal import erase_everywhere
from pneumoscope.journal.pseudonyms import Pseudonyms, default_key
from pneumoscope.serving.people import trail
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store
from pneumoscope.serving.store.tables import (
    COMMITTED,
    RUNNING,
    SENT,
    WAITING,
    Delivery,
    Feedback,
    Image,
    Job,
    Object,
    Result,
    Review,
)

Stages = Callable[[str], None]


def _silent(stage: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased of one patient. `kept`: images in work, with waiting deliveries, or committed."""

    images: int = 0
    kept: int = 0
    predictions: int = 0
    labels: int = 0

    def __str__(self) -> str:
        return f"{self.images} images, {self.predictions} predictions, {self.labels} labels; {self.kept} images kept"


def in_work() -> ColumnElement[bool]:
    """Return the condition that an image waits for its analysis or is analysed."""
    return Image.id.in_(select(Job.image_id).where(Job.state.in_((WAITING, RUNNING))).correlate(None))


def undelivered(destinations: Collection[str], *, given_up: bool) -> ColumnElement[bool]:
    """Return the condition that a result of an image waits for one of these destinations, or was `given_up`."""
    images = select(Job.image_id).join(Job.result).join(Result.objects).join(Object.deliveries)
    missing = Delivery.state.not_in((SENT, COMMITTED)) if given_up else Delivery.state == WAITING
    return Image.id.in_(images.where(missing, Delivery.destination.in_(destinations)).correlate(None))


def erase_file(folder: Path, image: Image, stages: Stages = _silent) -> None:
    """Erase an image's file, in the transaction that locks its row; raises `StorageError` where that fails."""
    if image.file is None:
        return
    path = folder / image.file
    with storage_errors(path):
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)
    stages("unlinked")
    image.file = None


def erase_images(session: Session, folder: Path, images: Sequence[Image], stages: Stages = _silent) -> None:
    """Erase all data of images: files, identities, jobs, answers, results and feedback."""
    for image in images:
        erase_file(folder, image, stages)
    jobs = select(Job.id).where(Job.image_id.in_([image.id for image in images]))
    results = list(session.scalars(select(Result.id).where(Result.job_id.in_(jobs))))
    objects = select(Object.id).where(Object.result_id.in_(results))
    for query in (
        delete(Delivery).where(Delivery.object_id.in_(objects)),
        delete(Object).where(Object.result_id.in_(results)),
        delete(Feedback).where(Feedback.result_id.in_(results)),
        delete(Review).where(Review.result_id.in_(results)),
        delete(Result).where(Result.id.in_(results)),
        delete(Job).where(Job.image_id.in_([image.id for image in images])),
    ):
        session.execute(query.execution_options(synchronize_session=False))
    for image in images:
        _empty(image)


def _empty(image: Image) -> None:
    image.sop_uid, image.digest, image.size = f"erased:{image.id}", "", 0
    image.sop_class = image.study_uid = image.series_uid = ""
    image.source = "erased"
    image.patient_id = image.issuer = image.patient_name = image.birth_date = image.accession = image.notes = None
    image.header = {}


def erase_patient(
    config: Gateway,
    store: Store,
    patient_id: str,
    issuer: str | None = None,
    *,
    committed: bool = False,
    stages: Stages = _silent,
) -> Erased:
    """Erase one patient from the tables, the files and the journal with its archives, and write an event with counts.

    Images that wait, are analysed, or have waiting deliveries are kept and counted: erase again later. Deliveries to a
    destination that is disabled or removed, or in shadow mode, do not count.

    Args:
        config: of the gateway.
        store: its tables.
        patient_id: as in Patient ID (0010,0020).
        issuer: as in Issuer of Patient ID (0010,0021); None takes every issuer that an image here names. Needed where
            the rows are already empty: without it the journal does not know the patient.
        committed: also erase images that were committed here, which their senders may no longer have.

    Raises:
        StorageError: a file cannot be erased; the next call finishes the erasure.
    """
    patient = [Image.patient_id == patient_id]
    if issuer is not None:
        patient.append(Image.issuer == issuer)
    pseudonyms = Pseudonyms.load(config.journal.key or default_key(config.journal_file))
    with store.read() as session:
        rows = session.execute(select(Image.issuer, Image.study_uid).where(*patient)).all()
    patients = {pseudonyms.of("patient", name, patient_id) for name in {issuer, *(name for name, _ in rows)}}
    studies = {pseudonyms.of("study", uid) for _, uid in rows}
    # The journal first: its pseudonyms follow from the rows.
    erased = erase_everywhere(config.journal_file, list(filter(None, patients)), list(filter(None, studies)))
    stages("journal erased")
    with store.write() as session:
        images = list(session.scalars(select(Image).where(*patient).with_for_update()))
        sending = [item.name for item in config.deliveries]
        conditions = [in_work(), undelivered(sending, given_up=False)]
        keep = or_(*conditions) if committed else or_(*conditions, Image.committed_at.is_not(None))
        kept = set(session.scalars(select(Image.id).where(*patient, keep)))
        free = [image for image in images if image.id not in kept]
        erase_images(session, config.images, free, stages)
        counts = Erased(len(free), len(kept), *erased)
        trail.add(session, None, trail.ERASED_ON_REQUEST, None, str(counts))
    store.forget()
    return counts
