"""The one way in: whoever brings an image gets its receipt when the image cannot be lost any more.

Temporary file, fsync, rename, fsync of the folder, commit; in this order, so that a row without its file cannot be.
A file without its row, left by a crash between the two, is not acknowledged, and its sender brings it again; if not,
`leftovers` removes it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.errors import StorageError, storage_errors
from pneumoscope.files import sync_folder
from pneumoscope.gate.header_rules import Ages, Rules, ages_of, judge
from pneumoscope.images.header import Header, read
from pneumoscope.serving.intake.content import digest as digest_of
from pneumoscope.serving.intake.content import same_pixels
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, database_time, now
from pneumoscope.serving.store.tables import DECLINED, HIGH, QUARANTINED, ROUTINE, URGENT, WAITING, Image, Job, Object

STORED, DUPLICATE, OWN_RESULT = "stored", "duplicate", "own result"
_ABANDONED = 3600.0  # seconds without a byte, after which nobody writes to a file any more
_PRIORITIES = {"STAT": URGENT, "HIGH": HIGH}  # DICOM 0040,1003
_TRIES = 5  # of a commit, where the same instance comes over several associations at once


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of an arrival: `outcome`, and of what was stored its row, the job's state and reason."""

    outcome: str
    image_id: int | None = None
    state: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Intake:
    """Where arrivals go. `folder`: of images. `free_bytes`: with less left on the disk nothing is taken."""

    store: Store
    folder: Path
    rules: Rules
    ages: Ages | None
    free_bytes: int = 0

    def room(self) -> None:
        """Raise `StorageError` where the disk is too full to take anything."""
        with storage_errors(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < self.free_bytes:
            with storage_errors(self.folder):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def take(
        self,
        arrival: Path,
        source: str,
        beside: Callable[[Session], None] | None = None,
        *,
        header: Header | None = None,
    ) -> Receipt:
        """Take a complete DICOM file, and return only when it is safe.

        Args:
            arrival: a file on the file system of `folder`; moved, or removed where it is not needed.
            source: who brought it: such as `dicom:TITLE`.
            beside: what else is written in the transaction that accepts it; not called where nothing is accepted.
            header: what `read` found in it, where that is known.

        Raises:
            ImageError: it is no DICOM object; the file stays where it was.
            StorageError: the disk is full, or the database is away or cannot write.
        """
        self.room()
        header, digest = header or read(arrival), digest_of(arrival)
        if header.own or self._sent_by_us(header):
            arrival.unlink()
            return Receipt(OWN_RESULT)
        place = self.folder / digest[:2] / f"{digest}.dcm"
        if found := self._known(header, digest):
            arrival.unlink()
            return found
        self._settle(arrival, place)
        return self._record(header, digest, place, source, beside)

    def _settle(self, arrival: Path, place: Path) -> None:
        with storage_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(place.parent.parent)
            with arrival.open("rb+") as stream:
                os.fsync(stream.fileno())
            arrival.replace(place)
            sync_folder(place.parent)

    def _sent_by_us(self, header: Header) -> bool:
        with self.store.read() as session:
            return session.scalar(select(Object.id).where(Object.uid == header.sop_uid).limit(1)) is not None

    def _known(self, header: Header, digest: str) -> Receipt | None:
        query = select(Image).where(Image.sop_uid == header.sop_uid, Image.digest == digest)
        with self.store.read() as session:
            image = session.scalar(query)
            # Where the file is gone, what comes again is kept, but not analysed twice.
            if image is None or image.file is None or not (self.folder / image.file).is_file():
                return None
            return Receipt(DUPLICATE, image.id, image.job.state, image.job.reason)

    def _record(
        self, header: Header, digest: str, place: Path, source: str, beside: Callable[[Session], None] | None
    ) -> Receipt:
        for attempt in range(_TRIES):
            try:
                with self.store.write() as session:
                    if beside is not None:
                        beside(session)
                    receipt = self._insert(session, header, digest, place, source)
                    session.flush()  # waits for who erases this row, and with it the file
                    if not place.is_file():
                        raise StorageError(
                            "was erased while it came in again", path=place.name, remedy="send it once more"
                        )
                    return receipt
            except IntegrityError:  # another association was faster with this instance
                if found := self._known(header, digest):
                    return found
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _insert(self, session: Session, header: Header, digest: str, place: Path, source: str) -> Receipt:
        file = place.relative_to(self.folder).as_posix()
        earlier = list(session.scalars(select(Image).where(Image.sop_uid == header.sop_uid).order_by(Image.version)))
        for image in earlier:
            if image.digest == digest:
                image.file = file
                return Receipt(DUPLICATE, image.id, image.job.state, image.job.reason)
        moment = database_time(session)
        state, reason, notes = self._judge(header, place, earlier)
        with storage_errors(place):  # it may be taken for left over
            size = place.stat().st_size
        image = Image(
            sop_uid=header.sop_uid,
            version=earlier[-1].version + 1 if earlier else 1,
            digest=digest,
            sop_class=header.sop_class,
            study_uid=header.study_uid,
            series_uid=header.series_uid,
            file=file,
            size=size,
            source=source,
            received_at=moment,
            patient_id=header.patient_id,
            issuer=header.issuer,
            patient_name=header.patient_name,
            birth_date=header.birth_date,
            accession=header.accession,
            header=header.facts(),
            notes=notes,
        )
        image.job = Job(
            state=state,
            priority=_PRIORITIES.get(header.priority or "", ROUTINE),
            attempts=0,
            claims=0,
            created_at=moment,
            not_before=moment,
            ended_at=None if state == WAITING else moment,
            reason=reason,
        )
        session.add(image)
        session.flush()
        return Receipt(STORED, image.id, state, reason)

    def _judge(self, header: Header, place: Path, earlier: list[Image]) -> tuple[str, str | None, str | None]:
        """Return state and reason of the job, and a note about the image.

        Results of a second version would carry the UIDs of the first one's, and an archive keeps the first objects
        it got, images and results: what the second shows would be shown beside the pixels of the first.
        """
        if earlier:
            first = earlier[0].file
            known = first is not None and (self.folder / first).is_file()
            same = first is not None and known and same_pixels(self.folder / first, place)
            what = "another header" if same else "other pixels" if known else "other content"
            note = f"came before with {what} under the same SOP Instance UID"
            if same:
                return DECLINED, f"not analysed, because it {note}: the answer about the first holds", note
            return QUARANTINED, f"not analysed, because it {note}: a person must say which one is right", note
        refusal = judge(header, self.rules, self.ages)
        return (WAITING, None, None) if refusal is None else (DECLINED, str(refusal), None)


def open_intake(config: Gateway, store: Store) -> Intake:
    """Return the intake of a configuration; raises `BundleError` where the bundle is damaged."""
    ages = ages_of(config.analyse, load_bundle(config.bundle.path).card)
    return Intake(store, config.images, config.analyse, ages, config.receive.free_mb << 20)


def sweep(folder: Path, older_seconds: float) -> int:
    """Remove what broken transfers left in the folder of incoming files; return how many files that were.

    Its subfolders are those of other processes, which clear them as they start: there an hour must have passed.
    """
    removed = 0
    moment = now().timestamp()
    with storage_errors(folder):
        for file in folder.rglob("*"):
            age = older_seconds if file.parent == folder else max(older_seconds, _ABANDONED)
            with suppress(FileNotFoundError):  # it was complete meanwhile, and moved
                if file.is_file() and file.stat().st_mtime <= moment - age:
                    file.unlink()
                    removed += 1
    return removed
