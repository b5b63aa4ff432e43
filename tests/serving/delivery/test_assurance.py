"""A destination is asked to commit what it got: a real PACS, and one that answers as configured."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_role
from scripts.pacs.orthanc import start_orthanc
from sqlalchemy import select, update
from tests.support.delivery import queued
from tests.support.gateway import CALLER, chest, gateway, push, receiving, sink
from tests.support.waiting import until

from pneumoscope.serving.delivery import assurance, send
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store import outbox
from pneumoscope.serving.store.database import Store, now
from pneumoscope.serving.store.tables import COMMITTED, DEAD, SENT, WAITING, Delivery
from pneumoscope.serving.wire.association import COMMITMENT, INSTANCE, NOT_AUTHORIZED, associate

RECEIVE = {"port": 0, "callers": (CALLER,), "free_mb": 0, "seconds": 20.0}


def states(store: Store) -> list[str]:
    with store.read() as session:
        return list(session.scalars(select(Delivery.state).order_by(Delivery.id)))


def deliver_and_ask(config: Gateway, store: Store) -> int:
    with store.write() as session:
        session.execute(update(Delivery).values(not_before=now()))
    while send.step(store, config.destination[0], random.Random(0)):
        pass
    return assurance.ask(store, config.destination[0])


@contextmanager
def archive(missing: int = 0, status: int = 0) -> Iterator[tuple[int, list[Any]]]:
    """Stores, and reports over the association of the question; of the first objects, that it has them not."""
    questions: list[Any] = []
    application = AE(ae_title="SINK")
    for context in AllStoragePresentationContexts:
        application.add_supported_context(str(context.abstract_syntax))
    application.add_supported_context(COMMITMENT)

    def on_question(event: Any) -> tuple[int, None]:
        question = event.action_information
        questions.append(question)
        if status == 0:
            content, items = Dataset(), list(question.ReferencedSOPSequence)
            content.TransactionUID = question.TransactionUID
            content.ReferencedSOPSequence, content.FailedSOPSequence = items[missing:], deepcopy(items[:missing])
            for item in content.FailedSOPSequence:
                item.FailureReason = 0x0112
            # From another thread: it follows the answer.
            arguments = (content, 2 if missing else 1, COMMITMENT, INSTANCE)
            threading.Thread(target=event.assoc.send_n_event_report, args=arguments).start()
        return status, None

    server = application.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[
            (evt.EVT_C_STORE, lambda event: 0),
            (evt.EVT_N_ACTION, on_question),
        ],
    )
    try:
        yield server.socket.getsockname()[1], questions
    finally:
        server.shutdown()


def test_a_real_pacs_commits_what_it_got(pacs_tools: None, tmp_path: Path) -> None:
    to = {"kind": "dicom", "host": "127.0.0.1", "port": 1, "aet": "TESTPACS", "commit": True}
    with queued(tmp_path / "g", ("sr", "sc"), **to) as (at_first, store, _):
        listening = at_first.model_copy(update={"receive": gateway(tmp_path, receive=RECEIVE).receive})
        with receiving(listening) as (receiver, _):
            modalities = {"gateway": {"AET": "PNEUMOSCOPE", "Host": "127.0.0.1", "Port": receiver.port}}
            with start_orthanc(tmp_path, DicomModalities=modalities) as pacs:
                destination = at_first.destination[0].model_copy(update={"port": pacs.port})
                config = listening.model_copy(update={"destination": (destination,)})
                assert deliver_and_ask(config, store) == 2
                until(lambda: states(store) == [COMMITTED] * 2)
                assert assurance.ask(store, destination) == 0
                # A lost object is reported, and sent again.
                for name in httpx.get(f"{pacs.url}/instances").json():
                    httpx.delete(f"{pacs.url}/instances/{name}").raise_for_status()
                with store.write() as session:
                    session.execute(update(Delivery).values(state=SENT, not_before=now()))
                assert assurance.ask(store, destination) == 2
                until(lambda: states(store) == [WAITING] * 2)
                assert deliver_and_ask(config, store) == 2
                until(lambda: states(store) == [COMMITTED] * 2)


def test_what_it_has_not_got_is_sent_again(tmp_path: Path) -> None:
    with archive(missing=1) as (port, questions):
        to = {"kind": "dicom", "host": "127.0.0.1", "port": port, "aet": "SINK", "commit": True}
        with queued(tmp_path, ("sr", "sc"), **to) as (config, store, built):
            assert deliver_and_ask(config, store) == 2
            until(lambda: states(store) == [WAITING, COMMITTED])
            (question,) = questions
            assert [item.ReferencedSOPInstanceUID for item in question.ReferencedSOPSequence] == [b.uid for b in built]
            with store.read() as session:
                assert "not committed: reason 0x0112" in list(session.scalars(select(Delivery.reason)))


def test_attempts_while_it_was_down_do_not_count_as_refusals(tmp_path: Path) -> None:
    to = {"kind": "dicom", "host": "127.0.0.1", "port": 1, "aet": "SINK", "commit": True}
    with archive(missing=1) as (port, questions), queued(tmp_path, ("sr",), **to) as (config, store, _):
        with store.write() as session:
            session.execute(update(Delivery).values(attempts=20))  # two hours of no association
        here = config.model_copy(update={"destination": (config.destination[0].model_copy(update={"port": port}),)})
        for refused in range(1, assurance._TIMES + 1):
            assert deliver_and_ask(here, store) == 1
            until(lambda: states(store) != [SENT])
            assert states(store) == [WAITING if refused < assurance._TIMES else DEAD], f"refused {refused} times"
        with store.read() as session:
            row = session.scalars(select(Delivery)).one()
            assert outbox.replay(store, row.id), "a person may send it again"
        assert deliver_and_ask(here, store) == 1
        until(lambda: states(store) == [WAITING])
        assert len(questions) == assurance._TIMES + 1


@pytest.mark.parametrize("offers", [True, False])
def test_who_does_not_commit_is_asked_later_and_nothing_is_lost(tmp_path: Path, offers: bool) -> None:
    with archive(status=0x0110) as (refusing, _), sink() as plain:
        port = refusing if offers else plain.port
        to = {"kind": "dicom", "host": "127.0.0.1", "port": port, "aet": "SINK", "commit": True}
        with queued(tmp_path, ("sr",), **to) as (config, store, _):
            assert deliver_and_ask(config, store) == 1
            assert states(store) == [SENT]
            assert assurance.ask(store, config.destination[0]) == 0, "not at once again"


def test_a_report_about_nothing_changes_nothing_and_who_may_report_may_not_send(tmp_path: Path) -> None:
    to = {"name": "peer", "kind": "dicom", "host": "127.0.0.1", "port": 1, "aet": "ARCHIVE", "commit": True}
    config = gateway(tmp_path, receive=RECEIVE, destination=(to,))
    with receiving(config) as (receiver, _):
        assert push(receiver, chest(), caller="ARCHIVE") == [NOT_AUTHORIZED]
        assert push(receiver, chest(), caller="STRANGER") == [None]
        assert push(receiver, chest()) == [0]
        content = Dataset()
        content.TransactionUID = generate_uid()
        here = config.destination[0].model_copy(
            update={"port": receiver.port, "aet": "PNEUMOSCOPE", "calling": "ARCHIVE"}
        )
        assert report(here, content) == 0
        del content.TransactionUID
        content.RetrieveAETitle = "ARCHIVE"
        assert report(here, content) == 0x0115


def report(to: Any, content: Dataset) -> int:
    association = associate(
        to, [(COMMITMENT, ["1.2.840.10008.1.2"])], 20.0, roles=[build_role(COMMITMENT, scp_role=True)]
    )
    status, _ = association.send_n_event_report(content, 1, COMMITMENT, INSTANCE)
    association.release()
    return int(status.Status)


def test_commitment_is_of_dicom(tmp_path: Path) -> None:
    to = {"name": "peer", "kind": "stow", "url": "http://x", "commit": True}
    with pytest.raises(ValueError, match="commit is for dicom"):
        gateway(tmp_path, destination=(to,))
