"""The audit trail of the page: who saw or did what. It names images by their row, never patients."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from pneumoscope.serving.people.accounts import Person
from pneumoscope.serving.store.database import Store, database_time
from pneumoscope.serving.store.tables import Event

LISTED, SEARCHED, VIEWED, PIXELS, OVERLAY = "listed", "searched", "viewed", "pixels", "overlay"
FEEDBACK, UPLOADED, REPLAYED, AGAIN, READ_AUDIT = "feedback", "uploaded", "replayed", "tried again", "audit read"
REVIEW_SHOWN, REVIEWED = "shown for review", "reviewed"
ERASED, ERASED_ON_REQUEST = "erased", "erased on request"
SIGNED_IN, SIGNED_OUT, REFUSED = "signed in", "signed out", "sign-in refused"


def note(
    store: Store, person: Person | None, action: str, image_id: int | None = None, detail: str | None = None
) -> None:
    """Write an event; it is on the disk when this returns."""
    with store.write() as session:
        add(session, person, action, image_id, detail)


def add(session: Session, person: Person | None, action: str, image_id: int | None, detail: str | None = None) -> None:
    """Add an event to the transaction of the action itself."""
    session.add(
        Event(
            at=database_time(session),
            user_id=None if person is None else person.user_id,
            sign_in_id=None if person is None else person.sign_in_id,
            action=action,
            image_id=image_id,
            detail=detail,
        )
    )


def listed(store: Store, person: Person, image_ids: Sequence[int]) -> None:
    """Write an event for each image that this sign-in sees in a list for the first time."""
    query = select(Event.image_id).where(Event.sign_in_id == person.sign_in_id, Event.action == LISTED)
    with store.read() as session:
        seen = set(session.scalars(query.where(Event.image_id.in_(image_ids))))
    if fresh := [image_id for image_id in image_ids if image_id not in seen]:
        with store.write() as session:
            for image_id in fresh:
                add(session, person, LISTED, image_id)


def latest(store: Store, most: int) -> list[Event]:
    """Return the latest events with their users, the newest first."""
    with store.read() as session:
        query = select(Event).options(joinedload(Event.user)).order_by(Event.id.desc()).limit(most)
        rows = list(session.scalars(query))
        session.expunge_all()
        return rows
