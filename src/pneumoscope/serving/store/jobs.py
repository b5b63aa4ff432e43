"""The queue: which image is analysed next, by which worker, and what follows a failure.

    waiting ─▶ running ─▶ done
       ▲          ├─▶ waiting      it failed, and is tried again later
       │          └─▶ quarantined  it failed for good; a person may send it back
    declined                       a rule says why it is not analysed

A worker has a lease, by the clock of the database. A claim carries its number, so that a worker thought dead cannot
overwrite the one that took its job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select, update
from sqlalchemy.orm import Session, joinedload

from pneumoscope.serving.store.database import Store, database_time
from pneumoscope.serving.store.tables import JOB_STATES, QUARANTINED, RUNNING, WAITING, Image, Job

_CLAIMS = 50  # of one job whose worker died each time: then the job is at fault
_RETRY, _LONGEST = timedelta(seconds=2), timedelta(minutes=5)  # doubled for each attempt up to the longest
PATIENCE = 300  # attempts, about a day: for failures that are no fault of the image


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker may run until its lease ends. `header`: DICOM facts; `claims` shuts out late writers.

    `waited`: seconds since it came in.
    """

    job_id: int
    claims: int
    owner: str
    image_id: int
    file: str
    digest: str
    study_uid: str
    patient_id: str | None
    issuer: str | None
    header: dict[str, Any]
    source: str
    received_at: datetime
    created_at: datetime
    waited: float


def rank(priority: int, created_at: datetime, number: int, moment: datetime, max_wait: timedelta) -> tuple[Any, ...]:
    """Return the key by which jobs are ordered, the least first.

    Jobs that have waited `max_wait` go first, the oldest before the others; then the more urgent, then the older. So a
    job waits at most `max_wait` and the time for those that came before it.
    """
    if moment - created_at >= max_wait:
        return (0, 0, created_at, number)
    return (1, -priority, created_at, number)


def ordering(moment: datetime, max_wait: timedelta) -> Sequence[ColumnElement[Any]]:
    """Return the same order for the database."""
    overdue = Job.created_at <= moment - max_wait
    return (
        case((overdue, 0), else_=1),
        case((overdue, 0), else_=-Job.priority),
        Job.created_at.asc(),
        Job.id.asc(),
    )


def claim(store: Store, owner: str, lease: timedelta, max_wait: timedelta) -> Claim | None:
    """Take the next job, for the time of `lease`; None where nothing waits."""
    with store.read() as session:  # no write lock while there is nothing to do
        if session.scalar(select(Job.id).where(_due(database_time(session))).limit(1)) is None:
            return None
    with store.write() as session:
        moment = database_time(session)
        query = select(Job).where(_due(moment)).order_by(*ordering(moment, max_wait)).limit(1)
        job = session.scalar(query.options(joinedload(Job.image)).with_for_update(skip_locked=True, of=Job))
        if job is None:
            return None
        if job.claims >= _CLAIMS or job.image.file is None:
            reason = f"its worker died {job.claims} times" if job.image.file else "its file was erased"
            job.cause = "worker died" if job.image.file else "file erased"
            _end(job, QUARANTINED, f"not analysed, because {reason}", moment)
            return None
        job.state, job.owner, job.lease_until = RUNNING, owner, moment + lease
        job.claims += 1
        image = job.image
        return Claim(
            job_id=job.id,
            claims=job.claims,
            owner=owner,
            image_id=image.id,
            file=str(image.file),
            digest=image.digest,
            study_uid=image.study_uid,
            patient_id=image.patient_id,
            issuer=image.issuer,
            header=image.header,
            source=image.source,
            received_at=image.received_at,
            created_at=job.created_at,
            waited=(moment - job.created_at).total_seconds(),
        )


def end(store: Store, claim: Claim, state: str, record: Callable[[Session, Job], None] | None = None) -> bool:
    """End a job, and let `record` add the result in the same transaction.

    Returns False, and records nothing, where the job is no longer this worker's.
    """
    with store.write() as session:
        job = _claimed(session, claim)
        if job is None:
            return False
        _end(job, state, None, database_time(session))
        if record is not None:
            record(session, job)
    return True


def fail(store: Store, claim: Claim, reason: str, *, attempts: int, cause: str | None = None) -> str | None:
    """Record that a job failed; returns its state, or None where it is no longer this worker's.

    `attempts`: after so many it is quarantined. `cause`: the reason in a word.
    """
    with store.write() as session:
        job = _claimed(session, claim)
        if job is None:
            return None
        job.attempts += 1
        job.cause = cause
        if job.attempts >= attempts:
            _end(job, QUARANTINED, reason, database_time(session))
        else:
            _wait(job)
            job.reason = reason
            doubled: timedelta = _RETRY * 2 ** min(job.attempts - 1, 16)
            job.not_before = database_time(session) + min(doubled, _LONGEST)
        return job.state


def release(store: Store, owner: str) -> int:
    """Return the jobs of a dead worker to the queue; returns how many."""
    with store.write() as session:
        jobs = list(session.scalars(select(Job).where(Job.state == RUNNING, Job.owner == owner).with_for_update()))
        for job in jobs:
            _wait(job)
        return len(jobs)


def try_again(store: Store, job_id: int) -> bool:
    """Send a quarantined job back to the queue, as an administrator asked; False where it is not quarantined.

    Refused for a later version under the same UID: its results would be shown beside the pixels of the first.
    """
    first = Job.image_id.in_(select(Image.id).where(Image.version == 1))
    with store.write() as session:
        fresh = {"state": WAITING, "attempts": 0, "claims": 0, "ended_at": None, "not_before": database_time(session)}
        fresh |= {"cause": None, "journaled": False}
        query = update(Job).where(Job.id == job_id, Job.state == QUARANTINED, first).values(**fresh).returning(Job.id)
        return session.scalar(query) is not None


def counts(session: Session) -> dict[str, int]:
    """Return how many jobs there are of each state, in the order of a job's life."""
    numbers = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
    return {state: numbers.get(state, 0) for state in JOB_STATES}


def waiting_since(session: Session) -> datetime | None:
    """Return when the oldest waiting job came in, None where none waits."""
    return session.scalar(select(Job.created_at).where(Job.state == WAITING).order_by(Job.created_at).limit(1))


def commit(session: Session, folder: Path, sop_uids: Sequence[str]) -> set[str]:
    """Return the SOP instances whose image lies in `folder`; retention no longer erases them."""
    images = update(Image).where(Image.sop_uid.in_(sop_uids), Image.file.is_not(None))
    marked = images.values(committed_at=func.coalesce(Image.committed_at, database_time(session))).returning(
        Image.sop_uid, Image.file
    )
    return {uid for uid, file in session.execute(marked) if file and (folder / file).is_file()}


def _due(moment: datetime) -> ColumnElement[bool]:
    # Only failed jobs wait for their time: a clock that was set back delays no new one.
    fresh = and_(Job.state == WAITING, or_(Job.attempts == 0, Job.not_before <= moment))
    abandoned = and_(Job.state == RUNNING, Job.lease_until < moment)
    return or_(fresh, abandoned)


def _claimed(session: Session, claim: Claim) -> Job | None:
    query = select(Job).where(
        Job.id == claim.job_id, Job.state == RUNNING, Job.owner == claim.owner, Job.claims == claim.claims
    )
    return session.scalar(query.with_for_update())


def _wait(job: Job) -> None:
    job.state, job.owner, job.lease_until = WAITING, None, None


def _end(job: Job, state: str, reason: str | None, moment: datetime) -> None:
    job.state, job.reason, job.ended_at = state, reason, moment
    job.owner, job.lease_until = None, None
