"""Deliveries to destinations: tried again until they are sent or given up, and never lost.

Their rows are written in the transaction that ends the job, so no result is without them. A process that dies between
sending and committing sends the same bytes under the same UID again, and the destination keeps one copy.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session, joinedload

from pneumoscope.serving.store.database import Store, database_time
from pneumoscope.serving.store.tables import DEAD, SENT, WAITING, Delivery, Job, Object, Result

_FIRST, _LONGEST = timedelta(seconds=2), timedelta(minutes=10)


class Outcome(Enum):
    """Outcome of one attempt: delivered, to be tried again, or refused for good."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """A destination's answer; `reason` is free of identity."""

    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Parcel:
    """A delivery that is due, with the bytes to send."""

    delivery_id: int
    attempts: int
    created_at: datetime
    kind: str
    uid: str
    sop_class: str | None
    suffix: str
    data: bytes


def enqueue(session: Session, row: Object, destinations: Sequence[str], moment: datetime) -> None:
    """Add an object's deliveries to the transaction that writes it."""
    for name in destinations:
        row.deliveries.append(
            Delivery(destination=name, state=WAITING, attempts=0, created_at=moment, not_before=moment)
        )


def due(store: Store, destination: str, most: int) -> list[Parcel]:
    """Return the deliveries due at a destination, the oldest first, at most so many."""
    query = (
        select(Delivery)
        .join(Delivery.object)
        .where(*_waiting(destination))
        .order_by(Delivery.not_before, Delivery.id)
        .limit(most)
        .options(joinedload(Delivery.object))
    )
    with store.read() as session:
        query = query.where(_timely(session))
        return [
            Parcel(
                row.id,
                row.attempts,
                row.created_at,
                row.object.kind,
                row.object.uid,
                row.object.sop_class,
                row.object.suffix,
                row.object.data or b"",
            )
            for row in session.scalars(query)
        ]


def is_due(store: Store, destination: str) -> bool:
    """Say whether a delivery is due at a destination."""
    query = select(Delivery.id).join(Delivery.object).where(*_waiting(destination)).limit(1)
    with store.read() as session:
        return session.scalar(query.where(_timely(session))) is not None


def record(store: Store, parcel: Parcel, answer: Answer, give_up: timedelta, chance: random.Random) -> str:
    """Record an attempt; returns the delivery's new state."""
    attempts = parcel.attempts + 1
    values: dict[str, object] = {"attempts": attempts, "reason": answer.reason}
    with store.write() as session:
        moment = database_time(session)
        if answer.outcome is Outcome.DELIVERED:
            values |= {"state": SENT, "sent_at": moment}
        elif answer.outcome is Outcome.REFUSED:
            values |= {"state": DEAD}
        elif moment - parcel.created_at >= give_up:
            values |= {"state": DEAD, "reason": f"given up after {attempts} attempts: {answer.reason}"}
        else:
            values |= {"state": WAITING, "not_before": moment + delay(attempts, chance)}
        session.execute(update(Delivery).where(Delivery.id == parcel.delivery_id).values(**values))
    return str(values["state"])


def _waiting(destination: str) -> tuple[ColumnElement[bool], ...]:
    return Delivery.destination == destination, Delivery.state == WAITING, Object.data.is_not(None)


def _timely(session: Session) -> ColumnElement[bool]:
    # Only failed deliveries wait for their time: a clock that was set back delays no new one.
    return or_(Delivery.attempts == 0, Delivery.not_before <= database_time(session))


def way(store: Store, parcel: Parcel) -> float | None:
    """Return the seconds from an image's arrival to the delivery of this object; None before it is delivered."""
    query = select(Job.created_at, Delivery.sent_at).join(Delivery.object).join(Object.result).join(Result.job)
    with store.read() as session:
        row = session.execute(query.where(Delivery.id == parcel.delivery_id)).one_or_none()
    return None if row is None or row[1] is None else (row[1] - row[0]).total_seconds()


def delay(attempts: int, chance: random.Random, longest: timedelta = _LONGEST) -> timedelta:
    """Return how long to wait after so many failed attempts: doubled each time up to `longest`, half by chance.

    Chance spreads the attempts at destinations that failed together.
    """
    doubled: timedelta = _FIRST * 2 ** min(attempts - 1, 16)
    return min(longest, doubled) * (0.5 + 0.5 * chance.random())


def replay(store: Store, delivery_id: int) -> bool:
    """Queue a delivery again that was given up; False where it was not, or its bytes were erased."""
    with_bytes = select(Object.id).where(Object.data.is_not(None))
    with store.write() as session:
        moment = database_time(session)
        fresh = {"state": WAITING, "attempts": 0, "refusals": 0, "not_before": moment, "created_at": moment}
        query = update(Delivery).where(
            Delivery.id == delivery_id, Delivery.state == DEAD, Delivery.object_id.in_(with_bytes)
        )
        return session.scalar(query.values(**fresh).returning(Delivery.id)) is not None


def give_up_others(store: Store, configured: Collection[str]) -> dict[str, int]:
    """Give up waiting deliveries to destinations no longer configured; returns how many to each."""
    with store.write() as session:
        others = (Delivery.state == WAITING, Delivery.destination.not_in(configured))
        query = select(Delivery.destination, func.count()).where(*others).group_by(Delivery.destination)
        given_up = dict(session.execute(query).all())
        reason = "given up: the destination is no longer configured"
        session.execute(update(Delivery).where(*others).values(state=DEAD, reason=reason))
    return given_up


def counts(session: Session) -> dict[tuple[str, str], int]:
    """Return how many deliveries there are by destination and state."""
    query = select(Delivery.destination, Delivery.state, func.count()).group_by(Delivery.destination, Delivery.state)
    return {(name, state): count for name, state, count in session.execute(query).all()}


def refused(session: Session, destination: str) -> str | None:
    """Return why the delivery failed that is tried next, None where none failed."""
    query = select(Delivery.reason).where(Delivery.destination == destination, Delivery.state == WAITING)
    return session.scalar(query.where(Delivery.attempts > 0).order_by(Delivery.not_before).limit(1))


def waiting_since(session: Session, destination: str) -> datetime | None:
    """Return when the oldest waiting delivery was queued, None where none waits."""
    query = select(Delivery.created_at).where(Delivery.destination == destination, Delivery.state == WAITING)
    return session.scalar(query.order_by(Delivery.created_at).limit(1))
