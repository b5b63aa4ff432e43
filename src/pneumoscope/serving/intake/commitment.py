"""Storage commitment, push model (PS3.4, annex J): a sender asks whether it may erase what it sent.

The report goes over the association of the request. For a sender that does not wait and whose address is configured,
the report is queued, like a result for a destination, and goes over an association of our own.
"""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.presentation import build_role
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from pneumoscope.errors import ConfigError, ImageError, StorageError
from pneumoscope.images import image_errors
from pneumoscope.serving.intake.receipt import Intake
from pneumoscope.serving.settings.gateway import Receive
from pneumoscope.serving.store import jobs, outbox
from pneumoscope.serving.store.database import Store, database_time
from pneumoscope.serving.store.tables import DEAD, SENT, WAITING, Image, Report
from pneumoscope.serving.watch.logs import logger
from pneumoscope.serving.wire.association import (
    COMMITMENT,
    INSTANCE,
    INVALID_ARGUMENT,
    NO_SUCH_ACTION,
    NOT_AUTHORIZED,
    SUCCESS,
    associate,
)
from pneumoscope.serving.wire.references import reference
from pneumoscope.serving.wire.tls import refusal

_NOT_HERE, _OTHER_CLASS = 0x0112, 0x0119  # PS3.3, C.14.1.1: no such object instance, class/instance conflict
_ALL, _SOME_NOT = 1, 2  # PS3.4, J.3.3.1: types of the report
_PATIENCE = timedelta(seconds=10)  # for the association of the request, before our own is opened
_GIVE_UP = timedelta(hours=72)
_MOST = 100  # reports at once
_LOOK = 0.5  # seconds between checks of the queued reports


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why a report failed. `down`: there was no association or answer, so other reports would fail too."""

    reason: str
    down: bool = True


def answer(event: Any, intake: Intake, settings: Receive) -> tuple[int, None]:
    """Answer a request (N-ACTION); the report follows the answer."""
    caller = str(event.assoc.requestor.ae_title).strip()
    if caller not in settings.callers:  # a destination, which may only report
        return NOT_AUTHORIZED, None
    if event.action_type != 1 or not settings.commitment:
        return NO_SUCH_ACTION, None
    try:
        # PS3.4, table J.3-1: both are required.
        with image_errors("N-ACTION", "the request is damaged", "ask again"):
            request = event.action_information
            transaction = str(request.TransactionUID)
            items = [
                (str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID)) for i in request.ReferencedSOPSequence
            ]
    except ImageError:
        return INVALID_ARGUMENT, None
    store = intake.store
    content = report(transaction, items, intake)
    known = any(peer.aet == caller for peer in settings.commitment_peer)
    report_id = _enqueue(store, caller, content) if known else None
    # From another thread, which pynetdicom lets wait until this one has answered.
    threading.Thread(target=_reply, args=(event.assoc, content, store, report_id), daemon=True).start()
    return SUCCESS, None


def report(transaction: str, items: list[tuple[str, str]], intake: Intake) -> Dataset:
    """Return the report on objects, each a class and an instance: an image with its file and row is committed.

    Retention does not erase it from then on. An image of another class than requested is a failure.
    """
    with intake.store.write() as session:
        other = _of_another_class(session, items)
        committed = jobs.commit(
            session, intake.folder, [uid for sop_class, uid in items if (sop_class, uid) not in other]
        )
    content = Dataset()
    content.TransactionUID = transaction
    reasons = [_OTHER_CLASS if item in other else None if item[1] in committed else _NOT_HERE for item in items]
    references = [reference(*item, reason) for item, reason in zip(items, reasons, strict=True)]
    if stored := [each for each in references if "FailureReason" not in each]:
        content.ReferencedSOPSequence = stored
    if failed := [each for each in references if "FailureReason" in each]:
        content.FailedSOPSequence = failed
    return content


def _of_another_class(session: Session, items: list[tuple[str, str]]) -> set[tuple[str, str]]:
    query = select(Image.sop_class, Image.sop_uid).where(Image.sop_uid.in_([uid for _, uid in items]))
    images = {(sop_class, uid) for sop_class, uid in session.execute(query.where(Image.file.is_not(None)))}
    instances = {uid for _, uid in images}
    return {item for item in items if item[1] in instances and item not in images}


def run(store: Store, settings: Receive, stop: threading.Event) -> None:
    """Send queued reports until `stop` is set."""
    chance = random.Random()
    while not stop.wait(_LOOK):
        with suppress(StorageError), store.alone("commitment") as mine:  # where the database is away: later
            if mine:
                step(store, settings, chance)


def step(store: Store, settings: Receive, chance: random.Random) -> None:
    """Try each report that is due; a peer that does not answer gets no more of them in this round."""
    with store.read() as session:
        due = Report.not_before <= database_time(session)
        query = select(Report).where(Report.state == WAITING, due).order_by(Report.id).limit(_MOST)
        rows = list(session.scalars(query))
        session.expunge_all()
    down: dict[str, _Fault] = {}
    for row in rows:
        fault = down.get(row.peer) or _deliver(row, settings)
        if fault is not None and fault.down:
            down[row.peer] = fault
        _record(store, row, None if fault is None else fault.reason, chance)


def _enqueue(store: Store, peer: str, content: Dataset) -> int:
    with store.write() as session:
        moment = database_time(session)
        row = Report(
            peer=peer, content=content.to_json_dict(), state=WAITING, attempts=0, created_at=moment,
            not_before=moment + _PATIENCE,
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row.id


def _reply(association: Association, content: Dataset, store: Store, report_id: int | None) -> None:
    fault = _send(association, content)
    if fault is not None:
        logger("receive").warning("commitment not reported", reason=fault.reason, report=report_id)
    if report_id is not None:
        # After a failure the queued report is due at once.
        with suppress(StorageError), store.write() as session:
            values = {"not_before": database_time(session)} if fault else {"state": SENT, "attempts": 1}
            session.execute(update(Report).where(Report.id == report_id, Report.state == WAITING).values(**values))


def _send(association: Association, content: Dataset) -> _Fault | None:
    """Send a report over an association; returns why it failed."""
    kind = _SOME_NOT if "FailedSOPSequence" in content else _ALL
    try:
        status, _ = association.send_n_event_report(content, kind, COMMITMENT, INSTANCE)
    except RuntimeError as error:  # it did not wait
        return _Fault(type(error).__name__)
    except ValueError as error:  # it takes no reports, or not this one
        return _Fault(type(error).__name__, down=False)
    if "Status" not in status:
        return _Fault("no answer to the report")
    return _Fault(f"status 0x{status.Status:04X}", down=False) if status.Status else None


def _deliver(row: Report, settings: Receive) -> _Fault | None:
    """Send a report over an association of our own, in the role of the provider; returns why it failed."""
    peer = next((item for item in settings.commitment_peer if item.aet == row.peer), None)
    if peer is None:
        return _Fault("its address is no longer configured")
    to = peer.destination(settings.aet)
    try:
        association = associate(
            to,
            [(COMMITMENT, [ImplicitVRLittleEndian])],
            settings.seconds,
            roles=[build_role(COMMITMENT, scp_role=True)],
        )
        if not association.is_established:
            refused = peer.tls and refusal(peer.host, peer.port, peer.tls, settings.seconds)
            return _Fault(refused or "no association")
    except ConfigError as error:
        return _Fault(error.what)
    try:
        return _send(association, Dataset.from_json(row.content))
    finally:
        association.release()


def _record(store: Store, row: Report, fault: str | None, chance: random.Random) -> None:
    attempts = row.attempts + 1
    values: dict[str, object] = {"attempts": attempts, "reason": fault}
    with store.write() as session:
        moment = database_time(session)
        if fault is None:
            values |= {"state": SENT}
        elif moment - row.created_at >= _GIVE_UP:
            values |= {"state": DEAD}
        else:
            values |= {"not_before": moment + outbox.delay(attempts, chance)}
        session.execute(update(Report).where(Report.id == row.id).values(**values))
    log = logger("receive")
    write = log.info if fault is None else log.warning
    write("commitment reported" if fault is None else "commitment not reported", report=row.id, reason=fault)
