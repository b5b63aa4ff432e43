"""What was not analysed stands in the journal: with its reason, without a score, once, and erased on request."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.pacs.gateway import CALLER
from sqlalchemy import select
from tests.support.crashing import Here
from tests.support.gateway import chest, gateway, push, receiving

from pneumoscope.journal.entry import DECLINED, QUARANTINED
from pneumoscope.journal.journal import Journal
from pneumoscope.serving.analysis.worker import Worker
from pneumoscope.serving.keeping import unanalysed
from pneumoscope.serving.keeping.erasure import erase_patient
from pneumoscope.serving.store import jobs
from pneumoscope.serving.store.database import Store
from pneumoscope.serving.store.tables import Job


class Unusable(Here):
    """A child that finds every image damaged, and quotes a name out of it."""

    def ask(self, question: object, seconds: float) -> object:
        from pneumoscope.errors import ImageError

        raise ImageError("holds broken pixels: Doe^Jane", path=Path("a.dcm"), remedy="send it again")


def worker(config: object, store: Store) -> Worker:
    made = Worker(config, store, "worker-1")  # type: ignore[arg-type]
    made.child = Unusable()  # type: ignore[assignment]
    return made


def test_a_declined_and_a_quarantined_image_are_journaled_once(tmp_path: Path, database: dict[str, str]) -> None:
    config = gateway(tmp_path, store=database, shadow=True)
    with receiving(config) as (receiver, store):
        lateral = chest(ViewPosition="LL", PatientID="4711", PatientAge="097Y")
        assert push(receiver, lateral, chest(PatientID="4712", StudyInstanceUID="1.2.3")) == [0, 0]
        at_work = worker(config, store)
        assert at_work.step()
        for _ in range(2):
            at_work.journal_unanalysed()
        declined, quarantined = sorted(Journal(config.journal_file).entries(), key=lambda entry: entry.state)
        assert (declined.state, quarantined.state) == (DECLINED, QUARANTINED)
        assert (declined.quality["refused_by"], quarantined.quality["refused_by"]) == ("view", "unusable")
        assert "LL" in (declined.reason or "")
        assert quarantined.reason == "not analysed, because the image cannot be used"
        for entry in (declined, quarantined):
            assert (entry.probability, entry.logit, entry.label, entry.embedding, entry.threshold) == (None,) * 5
            assert entry.feed == f"dicom:{CALLER}"
            assert None not in (entry.patient, entry.study, entry.received_at, entry.acquired_on)
        assert declined.covariates["view"] == "LL"
        assert declined.covariates["age_years"] == 90
        with store.read() as session:
            assert list(session.scalars(select(Job.journaled))) == [True, True]
        content = b"".join(file.read_bytes() for file in config.folder.glob("journal.sqlite*"))
        for secret in (b"Doe", b"4711", b"4712", lateral.StudyInstanceUID.encode()):
            assert secret not in content
        counts = erase_patient(config, store, "4711")
        assert (counts.images, counts.predictions) == (1, 1)
        assert [entry.state for entry in Journal(config.journal_file).entries()] == [QUARANTINED]
        at_work.journal_unanalysed()
        assert len(list(Journal(config.journal_file).entries())) == 1, "what was erased does not come back"


def test_killed_between_journal_and_tables_it_is_written_once(tmp_path: Path, database: dict[str, str]) -> None:
    class Dead(BaseException):
        pass

    def die(stage: str) -> None:
        raise Dead

    config = gateway(tmp_path, store=database)
    with receiving(config) as (receiver, store):
        assert push(receiver, chest(ViewPosition="LL")) == [0]
        made = worker(config, store)
        with pytest.raises(Dead):
            unanalysed.write(config, store, made.journal, made.pseudonyms, die)
        assert unanalysed.write(config, store, made.journal, made.pseudonyms) == 1
        assert unanalysed.write(config, store, made.journal, made.pseudonyms) == 0
        assert len(list(made.journal.entries())) == 1


def test_an_image_tried_again_meanwhile_is_looked_at_again(tmp_path: Path, database: dict[str, str]) -> None:
    config = gateway(tmp_path, store=database)
    with receiving(config) as (receiver, store):
        assert push(receiver, chest()) == [0]
        made = worker(config, store)
        assert made.step()
        with store.read() as session:
            job_id = session.scalar(select(Job.id))
        assert job_id is not None

        def again(stage: str) -> None:
            assert jobs.try_again(store, job_id)

        unanalysed.write(config, store, made.journal, made.pseudonyms, again)
        with store.read() as session:
            assert session.scalar(select(Job.journaled)) is False


def test_a_journal_that_is_away_does_not_stop_the_worker(tmp_path: Path) -> None:
    config = gateway(tmp_path)
    with receiving(config) as (receiver, store):
        assert push(receiver, chest(ViewPosition="LL")) == [0]
        made = worker(config, store)
        file = config.journal_file
        for left in file.parent.glob(f"{file.name}*"):
            left.unlink()
        file.mkdir()
        made.journal_unanalysed()
        file.rmdir()
        made.journal = Journal(file)
        made.journal_unanalysed()
        assert [entry.state for entry in Journal(file).entries()] == [DECLINED]
