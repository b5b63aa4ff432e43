"""Retention: what is erased when its days have passed, and what never is by itself.

    images    the received file, of a job that has ended
    results   the bytes of delivered objects, and the heat map
    jobs      all that is known of an image that no reader gave feedback on
    events    the audit trail, and sign-ins that it no longer names
    journal   lines of whole months move into a journal of that month, beside it; none is erased

Nothing is erased of an image that waits or is analysed, that has a result which was not delivered (given up counts as
not delivered) to a destination that is configured, or whose storage was committed. Each transaction is small, and
tells in an event what it erased.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.orm import Session

from pneumoscope.errors import PneumoscopeError
from pneumoscope.journal import Journal
from pneumoscope.serving import audit
from pneumoscope.serving.config import Gateway
from pneumoscope.serving.erasure import erase_file, erase_images, in_work, owed
from pneumoscope.serving.logs import logger
from pneumoscope.serving.store import Store, database_time, now
from pneumoscope.serving.tables import WAITING, Event, Feedback, Image, Job, Object, Report, Result, SignIn

_EVERY = 3600.0  # seconds between two sweeps
_BEAT = 5.0
_BATCH = 50  # rows of one transaction: others wait for it

Step = Callable[[Session], int]


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
            except PneumoscopeError as error:  # a full or read-only disk: the next sweep finds what is left
                log.error("not swept", error=type(error).__name__, reason=error.what)
            due = time.monotonic() + _EVERY
        stop.wait(_BEAT)


def sweep(config: Gateway, store: Store, go_on: Callable[[], bool] = lambda: True) -> dict[str, int]:
    """Erase what is due; returns how much of what. `go_on` is asked before each transaction.

    Raises:
        StorageError: a file cannot be erased, or the journal cannot be written; the next sweep goes on there.
    """
    counts: dict[str, int] = {}
    for what, days, step in _steps(config):
        counts[what] = 0
        while go_on():
            with store.write() as session:
                done = step(session)
                if done:
                    audit.add(session, None, audit.ERASED, None, f"{done} {what}, after {days} days")
            counts[what] += done
            if not done:
                break
    if (old := config.retention.journal) is not None and go_on():
        counts["journal lines"] = moved = Journal(config.journal_file).archive(now() - timedelta(days=old))
        if moved:
            audit.note(store, None, audit.ERASED, detail=f"{moved} journal lines moved to archives, after {old} days")
    return counts


def _steps(config: Gateway) -> Iterator[tuple[str, int, Step]]:
    """Yield name, days and step of what is configured, whole jobs first: they spare the others the work."""
    kept = config.retention
    if kept.jobs is not None:
        yield "jobs", kept.jobs, lambda session: _jobs(session, config, _limit(session, kept.jobs))
        yield "commitment reports", kept.jobs, lambda session: _reports(session, _limit(session, kept.jobs))
    if kept.images is not None:
        yield "images", kept.images, lambda session: _images(session, config, _limit(session, kept.images))
    if kept.results is not None:
        yield "results", kept.results, lambda session: _results(session, config, _limit(session, kept.results))
    if kept.events is not None:
        yield "events", kept.events, lambda session: _events(session, _limit(session, kept.events))
        yield "sign-ins", kept.events, lambda session: _sign_ins(session, _limit(session, kept.events))


def _limit(session: Session, days: int | None) -> datetime:
    return database_time(session) - timedelta(days=days or 0)


def _settled(config: Gateway) -> tuple[ColumnElement[bool], ...]:
    destinations = [item.name for item in config.destination]
    return (~in_work(), ~owed(destinations, given_up=True), Image.committed_at.is_(None))


def _images(session: Session, config: Gateway, limit: datetime) -> int:
    query = select(Image).join(Image.job).where(Image.file.is_not(None), Job.ended_at < limit, *_settled(config))
    found = list(session.scalars(query.order_by(Image.id).limit(_BATCH).with_for_update(of=Image)))
    for image in found:
        erase_file(config.images, image)
    return len(found)


def _results(session: Session, config: Gateway, limit: datetime) -> int:
    bytes_left = Result.id.in_(select(Object.result_id).where(Object.data.is_not(None)))
    query = select(Result.id).join(Result.job).join(Job.image).where(Result.created_at < limit, *_settled(config)[:2])
    query = query.where(or_(Result.map_png.is_not(None), bytes_left)).order_by(Result.id).limit(_BATCH)
    found = list(session.scalars(query))
    session.execute(update(Result).where(Result.id.in_(found)).values(map_png=None))
    session.execute(update(Object).where(Object.result_id.in_(found)).values(data=None))
    return len(found)


def _jobs(session: Session, config: Gateway, limit: datetime) -> int:
    said = Job.id.in_(select(Result.job_id).join(Feedback).correlate(None))
    query = select(Image).join(Image.job).where(Job.ended_at < limit, ~said, *_settled(config))
    found = list(session.scalars(query.order_by(Image.id).limit(_BATCH).with_for_update(of=Image)))
    erase_images(session, config.images, found)
    return len(found)


def _reports(session: Session, limit: datetime) -> int:
    query = select(Report.id).where(Report.state != WAITING, Report.created_at < limit).order_by(Report.id)
    found = list(session.scalars(query.limit(_BATCH)))
    session.execute(delete(Report).where(Report.id.in_(found)))
    return len(found)


def _events(session: Session, limit: datetime) -> int:
    found = list(session.scalars(select(Event.id).where(Event.at < limit).order_by(Event.id).limit(_BATCH)))
    session.execute(delete(Event).where(Event.id.in_(found)))
    return len(found)


def _sign_ins(session: Session, limit: datetime) -> int:
    named = SignIn.id.in_(select(Event.sign_in_id).where(Event.sign_in_id.is_not(None)))
    query = select(SignIn.id).where(SignIn.expires_at < limit, ~named).order_by(SignIn.id).limit(_BATCH)
    found = list(session.scalars(query))
    session.execute(delete(SignIn).where(SignIn.id.in_(found)))
    return len(found)
