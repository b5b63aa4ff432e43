"""Erasing: the file of an image, all that is known of one, and one patient as the law gives the right to.

The file goes first, then the row, in a transaction that holds the row: who dies between the two leaves a row that
names a missing file, and the same erasure finds and finishes it. The other way round a file would be left that no row
names, and nobody would find it. The row of an image stays, empty, because its number stands in addresses and in the
audit trail and must never come to mean another patient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.orm import Session

from pneumoscope.errors import storage_errors
from pneumoscope.files import sync_folder
from pneumoscope.journal.journal import Journal, archives
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
)

Stages = Callable[[str], None]


def _silent(stage: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Erased:
    """How much of one patient was erased. `kept`: images that were not, because something is still owed."""

    images: int = 0
    kept: int = 0
    predictions: int = 0
    labels: int = 0

    def __str__(self) -> str:
        return f"{self.images} images, {self.predictions} predictions, {self.labels} labels; {self.kept} images kept"


def in_work() -> ColumnElement[bool]:
    """Return the condition that an image waits or is analysed."""
    return Image.id.in_(select(Job.image_id).where(Job.state.in_((WAITING, RUNNING))).correlate(None))


def owed(to: Collection[str], *, given_up: bool) -> ColumnElement[bool]:
    """Return the condition that a result of an image is not delivered to one of these destinations.

    `given_up`: or will not be by itself.
    """
    theirs = select(Job.image_id).join(Job.result).join(Result.objects).join(Object.deliveries)
    missing = Delivery.state.not_in((SENT, COMMITTED)) if given_up else Delivery.state == WAITING
    return Image.id.in_(theirs.where(missing, Delivery.destination.in_(to)).correlate(None))


def erase_file(folder: Path, image: Image, stages: Stages = _silent) -> None:
    """Erase an image's file, in the transaction that holds its row; raises `StorageError` where it cannot be."""
    if image.file is None:
        return
    place = folder / image.file
    with storage_errors(place):
        place.unlink(missing_ok=True)
        if place.parent.is_dir():
            sync_folder(place.parent)
    stages("unlinked")
    image.file = None


def erase_images(session: Session, folder: Path, images: Sequence[Image], stages: Stages = _silent) -> None:
    """Erase all that is known of images: files, identities, jobs, answers, results and what was said of them."""
    for image in images:
        erase_file(folder, image, stages)
    jobs = select(Job.id).where(Job.image_id.in_([image.id for image in images]))
    results = list(session.scalars(select(Result.id).where(Result.job_id.in_(jobs))))
    objects = select(Object.id).where(Object.result_id.in_(results))
    for query in (
        delete(Delivery).where(Delivery.object_id.in_(objects)),
        delete(Object).where(Object.result_id.in_(results)),
        delete(Feedback).where(Feedback.result_id.in_(results)),
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

    Images that wait, are analysed, or whose results are on their way are kept and counted: ask again later. What is
    owed to a destination that nothing is sent to, disabled, removed or in shadow mode, is not on its way.

    Args:
        config: of the gateway.
        store: its tables.
        patient_id: as in Patient ID (0010,0020).
        issuer: as in Issuer of Patient ID (0010,0021); None takes every issuer that an image here names. Of an
            image whose row is empty already the issuer must be given, or the journal does not know the patient.
        committed: also erase images that their senders may have erased, because they were committed here.

    Raises:
        StorageError: a file cannot be erased; what was not erased is found by the same call again.
    """
    mine = [Image.patient_id == patient_id]
    if issuer is not None:
        mine.append(Image.issuer == issuer)
    pseudonyms = Pseudonyms.load(config.journal.key or default_key(config.journal_file))
    with store.read() as session:
        known = session.execute(select(Image.issuer, Image.study_uid).where(*mine)).all()
    issuers = {issuer, *(found for found, _ in known)}
    patients = {pseudonyms.of("patient", found, patient_id) for found in issuers}
    studies = {pseudonyms.of("study", uid) for _, uid in known}
    predictions = labels = 0
    # The journal first: the rows tell under which names it knows the patient.
    for file in (*archives(config.journal_file), config.journal_file):
        found = Journal(file).erase([name for name in patients if name], [name for name in studies if name])
        predictions, labels = predictions + found[0], labels + found[1]
    stages("journal erased")
    with store.write() as session:
        images = list(session.scalars(select(Image).where(*mine).with_for_update()))
        sending = [item.name for item in config.deliveries]
        bound = or_(in_work(), owed(sending, given_up=False), *([] if committed else [Image.committed_at.is_not(None)]))
        held = set(session.scalars(select(Image.id).where(*mine, bound)))
        free = [image for image in images if image.id not in held]
        erase_images(session, config.images, free, stages)
        counts = Erased(len(free), len(held), predictions, labels)
        trail.add(session, None, trail.ERASED_ON_REQUEST, None, str(counts))
    store.forget()
    return counts
