"""Images that were declined or quarantined, into the journal: so that a room that calls every film lateral is seen.

The tables say first that an image was not analysed, in the transaction that acknowledges it or ends its job. The line
in the journal follows, and then the row says so: a crash in between repeats the line, which its key makes harmless.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select, update
from sqlalchemy.orm import joinedload

from pneumoscope.files import sha256_bytes
from pneumoscope.journal.entry import Entry, unanalysed
from pneumoscope.journal.journal import Journal
from pneumoscope.journal.pseudonyms import Pseudonyms
from pneumoscope.journal.recording import entry_facts
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, now
from pneumoscope.serving.store.tables import DECLINED, QUARANTINED, Image, Job

_BATCH = 100  # lines in one go
_STATES = (DECLINED, QUARANTINED)  # named alike in the journal


def _silent(stage: str) -> None:
    pass


def write(
    config: Gateway,
    store: Store,
    journal: Journal,
    pseudonyms: Pseudonyms,
    stages: Callable[[str], None] = _silent,
) -> int:
    """Write lines about images that were not analysed, the oldest first; returns how many, at most 100.

    One host writes at a time; a line that a crash left unmarked may stand in the journals of two.

    Raises:
        StorageError: the database is away, or the journal cannot be written.
    """
    query = select(Job).where(~Job.journaled, Job.state.in_(_STATES)).options(joinedload(Job.image))
    with store.read() as session:  # no lock while there is nothing to do
        if session.scalar(select(Job.id).where(~Job.journaled, Job.state.in_(_STATES)).limit(1)) is None:
            return 0
    with store.alone("journal of what was not analysed") as mine:
        if not mine:
            return 0
        with store.read() as session:
            jobs = list(session.scalars(query.order_by(Job.id).limit(_BATCH)))
            entries = [_entry(config, pseudonyms, job, job.image) for job in jobs]
            marks = [(Job.id == job.id) & (Job.state == job.state) & (Job.ended_at == job.ended_at) for job in jobs]
        for entry in entries:
            journal.append(entry)
        stages("journaled")
        with store.write() as session:
            for mark in marks:  # unless it was tried again meanwhile
                session.execute(update(Job).where(mark).values(journaled=True))
        return len(jobs)


def feed(source: str) -> str:
    """Return where an image came from, without the name of the user who uploaded it."""
    return "page" if source.startswith("page:") else source


def _entry(config: Gateway, pseudonyms: Pseudonyms, job: Job, image: Image) -> Entry:
    facts = entry_facts(
        image.header,
        pseudonyms,
        study_uid=image.study_uid,
        patient=(image.issuer, image.patient_id),
        site=config.journal.site,
    )
    key = sha256_bytes(f"{job.state} {image.digest} {job.cause or ''}".encode())[:32]
    # What follows the colon may quote a damaged file.
    reason = (job.reason or "").partition(":")[0] or None
    return unanalysed(
        job.state,
        key,
        now(),
        reason=reason,
        refused_by=job.cause,
        received_at=image.received_at,
        feed=feed(image.source),
        **facts,
    )
