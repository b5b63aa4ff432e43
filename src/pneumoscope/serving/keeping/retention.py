"""Retention: what is erased when its days have passed, and what never is by itself.

    images    the received file, of a job that has ended
    results   the bytes of delivered objects, and the heat map
    jobs      all that is known of an image that no reader gave feedback on
    events    the audit trail, and sign-ins that it no longer names
    journal   lines of whole months move into a journal of that month, beside it; none is erased

Nothing is erased of an image that waits or is analysed, that has a result which was not delivered (given up counts as
not delivered) to a destination that is configured, or whose storage was committed. Each transaction is small, and
tells in an event what it erased. An image whose file cannot be erased keeps its row, is named in the log, and holds up
no other: the next sweep tries it again.
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
from pneumoscope.serving.keeping.erasure import erase_file, erase_images, in_work, owed
from pneumoscope.serving.people import trail
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, database_time, now
from pneumoscope.serving.store.tables import WAITING, Event, Feedback, Image, Job, Object, Report, Result, SignIn
from pneumoscope.serving.watch.logs import logger

_EVERY = 3600.0  # seconds between two sweeps
_BEAT = 5.0
_BATCH = 50  # rows of one transaction: others wait for it

Step = Callable[[Session, int], tuple[Sequence[int], int]]  # the rows after this one, and how much of them was erased


def run(config: Gateway, store: Store, stop: threading.Event, beat: Callable[[], None]) -> None:
    """Sweep every hour until told to stop; `beat` is called at least every few seconds."""
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
            except (PneumoscopeError, OSError) as error:  # a full or read-only disk: the next sweep finds what is left
                log.error("not swept", error=type(error).__name__, reason=_why(error))
            due = time.monotonic() + _EVERY
        stop.wait(_BEAT)


def sweep(config: Gateway, store: Store, go_on: Callable[[], bool] = lambda: True) -> dict[str, int]:
    """Erase what is due; returns how much of what. `go_on` is asked before each transaction.

    Raises:
        StorageError: the database is away, or the journal cannot be written; the next sweep goes on there.
    """
    counts: dict[str, int] = {}
    for what, days, step in _steps(config):
        counts[what], after = 0, 0
        while go_on():
            with store.write() as session:
                found, done = step(session, after)
                if done:
                    trail.add(session, None, trail.ERASED, None, f"{done} {what}, after {days} days")
            counts[what] += done
            if not found:
                break
            after = found[-1]
    if (old := config.retention.journal) is not None and go_on():
        counts["journal lines"] = moved = Journal(config.journal_file).archive(now() - timedelta(days=old))
        if moved:
            trail.note(store, None, trail.ERASED, detail=f"{moved} journal lines moved to archives, after {old} days")
    return counts


def _steps(config: Gateway) -> Iterator[tuple[str, int, Step]]:
    """Yield name, days and step of what is configured, whole jobs first: they spare the others the work."""
    kept = config.retention
    if kept.jobs is not None:
        yield "jobs", kept.jobs, partial(_jobs, config, kept.jobs)
        yield "commitment reports", kept.jobs, partial(_reports, kept.jobs)
    if kept.images is not None:
        yield "images", kept.images, partial(_images, config, kept.images)
    if kept.results is not None:
        yield "results", kept.results, partial(_results, config, kept.results)
    if kept.events is not None:
        yield "events", kept.events, partial(_events, kept.events)
        yield "sign-ins", kept.events, partial(_sign_ins, kept.events)


def _limit(session: Session, days: int) -> datetime:
    return database_time(session) - timedelta(days=days)


def _settled(config: Gateway) -> tuple[ColumnElement[bool], ...]:
    destinations = [item.name for item in config.destination]
    return (~in_work(), ~owed(destinations, given_up=True), Image.committed_at.is_(None))


def _images(config: Gateway, days: int, session: Session, after: int) -> tuple[Sequence[int], int]:
    query = select(Image).join(Image.job).where(Image.file.is_not(None), Job.ended_at < _limit(session, days))
    found = _held(session, query.where(Image.id > after, *_settled(config)))
    return [image.id for image in found], len(_without_file(config, found))


def _jobs(config: Gateway, days: int, session: Session, after: int) -> tuple[Sequence[int], int]:
    said = Job.id.in_(select(Result.job_id).join(Feedback).correlate(None))
    query = select(Image).join(Image.job).where(Job.ended_at < _limit(session, days), ~said)
    found = _held(session, query.where(Image.id > after, *_settled(config)))
    gone = _without_file(config, found)
    erase_images(session, config.images, gone)
    return [image.id for image in found], len(gone)


def _held(session: Session, query: Select[Image]) -> list[Image]:
    return list(session.scalars(query.order_by(Image.id).limit(_BATCH).with_for_update(of=Image)))


def _without_file(config: Gateway, images: Sequence[Image]) -> list[Image]:
    """Erase the files of images; returns those that have none now. The rows of the others stay as they are."""
    gone, log = [], logger("retain")
    for image in images:
        try:
            erase_file(config.images, image)
        except (StorageError, OSError) as error:
            log.error("not erased", image=image.id, error=type(error).__name__, reason=_why(error))
        else:
            gone.append(image)
    return gone


def _why(error: PneumoscopeError | OSError) -> str | None:
    """Return a reason without the file's name."""
    return error.what if isinstance(error, PneumoscopeError) else error.strerror


def _results(config: Gateway, days: int, session: Session, after: int) -> tuple[Sequence[int], int]:
    bytes_left = Result.id.in_(select(Object.result_id).where(Object.data.is_not(None)))
    query = select(Result.id).join(Result.job).join(Job.image).where(Result.created_at < _limit(session, days))
    query = query.where(or_(Result.map_png.is_not(None), bytes_left), Result.id > after, *_settled(config)[:2])
    found = list(session.scalars(query.order_by(Result.id).limit(_BATCH)))
    session.execute(update(Result).where(Result.id.in_(found)).values(map_png=None))
    session.execute(update(Object).where(Object.result_id.in_(found)).values(data=None))
    return found, len(found)


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
    found = list(session.scalars(query.order_by(table.id).limit(_BATCH)))
    session.execute(delete(table).where(table.id.in_(found)))
    return found, len(found)
