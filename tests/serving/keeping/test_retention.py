"""What is erased and when, what never is, and that who dies in between is finished by the next."""

from __future__ import annotations

import csv
import errno
import io
import json
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from structlog.testing import capture_logs
from tests.support.entries import entry
from tests.support.gateway import CALLER, chest
from tests.support.web import WebApp, answer, bring, events, opened
from typer.testing import CliRunner

from pneumoscope.cli.root import app as cli
from pneumoscope.errors import DataError, StorageError
from pneumoscope.journal.entry import Label
from pneumoscope.journal.journal import Journal, archives
from pneumoscope.journal.pseudonyms import Pseudonyms, default_key
from pneumoscope.serving.intake.receipt import DUPLICATE, STORED, open_intake
from pneumoscope.serving.keeping.erasure import erase_patient
from pneumoscope.serving.keeping.retention import run, sweep
from pneumoscope.serving.people import trail
from pneumoscope.serving.settings import process_names
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store import jobs
from pneumoscope.serving.store.database import now
from pneumoscope.serving.store.tables import (
    DEAD,
    QUARANTINED,
    RUNNING,
    SENT,
    WAITING,
    Delivery,
    Event,
    Feedback,
    Image,
    Object,
    Result,
    SignIn,
)
from pneumoscope.serving.store.tables import Job as JobRow

ALL = {"images": 30, "results": 30, "jobs": 60}
LONG_AGO = now() - timedelta(days=45)
AGES_AGO = now() - timedelta(days=90)


class Dead(BaseException):
    """The power failed."""


def old(web: WebApp, at: datetime = LONG_AGO, state: str = SENT, **changes: Any) -> int:
    """An image answered so long ago, its one object in a state; returns its row."""
    image_id = bring(web, chest(**changes))
    result_id = answer(web, image_id, created_at=at)
    with web.store.write() as session:
        built = Object(result_id=result_id, kind="sr", uid=f"1.2.{image_id}", suffix=".dcm", data=b"bytes")
        session.add(built)
        session.flush()
        sent = {"destination": "pacs", "state": state, "attempts": 1, "created_at": at, "not_before": at}
        session.add(Delivery(object_id=built.id, **sent))
        session.execute(update(JobRow).where(JobRow.image_id == image_id).values(ended_at=at))
    return image_id


def image(web: WebApp, image_id: int) -> Image:
    with web.store.read() as session:
        row = session.get_one(Image, image_id)
        session.expunge(row)
        return row


def kept(web: WebApp, image_id: int) -> tuple[bool, bool, bool, bool]:
    """Whether file, bytes of results, heat map and job are there."""
    row = image(web, image_id)
    with web.store.read() as session:
        job = session.scalar(select(JobRow).where(JobRow.image_id == image_id))
        result = None if job is None else job.result
        data = result is not None and any(item.data for item in result.objects)
        file = row.file is not None and (web.config.images / row.file).is_file()
        return file, data, result is not None and result.map_png is not None, job is not None


@pytest.fixture
def web(tmp_path: Path, with_users: Path) -> Any:
    with opened(tmp_path, with_users, retention=ALL) as running:
        yield running


def test_without_the_section_nothing_is_erased(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users) as web:
        image_id = old(web, AGES_AGO)
        assert sweep(web.config, web.store) == {}
        assert kept(web, image_id) == (True, True, True, True)
        assert "retain" not in process_names.names(web.config)
        assert events(web, trail.ERASED) == []


def test_what_is_due_is_erased_and_told(web: WebApp) -> None:
    young, middle, eldest = old(web, now()), old(web), old(web, AGES_AGO)
    assert sweep(web.config, web.store) == {"jobs": 1, "commitment reports": 0, "images": 1, "results": 1}
    assert kept(web, young) == (True, True, True, True)
    assert kept(web, middle) == (False, False, False, True)
    assert kept(web, eldest) == (False, False, False, False)
    row = image(web, eldest)
    assert (row.patient_id, row.patient_name, row.study_uid, row.header) == (None, None, "", {})
    details = [event.detail for event in events(web, trail.ERASED)]
    assert details == ["1 jobs, after 60 days", "1 images, after 30 days", "1 results, after 30 days"]
    assert sweep(web.config, web.store) == {"jobs": 0, "commitment reports": 0, "images": 0, "results": 0}
    assert len(list(web.config.images.rglob("*.dcm"))) == 1


def test_nothing_of_a_patient_is_left_in_the_database(web: WebApp) -> None:
    old(web, AGES_AGO, PatientName="Xyzzy^Plugh")
    sweep(web.config, web.store)
    web.store.forget()
    assert b"Xyzzy" not in b"".join(file.read_bytes() for file in web.config.folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("state", [WAITING, DEAD])
def test_what_is_not_delivered_stays(web: WebApp, state: str) -> None:
    image_id = old(web, AGES_AGO, state)
    assert sweep(web.config, web.store) == {"jobs": 0, "commitment reports": 0, "images": 0, "results": 0}
    assert kept(web, image_id) == (True, True, True, True)


@pytest.mark.parametrize("state", [WAITING, RUNNING])
def test_what_is_analysed_stays(web: WebApp, state: str) -> None:
    image_id = old(web, AGES_AGO)
    with web.store.write() as session:
        session.execute(update(JobRow).where(JobRow.image_id == image_id).values(state=state))
    assert sweep(web.config, web.store) == {"jobs": 0, "commitment reports": 0, "images": 0, "results": 0}


def test_quarantine_ends(web: WebApp) -> None:
    image_id = old(web)
    with web.store.write() as session:
        session.execute(update(JobRow).where(JobRow.image_id == image_id).values(state=QUARANTINED))
    assert sweep(web.config, web.store)["images"] == 1


def test_a_committed_image_stays_and_its_results_go(web: WebApp) -> None:
    image_id = old(web, AGES_AGO)
    uid = image(web, image_id).sop_uid
    with web.store.write() as session:
        assert jobs.commit(session, web.config.images, [uid, "1.2.3"]) == {uid}
    assert sweep(web.config, web.store) == {"jobs": 0, "commitment reports": 0, "images": 0, "results": 1}
    assert kept(web, image_id) == (True, False, False, True)


def test_an_erased_image_is_not_committed(web: WebApp) -> None:
    image_id = old(web)
    row = image(web, image_id)
    (web.config.images / str(row.file)).unlink()  # as after a crash between file and row
    with web.store.write() as session:
        assert jobs.commit(session, web.config.images, [row.sop_uid]) == set()


def test_what_a_reader_said_keeps_the_job(web: WebApp) -> None:
    image_id = old(web, AGES_AGO)
    with web.store.write() as session:
        result = session.scalars(select(Result.id)).one()
        values = {"verdict": "agree", "label": None, "comment": None, "created_at": AGES_AGO}
        session.add(Feedback(key="f", result_id=result, user_id=1, **values))
    assert sweep(web.config, web.store) == {"jobs": 0, "commitment reports": 0, "images": 1, "results": 1}
    assert kept(web, image_id) == (False, False, False, True)


@pytest.mark.parametrize("ago", [LONG_AGO, AGES_AGO])
def test_who_dies_after_the_file_is_finished_by_the_next(
    web: WebApp, monkeypatch: pytest.MonkeyPatch, ago: datetime
) -> None:
    image_id = old(web, ago)
    file = web.config.images / str(image(web, image_id).file)
    with monkeypatch.context() as patch:
        patch.setattr("pneumoscope.serving.keeping.erasure.sync_folder", lambda folder: (_ for _ in ()).throw(Dead))
        with pytest.raises(Dead):
            sweep(web.config, web.store)
    assert not file.exists()
    assert image(web, image_id).file is not None  # the row still says what is to be finished
    assert events(web, trail.ERASED) == []
    assert sum(sweep(web.config, web.store).values()) > 0
    assert image(web, image_id).file is None
    assert len(events(web, trail.ERASED)) > 0


def test_many_go_in_small_transactions_until_told_to_stop(web: WebApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.serving.keeping.retention._BATCH", 2)
    for number in range(5):
        old(web, StudyInstanceUID=f"1.2.{number}")
    asked = iter([True, True, True, False])  # jobs, reports, then images once
    assert sweep(web.config, web.store, lambda: next(asked, False)) == {
        "jobs": 0,
        "commitment reports": 0,
        "images": 2,
        "results": 0,
    }
    assert sweep(web.config, web.store) == {"jobs": 0, "commitment reports": 0, "images": 3, "results": 5}
    details = [event.detail for event in events(web, trail.ERASED) if "images" in str(event.detail)]
    assert details == ["2 images, after 30 days", "2 images, after 30 days", "1 images, after 30 days"]


@pytest.mark.parametrize(
    "fault",
    [PermissionError(errno.EACCES, "x"), OSError(errno.EBUSY, "x"), OSError(errno.ESTALE, "x")],
    ids=["denied", "busy", "stale"],
)
@pytest.mark.parametrize("batch", [1, 50])
@pytest.mark.parametrize(("ago", "kind"), [(LONG_AGO, "images"), (AGES_AGO, "jobs")])
def test_a_file_that_cannot_be_erased_keeps_its_row_and_holds_up_no_other(
    web: WebApp, monkeypatch: pytest.MonkeyPatch, fault: OSError, batch: int, ago: datetime, kind: str
) -> None:
    monkeypatch.setattr("pneumoscope.serving.keeping.retention._BATCH", batch)
    stuck, other = old(web, ago, StudyInstanceUID="1.2.1"), old(web, ago, StudyInstanceUID="1.2.2")
    file, unlink = web.config.images / str(image(web, stuck).file), Path.unlink

    def refusing(self: Path, missing_ok: bool = False) -> None:
        if self == file:
            raise fault
        unlink(self, missing_ok)

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(Path, "unlink", refusing)
        counts = sweep(web.config, web.store)
    assert (counts[kind], counts["images"] + counts["jobs"]) == (1, 1)
    assert counts["results"] == (2 if kind == "images" else 1), "what comes after is erased"
    assert kept(web, stuck) == (True, False, False, True)
    assert image(web, stuck).sop_uid != f"erased:{stuck}"
    assert kept(web, other) == (False, False, False, kind == "images")
    lines = [line for line in logs if line["event"] == "not erased"]
    assert {line["image"] for line in lines} == {stuck}
    assert file.name not in str(lines)
    assert sweep(web.config, web.store)[kind] == 1
    assert not file.exists()


def test_a_sweep_that_the_system_stops_is_told_and_tried_again(web: WebApp, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()

    def fail(*arguments: Any) -> None:
        stop.set()
        raise OSError(errno.ESTALE, "x")

    monkeypatch.setattr("pneumoscope.serving.keeping.retention.sweep", fail)
    with capture_logs() as logs:
        run(web.config, web.store, stop, lambda: None)
    assert [line["event"] for line in logs] == ["not swept"]


def test_an_image_that_comes_again_is_kept_and_never_acknowledged_without_its_file(
    web: WebApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = chest()
    image_id = bring(web, source)
    old_id = image(web, image_id).id
    with web.store.write() as session:
        session.execute(update(JobRow).values(state="declined", ended_at=LONG_AGO))
    assert sweep(web.config, web.store)["images"] == 1
    intake, arrival = open_intake(web.config, web.store), web.config.incoming / "a.dcm"
    settle = type(intake)._settle

    def erased_meanwhile(self: Any, one: Path, where: Path) -> None:
        settle(self, one, where)
        where.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(type(intake), "_settle", erased_meanwhile)
        source.save_as(arrival, enforce_file_format=True)
        with pytest.raises(StorageError, match="erased while it was received"):
            intake.take(arrival, "test")
    assert image(web, old_id).file is None
    source.save_as(arrival, enforce_file_format=True)
    assert (receipt := intake.take(arrival, "test")).image_id == old_id
    assert receipt.outcome == DUPLICATE
    assert kept(web, old_id)[0]


def test_the_number_of_an_erased_image_shows_nobody(web: WebApp) -> None:
    image_id = old(web, AGES_AGO)
    source_uid = image(web, image_id).sop_uid
    sweep(web.config, web.store)
    browser = web.as_("admin")
    for path in (f"/study/{image_id}", f"/study/{image_id}/pixels", f"/api/studies/{image_id}"):
        assert browser.get(path).status_code == 404
    assert "Doe" not in browser.get("/worklist?hours=0").text
    arrival = web.config.incoming / "a.dcm"
    chest(SOPInstanceUID=source_uid).save_as(arrival, enforce_file_format=True)
    again = open_intake(web.config, web.store).take(arrival, "test")
    assert (again.outcome, again.image_id) == (STORED, image_id + 1)


def test_events_and_sign_ins(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users, retention={"events": 60}) as web:
        web.as_("reader").get("/worklist")
        with web.store.write() as session:
            session.execute(update(Event).values(at=AGES_AGO))
            session.execute(update(SignIn).values(expires_at=AGES_AGO))
        web.as_("viewer")
        assert sweep(web.config, web.store) == {"events": 1, "sign-ins": 1}
        with web.store.read() as session:
            assert session.scalar(select(func.count()).select_from(SignIn)) == 1
            assert [e.action for e in session.scalars(select(Event))] == [
                trail.SIGNED_IN, trail.ERASED, trail.ERASED,
            ]  # fmt: skip


class Stop(threading.Event):
    """Told to stop while it waits for the next sweep."""

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


def test_the_process_says_that_it_is_well_and_outlives_a_full_disk(
    web: WebApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id, beats = old(web), []

    def full(*_: object) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("pneumoscope.serving.keeping.retention.sweep", full)
        run(web.config, web.store, Stop(), lambda: beats.append(1))
    assert kept(web, image_id)[0]
    run(web.config, web.store, Stop(), lambda: beats.append(1))
    assert not kept(web, image_id)[0]
    assert len(beats) >= 2


# --- the journal ------------------------------------------------------------------------------------------


def month(number: int) -> datetime:
    return datetime(2026, number, 15, tzinfo=UTC)


def filled(path: Path) -> Journal:
    journal = Journal(path)
    for number in (1, 2, 3):
        line = entry(f"k{number}", study=f"s{number}", patient="p" if number < 3 else "q")
        journal.append(replace(line, at=month(number)))
    for number in (1, 3):
        journal.append_label(Label(f"l{number}", month(3), f"s{number}", "NORMAL", "page"))
    return journal


def keys(journal: Journal) -> tuple[list[str], list[str]]:
    return [item.key for item in journal.entries()], [item.key for item in journal.labels()]


def test_old_months_move_into_journals_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = filled(tmp_path / "journal.sqlite")
    with monkeypatch.context() as patch:
        patch.setattr("pneumoscope.journal.removal._unguarded", lambda *_: (_ for _ in ()).throw(Dead))
        with pytest.raises(Dead):  # copied, not yet erased
            journal.archive(month(3))
    assert keys(journal) == (["k1", "k2", "k3"], ["l1", "l3"])
    assert journal.archive(month(3)) == 3
    assert keys(journal) == (["k3"], ["l3"])
    january, february = archives(journal.path)
    assert (january.name, keys(Journal(january))) == ("journal-2026-01.sqlite", (["k1"], ["l1"]))
    assert keys(Journal(february)) == (["k2"], [])
    assert [item[1:] for item in journal.erasures()] == [
        ("archived in journal-2026-01.sqlite", 1, 1), ("archived in journal-2026-02.sqlite", 1, 0),
    ]  # fmt: skip
    assert journal.archive(month(3)) == 0


def test_after_an_erasure_the_journal_is_guarded_again(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal.sqlite")
    assert journal.erase(["p"]) == (2, 1)
    assert keys(journal) == (["k3"], ["l3"])
    assert [item[1:] for item in journal.erasures()] == [("on request", 2, 1)]
    assert journal.erase(["p"]) == (0, 0)
    with journal._open() as connection:
        for table in ("predictions", "labels", "erasures"):
            with pytest.raises(Exception, match="only appended"):
                connection.execute(f"DELETE FROM {table}")


def test_export(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal.sqlite").path
    call = CliRunner().invoke
    asked = ["journal", "export", str(journal), "--from", "2026-02-15", "--to", "2026-03-15"]
    assert call(cli, [*asked, "--out", str(tmp_path / "a.csv")]).exit_code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [(row["key"], json.loads(row["subtype"])) for row in rows] == [
        ("k2", {"viral": 0.25}),
        ("k3", {"viral": 0.25}),
    ]
    assert call(cli, [*asked, "--out", str(tmp_path / "a.jsonl")]).exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["key"], line["at"], line["probability"]) for line in lines] == [
        ("k2", "2026-02-15T00:00:00+00:00", 0.75), ("k3", "2026-03-15T00:00:00+00:00", 0.75),
    ]  # fmt: skip
    assert call(cli, [*asked, "--labels", "--out", str(tmp_path / "l.csv")]).exit_code == 0
    assert [row["study"] for row in csv.DictReader(io.StringIO((tmp_path / "l.csv").read_text()))] == ["s1", "s3"]
    assert "table ends in" in str(call(cli, [*asked, "--out", str(tmp_path / "a.xlsx")]).exception)
    missing = call(cli, ["journal", "export", str(tmp_path / "none"), "--out", str(tmp_path / "b.csv")]).exception
    assert isinstance(missing, DataError)
    assert not (tmp_path / "none").exists()


def test_a_text_that_a_spreadsheet_would_compute(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.append_label(Label("l", month(1), "s", "NORMAL", "page", "=1+1"))
    out = tmp_path / "l.csv"
    CliRunner().invoke(cli, ["journal", "export", str(journal.path), "--labels", "--out", str(out)])
    assert "'=1+1" in out.read_text()


# --- one patient ------------------------------------------------------------------------------------------


def journaled(web: WebApp, image_id: int, key: str) -> Journal:
    row = image(web, image_id)
    pseudonyms = Pseudonyms.load(default_key(web.config.journal_file))
    journal = Journal(web.config.journal_file)
    study = pseudonyms.of("study", row.study_uid)
    journal.append(entry(key, study=study, patient=pseudonyms.of("patient", row.issuer, row.patient_id)))
    journal.append_label(Label(key, month(3), str(study), "NORMAL", "page"))
    return journal


def test_one_patient_is_erased_everywhere(web: WebApp, monkeypatch: pytest.MonkeyPatch) -> None:
    one = old(web, now(), PatientID="1", StudyInstanceUID="1.2.1")
    elsewhere = old(web, now(), PatientID="1", StudyInstanceUID="1.2.2", IssuerOfPatientID="Elsewhere")
    other = old(web, now(), PatientID="2", StudyInstanceUID="1.2.3")
    for image_id, key in ((one, "k1"), (elsewhere, "k2")):
        journaled(web, image_id, key)
    journal = Journal(web.config.journal_file)
    assert journal.archive(now()) == 4
    journaled(web, other, "k3")
    with pytest.raises(Dead):
        erase_patient(web.config, web.store, "1", stages=lambda stage: (_ for _ in ()).throw(Dead))
    done = erase_patient(web.config, web.store, "1")
    assert str(done) == "2 images, 0 predictions, 0 labels; 0 images kept"  # the journal was erased by the first
    assert [kept(web, image_id) for image_id in (one, elsewhere)] == [(False,) * 4] * 2
    assert kept(web, other) == (True,) * 4
    assert keys(journal) == (["k3"], ["k3"])
    assert [keys(Journal(file)) for file in archives(journal.path)] == [([], [])]
    (event,) = events(web, trail.ERASED_ON_REQUEST)
    assert event.detail == str(done)


def test_on_request_an_issuer_is_told_apart(web: WebApp) -> None:
    one = old(web, now(), PatientID="1")
    journaled(web, one, "k1")
    assert erase_patient(web.config, web.store, "1", "Elsewhere").images == 0
    assert str(erase_patient(web.config, web.store, "1", "General Hospital")).startswith("1 images, 1 predictions")


def test_on_request_images_with_waiting_deliveries_or_committed_ones_stay(web: WebApp) -> None:
    ids = [old(web, now(), state, StudyInstanceUID=f"1.2.{n}") for n, state in enumerate((WAITING, DEAD, SENT))]
    with web.store.write() as session:
        jobs.commit(session, web.config.images, [image(web, ids[2]).sop_uid])
    done = erase_patient(web.config, web.store, "4711")
    assert (done.images, done.kept) == (1, 2)
    assert [kept(web, image_id)[3] for image_id in ids] == [True, False, True]
    done = erase_patient(web.config, web.store, "4711", committed=True)
    assert (done.images, done.kept) == (1, 1)


PACS = {"name": "pacs", "kind": "fhir", "url": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("changes", "kept_images"),
    [
        ({"destination": (PACS,)}, 1),
        ({"destination": ({**PACS, "enabled": False},)}, 0),
        ({"destination": ()}, 0),
        ({"destination": (PACS,), "shadow": True}, 0),
    ],
)
def test_on_request_a_destination_that_nothing_is_sent_to_holds_up_nothing(
    tmp_path: Path, with_users: Path, changes: dict[str, Any], kept_images: int
) -> None:
    with opened(tmp_path, with_users, **changes) as web:
        old(web, now(), WAITING)
        assert erase_patient(web.config, web.store, "4711").kept == kept_images


@pytest.mark.parametrize("state", [WAITING, DEAD])
def test_a_disabled_destination_keeps_its_waiting_deliveries_and_a_removed_one_does_not(
    tmp_path: Path, with_users: Path, state: str
) -> None:
    with opened(tmp_path, with_users, retention=ALL, destination=({**PACS, "enabled": False},)) as web:
        image_id = old(web, AGES_AGO, state)
        sweep(web.config, web.store)
        assert kept(web, image_id) == (True, True, True, True)
        sweep(web.config.model_copy(update={"destination": ()}), web.store)
        assert kept(web, image_id) == (False, False, False, False)


def test_erase_at_the_command_line(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path / "gateway", with_users) as web:
        old(web, now(), WAITING)
    config = tmp_path / "gateway.toml"
    pacs = '[[destination]]\nname = "pacs"\nkind = "fhir"\nurl = "http://127.0.0.1:1"\n'
    config.write_text(f'folder = "gateway"\n[receive]\ncallers = ["{CALLER}"]\n{pacs}')
    done = CliRunner().invoke(cli, ["journal", "erase", "--config", str(config)], input="4711\n")
    assert (done.exit_code, done.stdout) == (1, "0 images, 0 predictions, 0 labels; 1 images kept\n")
    done = CliRunner().invoke(cli, ["journal", "erase"], input="4711\n")
    assert "--config or --journal" in str(done.exception)
    journal = Journal(tmp_path / "j.sqlite")
    journal.append(entry("k", patient=Pseudonyms.load(default_key(journal.path)).of("patient", "H", "1")))
    for issuer, output in (("E", "0 predictions, 0 labels\n"), ("H", "1 predictions, 0 labels\n")):
        asked = ["journal", "erase", "--journal", str(journal.path), "--issuer", issuer]
        assert CliRunner().invoke(cli, asked, input="1\n").stdout == output


def test_the_process_is_started_where_something_is_to_be_erased() -> None:
    values = {"folder": "g", "receive": {"callers": [CALLER]}, "retention": {"events": 1}}
    assert "retain" in process_names.names(Gateway.model_validate(values, strict=False))
