"""Retention: what is erased after how many days.

    images    the received file, of a job that has ended
    results   the bytes of delivered objects, and the heat map
    jobs      all data of an image without feedback, of which no sample asked
    events    the audit trail, and sign-ins that no event names
    journal   lines of whole months move into a journal of that month, beside it; none is erased

Nothing is erased of an image that waits or is analysed, whose storage was committed, or whose result was not delivered
to a configured destination (given up counts as not delivered). A file that a reader is asked about stays for 90 days.
Each transaction is small and writes an event about what it erased. An image whose file cannot be erased keeps its row
and is named in the log; the next sweep tries it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import ColumnElement, Select, delete, or_, select, update
from sqlalchemy.orm import Session

from pneumoscope.errors import PneumoscopeError, StorageError
from pneumoscope.journal.journal import Journal
from pneumoscope.serving.keeping.erasure import erase_file, erase_images, in_work, undelivered
from pneumoscope.serving.people import trail
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, database_time, now
from pneumoscope.serving.store.tables import (
    WAITING,
    Event,
    Feedback,
    Image,
    Job,
    Object,
    Report,
    Result,
    Review,
    SignIn,
)
from pneumoscope.serving.watch.logs import logger

_EVERY = 3600.0  # seconds between two sweeps
_BEAT = 5.0
_REVIEW_DAYS = 90  # that a file waits for a reader's verdict
_BATCH = 50  # rows of one transaction, for which other writers wait

Step = Callable[[Session, int], tuple[Sequence[int], int]]  # rows after this one; how many were erased


def run(config: Gateway, store: Store, stop: threading.Event, beat: Callable[[], None]) -> None:
    """Sweep every hour until `stop` is set; `beat` is called at least every few seconds."""
    log, due, beaten = logger("retain"), 0.0, 0.0

    def go_on() -> bool:
        nonlocal beaten
        if time.monotonic() - beaten >= _BEAT or not beaten:
            beat()
            beaten = time.monotonic()
        return not stop.is_set()

    while go_on():
        if time.monotonic() >= due:
            try:
                log.info("swept", **sweep(config, store, go_on))
            except (PneumoscopeError, OSError) as error:  # a full or read-only disk: the next sweep goes on
                log.error("not swept", error=type(error).__name__, reason=_reason(error))
            due = time.monotonic() + _EVERY
        stop.wait(_BEAT)


def sweep(config: Gateway, store: Store, go_on: Callable[[], bool] = lambda: True) -> dict[str, int]:
    """Erase what is due; returns the counts by name. `go_on` is asked before each transaction.

    Raises:
        StorageError: the database is away, or the journal cannot be written.
    """
    counts: dict[str, int] = {}
    for name, days, step in _steps(config):
        counts[name], after = 0, 0
        while go_on():
            with store.write() as session:
                ids, erased = step(session, after)
                if erased:
                    trail.add(session, None, trail.ERASED, None, f"{erased} {name}, after {days} days")
            counts[name] += erased
            if not ids:
                break
            after = ids[-1]
    if (old := config.retention.journal) is not None and go_on():
        counts["journal lines"] = moved = Journal(config.journal_file).archive(now() - timedelta(days=old))
        if moved:
            trail.note(store, None, trail.ERASED, detail=f"{moved} journal lines moved to archives, after {old} days")
    return counts


def _steps(config: Gateway) -> Iterator[tuple[str, int, Step]]:
    """Yield name, days and step of each configured kind, whole jobs first: they leave less to the others."""
    retention = config.retention
    if retention.jobs is not None:
        yield "jobs", retention.jobs, partial(_jobs, config, retention.jobs)
        yield "commitment reports", retention.jobs, partial(_reports, retention.jobs)
    if retention.images is not None:
        yield "images", retention.images, partial(_images, config, retention.images)
    if retention.results is not None:
        yield "results", retention.results, partial(_results, config, retention.results)
    if retention.events is not None:
        yield "events", retention.events, partial(_events, retention.events)
        yield "sign-ins", retention.events, partial(_sign_ins, retention.events)


def _limit(session: Session, days: int) -> datetime:
    return database_time(session) - timedelta(days=days)


def _settled(config: Gateway) -> tuple[ColumnElement[bool], ...]:
    destinations = [item.name for item in config.destination]
    return (~in_work(), ~undelivered(destinations, given_up=True), Image.committed_at.is_(None))


def _in_review(since: datetime | None = None) -> ColumnElement[bool]:
    """Return the condition that a sample asks about an image or, where it did so `since`, waits for the verdict."""
    jobs = select(Result.job_id).join(Review, Review.result_id == Result.id)
    if since is not None:
        jobs = jobs.where(Review.answered_at.is_(None), Review.created_at >= since)
    return Job.id.in_(jobs.correlate(None))


def _images(config: Gateway, days: int, session: Session, after: int) -> tuple[Sequence[int], int]:
    conditions = (
        Image.file.is_not(None),
        Job.ended_at < _limit(session, days),
        ~_in_review(_limit(session, _REVIEW_DAYS)),
    )
    query = select(Image).join(Image.job).where(*conditions)
    images = _locked(session, query.where(Image.id > after, *_settled(config)))
    return [image.id for image in images], len(_without_file(config, images))


def _jobs(config: Gateway, days: int, session: Session, after: int) -> tuple[Sequence[int], int]:
    has_feedback = Job.id.in_(select(Result.job_id).join(Feedback).correlate(None))
    conditions = (Job.ended_at < _limit(session, days), ~has_feedback, ~_in_review())
    query = select(Image).join(Image.job).where(*conditions)
    images = _locked(session, query.where(Image.id > after, *_settled(config)))
    gone = _without_file(config, images)
    erase_images(session, config.images, gone)
    return [image.id for image in images], len(gone)


def _locked(session: Session, query: Select[Image]) -> list[Image]:
    return list(session.scalars(query.order_by(Image.id).limit(_BATCH).with_for_update(of=Image)))


def _without_file(config: Gateway, images: Sequence[Image]) -> list[Image]:
    """Erase the files of images; returns those without a file now."""
    gone, log = [], logger("retain")
    for image in images:
        try:
            erase_file(config.images, image)
        except (StorageError, OSError) as error:
            log.error("not erased", image=image.id, error=type(error).__name__, reason=_reason(error))
        else:
            gone.append(image)
    return gone


def _reason(error: PneumoscopeError | OSError) -> str | None:
    """Return the reason without the name of the file."""
    return error.what if isinstance(error, PneumoscopeError) else error.strerror


def _results(config: Gateway, days: int, session: Session, after: int) -> tuple[Sequence[int], int]:
    bytes_left = Result.id.in_(select(Object.result_id).where(Object.data.is_not(None)))
    query = select(Result.id).join(Result.job).join(Job.image).where(Result.created_at < _limit(session, days))
    query = query.where(or_(Result.map_png.is_not(None), bytes_left), Result.id > after, *_settled(config)[:2])
    ids = list(session.scalars(query.order_by(Result.id).limit(_BATCH)))
    session.execute(update(Result).where(Result.id.in_(ids)).values(map_png=None))
    session.execute(update(Object).where(Object.result_id.in_(ids)).values(data=None))
    return ids, len(ids)


def _reports(days: int, session: Session, after: int) -> tuple[Sequence[int], int]:
    query = select(Report.id).where(Report.state != WAITING, Report.created_at < _limit(session, days))
    return _deleted(session, Report, query.where(Report.id > after))


def _events(days: int, session: Session, after: int) -> tuple[Sequence[int], int]:
    return _deleted(session, Event, select(Event.id).where(Event.at < _limit(session, days), Event.id > after))


def _sign_ins(days: int, session: Session, after: int) -> tuple[Sequence[int], int]:
    named = SignIn.id.in_(select(Event.sign_in_id).where(Event.sign_in_id.is_not(None)))
    query = select(SignIn.id).where(SignIn.expires_at < _limit(session, days), ~named)
    return _deleted(session, SignIn, query.where(SignIn.id > after))


def _deleted(session: Session, table: type[Report | Event | SignIn], query: Select[int]) -> tuple[Sequence[int], int]:
    ids = list(session.scalars(query.order_by(table.id).limit(_BATCH)))
    session.execute(delete(table).where(table.id.in_(ids)))
    return ids, len(ids)
