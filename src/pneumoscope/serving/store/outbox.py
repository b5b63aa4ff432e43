"""What is owed to destinations: tried again until it is delivered or given up, and never forgotten.

Rows are written in the transaction that ends the job, so a result is either owed or was never made. Between a
delivery and the commit that says so lies a moment; who dies in it sends the same bytes under the same UID once more,
and a destination keeps one of them.
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
    """What became of one attempt: delivered; to be tried again; or refused for good."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a destination said, and why, in words without identity."""

    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Parcel:
    """A delivery that is due, with the bytes that are sent."""

    delivery_id: int
    attempts: int
    created_at: datetime
    kind: str
    uid: str
    sop_class: str | None
    suffix: str
    data: bytes


def owe(session: Session, built: Object, destinations: Sequence[str], moment: datetime) -> None:
    """Add the deliveries of an object to the transaction that makes it."""
    for name in destinations:
        built.deliveries.append(
            Delivery(destination=name, state=WAITING, attempts=0, created_at=moment, not_before=moment)
        )


def due(store: Store, destination: str, most: int) -> list[Parcel]:
    """Return what is due at a destination, the oldest first, at most so many."""
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
    """Say whether anything is due at a destination, without reading it."""
    query = select(Delivery.id).join(Delivery.object).where(*_waiting(destination)).limit(1)
    with store.read() as session:
        return session.scalar(query.where(_timely(session))) is not None


def record(store: Store, parcel: Parcel, answer: Answer, give_up: timedelta, chance: random.Random) -> str:
    """Write down what came of an attempt; returns the delivery's new state."""
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
    # Only what failed waits for its time: a clock that was set back holds up nothing.
    return or_(Delivery.attempts == 0, Delivery.not_before <= database_time(session))


def way(store: Store, parcel: Parcel) -> float | None:
    """Return the seconds from an image's arrival to the delivery of this object; None before it is delivered."""
    query = select(Job.created_at, Delivery.sent_at).join(Delivery.object).join(Object.result).join(Result.job)
    with store.read() as session:
        row = session.execute(query.where(Delivery.id == parcel.delivery_id)).one_or_none()
    return None if row is None or row[1] is None else (row[1] - row[0]).total_seconds()


def delay(attempts: int, chance: random.Random, longest: timedelta = _LONGEST) -> timedelta:
    """Return how long to wait after so many failed attempts: doubled each time up to `longest`, half by chance.

    Chance keeps destinations that were down together from being asked together.
    """
    doubled: timedelta = _FIRST * 2 ** min(attempts - 1, 16)
    return min(longest, doubled) * (0.5 + 0.5 * chance.random())


def replay(store: Store, delivery_id: int) -> bool:
    """Owe a delivery again that was given up, as a person asked; False where it was not, or its bytes were erased."""
    kept = select(Object.id).where(Object.data.is_not(None))
    with store.write() as session:
        moment = database_time(session)
        fresh = {"state": WAITING, "attempts": 0, "refusals": 0, "not_before": moment, "created_at": moment}
        query = update(Delivery).where(Delivery.id == delivery_id, Delivery.state == DEAD, Delivery.object_id.in_(kept))
        return session.scalar(query.values(**fresh).returning(Delivery.id)) is not None


def give_up_others(store: Store, configured: Collection[str]) -> dict[str, int]:
    """Give up what is owed to destinations that are no longer configured; returns how much to which."""
    with store.write() as session:
        others = (Delivery.state == WAITING, Delivery.destination.not_in(configured))
        counts = select(Delivery.destination, func.count()).where(*others).group_by(Delivery.destination)
        found = dict(session.execute(counts).all())
        reason = "given up: the destination is no longer configured"
        session.execute(update(Delivery).where(*others).values(state=DEAD, reason=reason))
    return found


def counts(session: Session) -> dict[tuple[str, str], int]:
    """Return how many deliveries there are by destination and state, where there are any."""
    query = select(Delivery.destination, Delivery.state, func.count()).group_by(Delivery.destination, Delivery.state)
    return {(name, state): count for name, state, count in session.execute(query).all()}


def refused(session: Session, destination: str) -> str | None:
    """Return why the attempt failed that is to be made again first, None where none failed."""
    query = select(Delivery.reason).where(Delivery.destination == destination, Delivery.state == WAITING)
    return session.scalar(query.where(Delivery.attempts > 0).order_by(Delivery.not_before).limit(1))


def owed_since(session: Session, destination: str) -> datetime | None:
    """Return since when the oldest waiting delivery is owed, None where none is."""
    query = select(Delivery.created_at).where(Delivery.destination == destination, Delivery.state == WAITING)
    return session.scalar(query.order_by(Delivery.created_at).limit(1))
