"""A sender asks whether it may erase what it sent."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE, evt
from scripts.pacs.orthanc import free_ports
from sqlalchemy import select, update
from tests.support.gateway import CALLER, chest, gateway, push, receiving
from tests.support.waiting import until

from pneumoscope.serving.intake import commitment
from pneumoscope.serving.intake.listener import Receiver
from pneumoscope.serving.settings.gateway import Receive
from pneumoscope.serving.store.database import Store, now, open_store
from pneumoscope.serving.store.tables import SENT, WAITING, Image, Report
from pneumoscope.serving.wire.association import COMMITMENT, INSTANCE, INVALID_ARGUMENT, NO_SUCH_ACTION, associate

RECEIVE = {"port": 0, "callers": (CALLER,), "free_mb": 0, "commitment": True}


def ask(receiver: Receiver, question: Dataset, kind: int = 1) -> tuple[int, Any]:
    """Return the status of the answer, and the report with its type where one follows."""
    reports: queue.Queue[tuple[int, Dataset]] = queue.Queue()

    def on_report(event: Any) -> tuple[int, None]:
        reports.put((event.event_type, event.event_information))
        return 0, None

    application = AE(ae_title=CALLER)
    application.add_requested_context(COMMITMENT)
    association = application.associate(
        "127.0.0.1",
        receiver.port,
        ae_title="PNEUMOSCOPE",
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report)],
    )
    assert association.is_established
    status, _ = association.send_n_action(question, kind, COMMITMENT, INSTANCE)
    report = reports.get(timeout=30) if status.Status == 0 else None
    association.release()
    return status.Status, report


def question(*uids: str) -> Dataset:
    asked = Dataset()
    asked.TransactionUID = generate_uid()
    asked.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = DigitalXRayImageStorageForPresentation, uid
        asked.ReferencedSOPSequence.append(item)
    return asked


def uids(report: pydicom.Dataset, name: str) -> list[str]:
    return [item.ReferencedSOPInstanceUID for item in report.get(name, [])]


def test_what_is_safe_is_committed_and_the_rest_is_not(tmp_path: Path) -> None:
    sources, absent = [chest(), chest()], generate_uid()
    with receiving(gateway(tmp_path, receive=RECEIVE)) as (receiver, _):
        assert push(receiver, *sources) == [0, 0]
        asked = question(*(source.SOPInstanceUID for source in sources))
        status, (kind, report) = ask(receiver, asked)
        assert (status, kind, report.TransactionUID) == (0, 1, asked.TransactionUID)
        assert uids(report, "ReferencedSOPSequence") == [source.SOPInstanceUID for source in sources]
        assert "FailedSOPSequence" not in report
        status, (kind, report) = ask(receiver, question(sources[0].SOPInstanceUID, absent))
        assert (status, kind) == (0, 2)
        assert uids(report, "ReferencedSOPSequence") == [sources[0].SOPInstanceUID]
        assert uids(report, "FailedSOPSequence") == [absent]
        assert report.FailedSOPSequence[0].FailureReason == 0x0112


def test_an_instance_of_another_class_than_asked_is_not_committed(tmp_path: Path) -> None:
    source = chest()
    with receiving(gateway(tmp_path, receive=RECEIVE)) as (receiver, store):
        assert push(receiver, source) == [0]
        asked = question(source.SOPInstanceUID, "1.2.3")
        asked.ReferencedSOPSequence[0].ReferencedSOPClassUID = SecondaryCaptureImageStorage
        _, (kind, report) = ask(receiver, asked)
        assert (kind, uids(report, "ReferencedSOPSequence")) == (2, [])
        assert [(item.ReferencedSOPClassUID, item.FailureReason) for item in report.FailedSOPSequence] == [
            (SecondaryCaptureImageStorage, 0x0119),
            (DigitalXRayImageStorageForPresentation, 0x0112),
        ]
        with store.read() as session:
            assert session.scalars(select(Image.committed_at)).one() is None, "retention may erase it"
        asked = question(source.SOPInstanceUID, source.SOPInstanceUID)
        asked.ReferencedSOPSequence[0].ReferencedSOPClassUID = SecondaryCaptureImageStorage
        _, (kind, report) = ask(receiver, asked)
        assert [item.ReferencedSOPClassUID for item in report.ReferencedSOPSequence] == [source.SOPClassUID]
        assert [item.FailureReason for item in report.FailedSOPSequence] == [0x0119]


@pytest.mark.parametrize(("kind", "status"), [(2, NO_SUCH_ACTION), (1, INVALID_ARGUMENT)])
def test_what_is_no_question_is_refused(tmp_path: Path, kind: int, status: int) -> None:
    nothing = Dataset()
    nothing.TransactionUID = generate_uid()
    with receiving(gateway(tmp_path, receive=RECEIVE)) as (receiver, _):
        assert ask(receiver, nothing, kind)[0] == status


def test_by_default_nothing_is_committed(tmp_path: Path) -> None:
    with receiving(gateway(tmp_path)) as (receiver, _):
        application = AE(ae_title=CALLER)
        application.add_requested_context(COMMITMENT)
        association = application.associate("127.0.0.1", receiver.port, ae_title="PNEUMOSCOPE")
        assert not association.is_established
        assert [context.abstract_syntax for context in association.rejected_contexts] == [COMMITMENT]


@contextmanager
def modality(port: int = 0, refused: str | None = None) -> Iterator[tuple[int, list[tuple[int, Dataset]]]]:
    """A sender that takes reports over associations that it did not ask for, but that of one transaction."""
    reports: list[tuple[int, Dataset]] = []

    def on_report(event: Any) -> tuple[int, None]:
        if event.event_information.TransactionUID == refused:
            return 0x0110, None
        reports.append((event.event_type, event.event_information))
        return 0, None

    application = AE(ae_title=CALLER)
    application.add_supported_context(COMMITMENT, scu_role=False, scp_role=True)
    server = application.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report)]
    )
    try:
        yield server.socket.getsockname()[1], reports
    finally:
        server.shutdown()


def ask_and_go(receiver: Receiver, asked: Dataset) -> int:
    """Ask, and release before the report can come."""
    application = AE(ae_title=CALLER)
    application.add_requested_context(COMMITMENT)
    association = application.associate("127.0.0.1", receiver.port, ae_title="PNEUMOSCOPE")
    status, _ = association.send_n_action(asked, 1, COMMITMENT, INSTANCE)
    association.abort()
    return int(status.Status)


def due(store: Store, settings: Receive) -> str:
    """Try the queued reports at once; returns the state of the only report."""
    with store.write() as session:
        session.execute(update(Report).values(not_before=now()))
    commitment.step(store, settings, random.Random(0))
    with store.read() as session:
        return session.scalars(select(Report.state)).one()


def test_who_does_not_wait_is_told_over_another_association(tmp_path: Path) -> None:
    source, (port,) = chest(), free_ports(1)
    peer = {"aet": CALLER, "host": "127.0.0.1", "port": port}
    config = gateway(tmp_path, receive={**RECEIVE, "seconds": 5.0, "commitment_peer": (peer,)})
    with receiving(config) as (receiver, store):
        assert push(receiver, source) == [0]
        asked = question(source.SOPInstanceUID, "1.2.3")
        assert ask_and_go(receiver, asked) == 0
        until(lambda: states(store) == [WAITING])
        assert due(store, config.receive) == WAITING, "the sender does not listen yet"
        with modality(port) as (_, reports):
            assert due(store, config.receive) == SENT
            assert due(store, config.receive) == SENT
        ((kind, report),) = reports
        assert (kind, report.TransactionUID) == (2, asked.TransactionUID)
        assert uids(report, "ReferencedSOPSequence") == [source.SOPInstanceUID]
        assert uids(report, "FailedSOPSequence") == ["1.2.3"]


def queue_three(store: Store) -> list[str]:
    """Queue three reports to one peer; returns their transactions."""
    transactions = [str(generate_uid()) for _ in range(3)]
    with store.write() as session:
        for uid in transactions:
            report = Dataset()
            report.TransactionUID = uid
            values = {"state": WAITING, "attempts": 0, "created_at": now(), "not_before": now()}
            session.add(Report(peer=CALLER, content=report.to_json_dict(), **values))
    return transactions


def test_a_report_that_is_refused_holds_up_no_other(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    peer = {"aet": CALLER, "host": "127.0.0.1", "port": port}
    config = gateway(tmp_path, receive={**RECEIVE, "commitment_peer": (peer,)})
    store = open_store(config.database, migrate=True)
    first, *others = queue_three(store)
    with modality(port, refused=first) as (_, reports):
        commitment.step(store, config.receive, random.Random(0))
    assert [report.TransactionUID for _, report in reports] == others
    assert states(store) == [WAITING, SENT, SENT]
    store.close()


def test_of_a_peer_that_is_down_one_report_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    peer = {"aet": CALLER, "host": "127.0.0.1", "port": port}
    config = gateway(tmp_path, receive={**RECEIVE, "commitment_peer": (peer,)})
    store, asked = open_store(config.database, migrate=True), []
    queue_three(store)

    def counted(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        return associate(*arguments, **options)

    monkeypatch.setattr(commitment, "associate", counted)
    commitment.step(store, config.receive, random.Random(0))
    assert (len(asked), states(store)) == (1, [WAITING] * 3)
    store.close()


def test_who_waits_is_told_once(tmp_path: Path) -> None:
    source = chest()
    with modality() as (port, reports):
        peer = {"aet": CALLER, "host": "127.0.0.1", "port": port}
        config = gateway(tmp_path, receive={**RECEIVE, "commitment_peer": (peer,)})
        with receiving(config) as (receiver, store):
            assert push(receiver, source) == [0]
            status, (kind, _) = ask(receiver, question(source.SOPInstanceUID))
            assert (status, kind) == (0, 1)
            until(lambda: states(store) == [SENT])
            assert due(store, config.receive) == SENT
        assert reports == []


def states(store: Store) -> list[str]:
    with store.read() as session:
        return list(session.scalars(select(Report.state).order_by(Report.id)))
