"""From association to PACS with real peers: what comes in is analysed once and its results leave once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
from scripts.pacs.orthanc import free_ports
from scripts.postgres.server import Postgres
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from tests.support.crashing import quick_factory
from tests.support.databases import DATABASES, database_of
from tests.support.findings import SHA
from tests.support.gateway import CALLER, Sink, chest, gateway, only_job, push, receiving, sink

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.errors import BundleError, ConfigError, ImageUnavailableError, StorageError
from pneumoscope.journal.journal import Journal
from pneumoscope.serving.analysis.child import ChildLostError
from pneumoscope.serving.analysis.task import open_analysis
from pneumoscope.serving.analysis.worker import Worker
from pneumoscope.serving.delivery import send
from pneumoscope.serving.intake import receipt
from pneumoscope.serving.intake.listener import start_receiver
from pneumoscope.serving.intake.receipt import open_intake
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.settings.neighbours import Destination
from pneumoscope.serving.store import jobs, outbox
from pneumoscope.serving.store.database import Store, now, open_store
from pneumoscope.serving.store.outbox import Answer, Parcel
from pneumoscope.serving.store.tables import (
    DEAD,
    DECLINED,
    DONE,
    QUARANTINED,
    SENT,
    WAITING,
    Delivery,
    Image,
    Job,
    Object,
    Result,
)


@pytest.fixture(scope="module", params=DATABASES)
def worked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, Store, Sink, pydicom.Dataset]]:
    """One radiograph that went all the way: with the shipped bundle on SQLite, with a quick answer on PostgreSQL."""
    with sink() as pacs:
        config = gateway(tmp_path_factory.mktemp("gateway"), pacs.port, store=database_of(request))
        source = chest()
        with receiving(config) as (receiver, store):
            assert push(receiver, source) == [0x0000]
            worker = Worker(config, store, "worker-1", factory=open_analysis if store.sqlite else quick_factory)
            try:
                assert worker.step()
                assert not worker.step()
            finally:
                worker.child.close()
            assert send.step(store, config.destination[0], random.Random(0)) == 2
            assert send.step(store, config.destination[0], random.Random(0)) == 0
            yield config, store, pacs, source


def test_a_radiograph_becomes_one_report_and_one_picture(worked: Any) -> None:
    _, store, pacs, source = worked
    assert sorted(item.Modality for item in pacs.objects) == ["OT", "SR"]
    assert {item.StudyInstanceUID for item in pacs.objects} == {source.StudyInstanceUID}
    assert only_job(store).state == DONE
    with store.read() as session:
        assert set(session.scalars(select(Delivery.state))) == {SENT}


def test_what_is_sent_is_what_is_kept_byte_for_byte(worked: Any) -> None:
    _, store, pacs, _ = worked
    with store.read() as session:
        kept = list(session.scalars(select(Object.data).order_by(Object.id)))
    for data, sent in zip(kept, pacs.bytes_, strict=True):
        assert data.endswith(sent)
        assert pydicom.dcmread(BytesIO(data)).file_meta.TransferSyntaxUID


def test_the_journal_has_it_once_and_no_identity(worked: Any) -> None:
    config, store, _, source = worked
    (entry,) = Journal(config.journal_file).entries()
    assert entry.bundle_sha256 == (load_bundle().sha256 if store.sqlite else SHA)
    assert entry.covariates["age_years"] == 5.0
    assert bool(entry.embedding) == store.sqlite  # there the shipped bundle answers, which has a gate
    content = config.journal_file.read_bytes()
    for secret in (source.PatientName, source.PatientID, source.AccessionNumber, source.StudyInstanceUID):
        assert str(secret).encode() not in content or len(str(secret)) < 4


def test_the_gateways_own_results_are_dropped(worked: Any) -> None:
    config, store, _pacs, _ = worked
    intake = open_intake(config, store)
    with store.read() as session:
        data = session.scalars(select(Object.data)).first()
    arrival = config.incoming / "back.dcm"
    arrival.write_bytes(data)
    assert intake.take(arrival, "dicom:PACS").outcome == "own result"
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Image)) == 1


def test_the_same_again_is_the_same(tmp_path: Path, database: dict[str, str]) -> None:
    source = chest()
    with receiving(gateway(tmp_path, store=database)) as (receiver, store):
        assert push(receiver, source, source) == [0, 0]
        threads = [threading.Thread(target=push, args=(receiver, source)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert only_job(store).state == WAITING


def test_five_at_once(tmp_path: Path, database: dict[str, str]) -> None:
    source, answers = chest(), []
    with receiving(gateway(tmp_path, store=database)) as (receiver, store):
        threads = [threading.Thread(target=lambda: answers.extend(push(receiver, source))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [0] * 5
        assert only_job(store).state == WAITING


def test_other_pixels_under_one_uid_wait_for_a_person(tmp_path: Path, database: dict[str, str]) -> None:
    source = chest()
    other = chest(SOPInstanceUID=source.SOPInstanceUID, PixelData=bytes(len(source.PixelData)))
    third = chest(SOPInstanceUID=source.SOPInstanceUID, PatientID="4712")
    with receiving(gateway(tmp_path, store=database)) as (receiver, store):
        assert push(receiver, source, other, third) == [0, 0, 0]
        with store.read() as session:
            images = list(session.scalars(select(Image).order_by(Image.version)))
            assert [image.version for image in images] == [1, 2, 3]
            assert [image.job.state for image in images] == [WAITING, QUARANTINED, DECLINED]
            assert all((receiver.intake.folder / str(image.file)).is_file() for image in images)
            second = images[1].job.id
        assert not jobs.try_again(store, second)  # its results would lie beside the first one's pixels


def test_a_file_that_is_gone_is_healed_by_sending_it_again(tmp_path: Path) -> None:
    source = chest()
    other = chest(SOPInstanceUID=source.SOPInstanceUID, PixelData=bytes(len(source.PixelData)))
    with receiving(gateway(tmp_path)) as (receiver, store):
        assert push(receiver, source) == [0]
        with store.read() as session:
            file = receiver.intake.folder / str(session.scalars(select(Image.file)).one())
        file.unlink()
        assert push(receiver, other, source) == [0, 0]
        assert file.is_file()
        with store.read() as session:
            states = list(session.scalars(select(Job.state).order_by(Job.id)))
        assert states == [WAITING, QUARANTINED]


def test_versions_go_on_counting_where_the_first_was_erased(tmp_path: Path) -> None:
    source = chest()
    other = chest(SOPInstanceUID=source.SOPInstanceUID, PixelData=bytes(len(source.PixelData)))
    with receiving(gateway(tmp_path)) as (receiver, store):
        assert push(receiver, source, other) == [0, 0]
        with store.write() as session:
            first = session.scalars(select(Image).where(Image.version == 1)).one()
            session.delete(first.job)
            session.flush()
            session.delete(first)
        assert push(receiver, source) == [0]
        with store.read() as session:
            assert sorted(session.scalars(select(Image.version))) == [2, 3]


def test_a_destination_that_is_down_is_tried_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    stop, store = threading.Event(), open_store(f"sqlite:///{tmp_path / 'a.sqlite'}", migrate=True)
    config = gateway(tmp_path)

    def leaves(to: Destination, parcel: Parcel) -> Answer:
        tried.append(parcel.delivery_id)
        if len(tried) == 3:
            stop.set()
        raise RuntimeError("the peer left")  # one destination's fault ends no process

    pauses: list[float] = []
    monkeypatch.setattr(send, "_WAYS", {"dicom": leaves})
    monkeypatch.setattr(stop, "wait", lambda seconds: pauses.append(seconds) or stop.is_set())
    with store.write() as session:
        for number in range(5):
            row = result_of(session, number)
            outbox.enqueue(session, row, ["pacs"], now())
    send.run(store, config.destination[0], stop)
    store.close()
    assert len(set(tried)) == 3
    assert all(pause >= 1 for pause in pauses)


def result_of(session: Session, number: int) -> Object:
    """An object of an image's result."""
    moment = now()
    image = Image(
        sop_uid=f"1.2.{number}", version=1, digest="d" * 64, sop_class="1", study_uid="1", series_uid="1", file="f",
        size=1, source="test", received_at=moment, header={},
    )  # fmt: skip
    image.job = Job(state=DONE, priority=0, attempts=0, claims=0, created_at=moment, not_before=moment)
    image.job.result = Result(
        bundle="b", bundle_sha256="0" * 64, threshold=0.5, abstained=False, quality={}, milliseconds=1.0, urgent=False,
        shadow=False, created_at=moment,
    )  # fmt: skip
    made = Object(kind="sr", uid=f"2.{number}", suffix=".dcm", data=b"x" * 9)
    image.job.result.objects.append(made)
    session.add(image)
    session.flush()
    return made


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"StudyDescription": "Chest lateral"}, "no frontal view"),
        ({"PatientAge": "037Y"}, "for 1 to 5 years"),
        ({"PatientAge": None, "PatientBirthDate": "19800101"}, "for 1 to 5 years"),
        ({"PatientAge": "044Y"}, "44 years old"),
    ],
)
def test_what_is_not_analysed_says_why(
    tmp_path: Path, database: dict[str, str], changes: dict[str, Any], reason: str
) -> None:
    config = gateway(tmp_path, store=database, analyse={"age_years": (1.0, 5.0)})
    with receiving(config) as (receiver, store):
        assert push(receiver, chest(**changes)) == [0]
        job = only_job(store)
        assert job.state == DECLINED
        assert job.reason is not None
        assert job.reason.startswith("not analysed, because ")
        assert reason in job.reason


def test_strangers_and_wrong_names_get_no_association(tmp_path: Path) -> None:
    with receiving(gateway(tmp_path)) as (receiver, store):
        assert push(receiver, chest(), caller="STRANGER") == [None]
        with store.read() as session:
            assert session.scalar(select(func.count()).select_from(Image)) == 0


def test_a_full_disk_is_told_to_the_sender(tmp_path: Path) -> None:
    config = gateway(tmp_path, receive={"port": 0, "callers": (CALLER,), "free_mb": 1 << 40})
    with receiving(config) as (receiver, _):
        assert push(receiver, chest()) == [0xA700]
        assert not list(config.incoming.iterdir())


def test_a_database_that_is_away_is_told_as_passing(tmp_path: Path, postgres: Postgres, migrated: str) -> None:
    url = postgres.database(migrated)
    with receiving(gateway(tmp_path, store={"url": url})) as (receiver, store):
        assert push(receiver, chest()) == [0]
        store.close()
        (port,) = free_ports(1)
        store.engine = Store(f"postgresql+psycopg://gateway@127.0.0.1:{port}/gone").engine
        assert push(receiver, chest()) == [0xA700]


def test_a_file_that_is_not_there_is_not_the_images_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_RETRY", timedelta(0))
    config = gateway(tmp_path)
    with receiving(config) as (receiver, store):
        assert push(receiver, chest()) == [0]
        config.images.rename(tmp_path / "away")  # a share that was taken away
        worker = Worker(config, store, "worker-1")
        with monkeypatch.context() as patched:
            patched.setattr(worker.child, "warm_up", lambda: None)
            assert all(worker.step() for _ in range(2 * config.worker.attempts))
        job = only_job(store)
        assert (job.state, job.reason) == (WAITING, "not analysed, because its file is missing, or not readable")


def test_a_child_that_cannot_start_costs_no_image_an_attempt(tmp_path: Path) -> None:
    config = gateway(tmp_path, bundle={"path": tmp_path / "no bundle"})
    rules = gateway(tmp_path)
    with receiving(rules) as (receiver, store):
        assert push(receiver, chest()) == [0]
        with pytest.raises(BundleError):
            Worker(config, store, "worker-1").step()
        job = only_job(store)
        assert (job.state, job.attempts, job.claims) == (WAITING, 0, 0)


def test_a_journal_whose_disk_is_full_costs_no_image_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_RETRY", timedelta(0))
    config = gateway(tmp_path)
    with receiving(config) as (receiver, store):
        assert push(receiver, chest()) == [0]
        worker = Worker(config, store, "worker-1")
        try:
            with monkeypatch.context() as patched:
                patched.setattr(worker.journal, "append", raising(StorageError("no space left on the disk")))
                assert worker.step()
            job = only_job(store)
            assert (job.state, job.attempts) == (WAITING, 1)
            assert "not recorded" in str(job.reason)
            assert worker.step()
            assert only_job(store).state == DONE
        finally:
            worker.child.close()


def test_what_the_system_refuses_to_read_may_be_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(gateway(tmp_path)) as (receiver, _):
        for error in (ImageUnavailableError("too many open files"), OSError(24, "too many"), SQLAlchemyError("pool")):
            with monkeypatch.context() as patched:
                patched.setattr(receipt, "read", raising(error))
                assert push(receiver, chest()) == [0xA700]
        assert push(receiver, chest()) == [0]


def raising(error: Exception) -> Callable[..., None]:
    def fail(*given: Any) -> None:
        raise error

    return fail


def test_who_cannot_listen_sweeps_nobodys_transfers_away(tmp_path: Path) -> None:
    config = gateway(tmp_path)
    with receiving(config) as (receiver, store):
        transfer = config.incoming / "half.dcm"
        transfer.write_bytes(b"half")
        same = gateway(tmp_path, receive={"port": receiver.port, "callers": (CALLER,)})
        with pytest.raises(ConfigError, match="cannot be listened at"):
            start_receiver(same, open_intake(same, store))
        assert transfer.exists()
    with receiving(config):
        assert not transfer.exists()


def test_the_worker_judges_headers_by_the_rules_of_the_intake(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    bundle = {"path": make_bundle(tmp_path / "bundle"), "explain": "none"}
    config = gateway(tmp_path, bundle=bundle, analyse={"views": ("LL",)})
    with receiving(config) as (receiver, store):
        assert push(receiver, chest(ViewPosition="LL")) == [0]
        worker = Worker(config, store, "worker-1")
        try:
            assert worker.step()
        finally:
            worker.child.close()
        with store.read() as session:
            assert session.scalars(select(Result.abstained)).one() is False


def test_a_header_that_names_nothing_is_refused(tmp_path: Path) -> None:
    with receiving(gateway(tmp_path)) as (receiver, _):
        assert push(receiver, chest(StudyInstanceUID=None)) == [0xC000]


def test_damaged_pixels_are_quarantined(tmp_path: Path) -> None:
    config = gateway(tmp_path)
    with receiving(config) as (receiver, store):
        assert push(receiver, chest(PixelData=b"\0\0")) == [0]
        worker = Worker(config, store, "worker-1")
        try:
            assert worker.step()
        finally:
            worker.child.close()
        job = only_job(store)
        assert job.state == QUARANTINED
        assert "not analysed, because the image cannot be used" in str(job.reason)
        assert str(tmp_path) not in str(job.reason)


def test_the_log_names_the_kind_of_a_failure_and_not_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = gateway(tmp_path)
    with receiving(config) as (receiver, store):
        assert push(receiver, chest()) == [0]
        worker, lines = Worker(config, store, "worker-1"), []
        monkeypatch.setattr(worker.child, "warm_up", lambda: None)
        monkeypatch.setattr(worker.child, "ask", raising(ChildLostError("the analysis took longer than 60 s")))
        monkeypatch.setattr(worker, "log", SimpleNamespace(warning=lambda event, **facts: lines.append(facts)))
        assert worker.step()
    assert [line["kind"] for line in lines] == ["child lost"]


@pytest.mark.parametrize(
    ("status", "state"), [(0xA700, WAITING), (0xB007, SENT), (0xA900, DEAD), (0xC001, DEAD), (0x0122, DEAD)]
)
def test_what_the_pacs_answers_decides(tmp_path: Path, worked: Any, status: int, state: str) -> None:
    _, done, _, _ = worked
    with done.read() as session:
        data = session.scalars(select(Object.data)).first()
    assert data is not None
    with sink() as pacs:
        pacs.statuses.append(status)
        config = gateway(tmp_path, pacs.port)
        to = config.destination[0]
        dataset = pydicom.dcmread(BytesIO(data))
        parcel = outbox.Parcel(1, 0, now(), "sr", dataset.SOPInstanceUID, dataset.SOPClassUID, ".dcm", data)
        answer = send.c_store(to, parcel)
    expected = {WAITING: outbox.Outcome.RETRY, SENT: outbox.Outcome.DELIVERED, DEAD: outbox.Outcome.REFUSED}[state]
    assert answer.outcome is expected


def test_who_is_down_is_tried_again(worked: Any) -> None:
    config, store, _, _ = worked
    to = gateway(config.folder, 1).destination[0]
    with store.read() as session:
        data = session.scalars(select(Object.data)).first()
    parcel = outbox.Parcel(1, 0, now(), "sr", "1", None, ".dcm", data)
    assert send.c_store(to, parcel).outcome is outbox.Outcome.RETRY
    assert outbox.delay(1, random.Random(0)).total_seconds() >= 1
    assert outbox.delay(60, random.Random(0)).total_seconds() <= 600
