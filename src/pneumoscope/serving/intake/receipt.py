"""The intake, the one entrance for images: a sender gets its receipt once the image cannot be lost.

Temporary file, fsync, rename, fsync of the folder, commit; in this order, so that no row is without its file. A file
without its row, after a crash between the two, was not acknowledged: its sender sends it again, or `leftovers` removes
it.
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
_ABANDONED = 3600.0  # seconds without a byte, after which a transfer counts as broken
_PRIORITIES = {"STAT": URGENT, "HIGH": HIGH}  # DICOM 0040,1003
_TRIES = 5  # of a commit, while the same instance comes over several associations


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of an arrival; for stored images also the row, and the job's state and reason."""

    outcome: str
    image_id: int | None = None
    state: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Intake:
    """Takes images. `folder`: of images. `free_bytes`: with less space on the disk nothing is taken."""

    store: Store
    folder: Path
    rules: Rules
    ages: Ages | None
    free_bytes: int = 0

    def room(self) -> None:
        """Raise `StorageError` where the disk is too full."""
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
        """Take a complete DICOM file, and return once it is safe.

        Args:
            arrival: a file on the file system of `folder`; it is moved or removed.
            source: the sender, such as `dicom:TITLE`.
            beside: writes more in the transaction that accepts the image; not called where none is accepted.
            header: its header, where it was read before.

        Raises:
            ImageError: it is no DICOM object; the file stays where it was.
            StorageError: the disk is full, or the database is away or cannot write.
        """
        self.room()
        header, digest = header or read(arrival), digest_of(arrival)
        if header.own or self._sent_by_us(header):
            arrival.unlink()
            return Receipt(OWN_RESULT)
        path = self.folder / digest[:2] / f"{digest}.dcm"
        if duplicate := self._duplicate(header, digest):
            arrival.unlink()
            return duplicate
        self._settle(arrival, path)
        return self._record(header, digest, path, source, beside)

    def _settle(self, arrival: Path, path: Path) -> None:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent.parent)
            with arrival.open("rb+") as stream:
                os.fsync(stream.fileno())
            arrival.replace(path)
            sync_folder(path.parent)

    def _sent_by_us(self, header: Header) -> bool:
        with self.store.read() as session:
            return session.scalar(select(Object.id).where(Object.uid == header.sop_uid).limit(1)) is not None

    def _duplicate(self, header: Header, digest: str) -> Receipt | None:
        query = select(Image).where(Image.sop_uid == header.sop_uid, Image.digest == digest)
        with self.store.read() as session:
            image = session.scalar(query)
            # Where the file is gone the new copy is kept, but not analysed twice.
            if image is None or image.file is None or not (self.folder / image.file).is_file():
                return None
            return Receipt(DUPLICATE, image.id, image.job.state, image.job.reason)

    def _record(
        self, header: Header, digest: str, path: Path, source: str, beside: Callable[[Session], None] | None
    ) -> Receipt:
        for attempt in range(_TRIES):
            try:
                with self.store.write() as session:
                    if beside is not None:
                        beside(session)
                    receipt = self._insert(session, header, digest, path, source)
                    session.flush()  # waits for an erasure of this row and its file
                    if not path.is_file():
                        raise StorageError(
                            "was erased while it was received again", path=path.name, remedy="send it once more"
                        )
                    return receipt
            except IntegrityError:  # another association was faster with this instance
                if duplicate := self._duplicate(header, digest):
                    return duplicate
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _insert(self, session: Session, header: Header, digest: str, path: Path, source: str) -> Receipt:
        file = path.relative_to(self.folder).as_posix()
        earlier = list(session.scalars(select(Image).where(Image.sop_uid == header.sop_uid).order_by(Image.version)))
        for image in earlier:
            if image.digest == digest:
                image.file = file
                return Receipt(DUPLICATE, image.id, image.job.state, image.job.reason)
        moment = database_time(session)
        state, reason, cause, notes = self._judge(header, path, earlier)
        with storage_errors(path):  # it may have been removed as a leftover
            size = path.stat().st_size
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
            cause=cause,
        )
        session.add(image)
        session.flush()
        return Receipt(STORED, image.id, state, reason)

    def _judge(
        self, header: Header, path: Path, earlier: list[Image]
    ) -> tuple[str, str | None, str | None, str | None]:
        """Return state and reason of the job, the reason in a word, and a note about the image.

        Results of a second version would carry the same UIDs as those of the first, and an archive keeps the objects
        it got first: the results of the second would be shown beside the pixels of the first.
        """
        if earlier:
            first = earlier[0].file
            exists = first is not None and (self.folder / first).is_file()
            same = first is not None and exists and same_pixels(self.folder / first, path)
            difference = "another header" if same else "other pixels" if exists else "other content"
            note = f"came before with {difference} under the same SOP Instance UID"
            if same:
                return DECLINED, f"not analysed, because it {note}: the answer about the first holds", "repeated", note
            reason = f"not analysed, because it {note}: a person must say which one is right"
            return QUARANTINED, reason, "conflict", note
        refusal = judge(header, self.rules, self.ages)
        return (WAITING, None, None, None) if refusal is None else (DECLINED, str(refusal), refusal.key, None)


def open_intake(config: Gateway, store: Store) -> Intake:
    """Return the intake of a configuration; raises `BundleError` where the bundle is damaged."""
    ages = ages_of(config.analyse, load_bundle(config.bundle.path).card)
    return Intake(store, config.images, config.analyse, ages, config.receive.free_mb << 20)


def sweep(folder: Path, older_seconds: float) -> int:
    """Remove files of broken transfers from the folder of incoming files; returns how many.

    Its subfolders belong to other processes, which clear them at their start: files there must be an hour old.
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
