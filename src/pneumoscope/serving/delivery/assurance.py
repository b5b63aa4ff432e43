"""Asking destinations to commit the objects sent to them (PS3.4, annex J).

    sent ─▶ committed     the destination keeps the object
      └───▶ waiting       it does not have it: sent again

It reports over the association of the request or, later, over its own one to the listener.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid
from pynetdicom import evt
from sqlalchemy import select, update

from pneumoscope.errors import ImageError, PneumoscopeError
from pneumoscope.images import image_errors
from pneumoscope.serving.settings.neighbours import Destination
from pneumoscope.serving.store import outbox
from pneumoscope.serving.store.database import Store, database_time
from pneumoscope.serving.store.tables import COMMITTED, DEAD, SENT, WAITING, Delivery, Object
from pneumoscope.serving.watch.logs import logger
from pneumoscope.serving.wire.association import COMMITMENT, INSTANCE, INVALID_ARGUMENT, SUCCESS, associate
from pneumoscope.serving.wire.references import reference

_MOST = 100  # objects of one request
_TIMES = 10  # refusals of an object before it is given up
_AGAIN = timedelta(minutes=10)  # after a request that did not arrive
_PATIENCE = timedelta(hours=12)  # for a report: an archive may commit at night
_WAIT, _LOOK = 10.0, 0.1  # seconds for a report over the association of the request; between checks for it


def ask(store: Store, to: Destination) -> int:
    """Ask a destination to commit the objects that it got; returns how many."""
    transaction = generate_uid()
    query = (
        select(Delivery.id, Object.sop_class, Object.uid)
        .join(Delivery.object)
        .where(Delivery.destination == to.name, Delivery.state == SENT)
        .order_by(Delivery.id)
        .limit(_MOST)
    )
    with store.read() as session:
        moment = database_time(session)
        recent = Delivery.sent_at > moment - timedelta(hours=to.give_up_hours)
        rows = session.execute(query.where(Delivery.not_before <= moment, recent)).all()
    if not rows:
        return 0
    # Recorded first: the report may come before the answer.
    values = {"transaction_uid": transaction, "not_before": moment + _AGAIN}
    with store.write() as session:
        session.execute(update(Delivery).where(Delivery.id.in_([number for number, *_ in rows])).values(**values))
    try:
        fault = _ask(store, to, transaction, [(str(sop_class), uid) for _, sop_class, uid in rows])
    except PneumoscopeError as error:
        fault = error.what
    except (OSError, RuntimeError) as error:
        fault = type(error).__name__
    log = logger("send", destination=to.name)
    if fault is None:
        log.info("commitment asked", objects=len(rows))
        with store.write() as session:
            pending = Delivery.transaction_uid == transaction, Delivery.state == SENT
            session.execute(update(Delivery).where(*pending).values(not_before=moment + _PATIENCE))
    else:
        log.warning("commitment not asked", objects=len(rows), reason=fault)
    return len(rows)


def handlers(store: Store) -> list[tuple[evt.InterventionEvent, Callable[[Any], tuple[int, None]]]]:
    """Return the handlers of an association over which a destination may report."""
    return [(evt.EVT_N_EVENT_REPORT, lambda event: answer(event, store))]


def answer(event: Any, store: Store) -> tuple[int, None]:
    """Record a report (N-EVENT-REPORT); one about an unknown transaction changes nothing."""
    try:
        with image_errors("N-EVENT-REPORT", "the report is damaged", "report again"):
            report = event.event_information
            transaction = str(report.TransactionUID)
            committed = [str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence", [])]
            failed = {
                str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0))
                for item in report.get("FailedSOPSequence", [])
            }
    except ImageError:
        return INVALID_ARGUMENT, None
    _record(store, transaction, committed, failed)
    return SUCCESS, None


def _record(store: Store, transaction: str, committed: list[str], failed: dict[str, int]) -> None:
    log, chance = logger("send"), random.Random()
    with store.write() as session:
        moment = database_time(session)
        query = select(Delivery).where(Delivery.transaction_uid == transaction, Delivery.state == SENT)
        for row in session.scalars(query):
            uid = row.object.uid
            if uid in failed:
                row.attempts, row.refusals = 1, row.refusals + 1  # one: it waits for its time
                row.state, row.reason = WAITING, f"not committed: reason 0x{failed[uid]:04X}"
                if row.object.data is None or row.refusals >= _TIMES:
                    row.state = DEAD
                row.not_before = moment + outbox.delay(row.refusals, chance)
                log.warning("not committed", destination=row.destination, delivery=row.id, reason=row.reason)
            elif uid in committed:
                row.state, row.reason = COMMITTED, None
                log.info("committed", destination=row.destination, delivery=row.id)


def _ask(store: Store, to: Destination, transaction: str, objects: list[tuple[str, str]]) -> str | None:
    """Send a request and wait a moment for the report; returns why the request failed."""
    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = [reference(*each) for each in objects]
    association = associate(
        to,
        [(COMMITMENT, [ImplicitVRLittleEndian])],
        to.seconds,
        handlers=handlers(store),
    )
    if not association.is_established:
        return "it offers no storage commitment" if association.rejected_contexts else "no association"
    try:
        status, _ = association.send_n_action(request, 1, COMMITMENT, INSTANCE)
        if "Status" not in status:
            return "no answer"
        if status.Status:
            return f"status 0x{status.Status:04X}"
        limit = time.monotonic() + min(_WAIT, to.seconds)
        # A due delivery does not wait for the report, which may come over an association of the destination.
        while _open(store, transaction) and not outbox.is_due(store, to.name) and time.monotonic() < limit:
            time.sleep(_LOOK)
    finally:
        association.release()
    return None


def _open(store: Store, transaction: str) -> bool:
    query = select(Delivery.id).where(Delivery.transaction_uid == transaction, Delivery.state == SENT).limit(1)
    with store.read() as session:
        return session.scalar(query) is not None
