"""Answers about files in the journal: once by content, with DICOM facts, without identity."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts.pacs.radiographs import radiograph

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.errors import DataError
from pneumoscope.journal.journal import Journal
from pneumoscope.journal.pseudonyms import default_key
from pneumoscope.journal.recording import Recorder
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, Prediction


def answered(path: Path | str, **changes: object) -> Prediction:
    values = {"path": str(path), "probability": 0.25, "label": NORMAL, "threshold": 0.5, "bundle": "b@1"}
    return Prediction(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "j.sqlite"


def recorder(journal: Path, point: str = "balanced") -> Recorder:
    return Recorder(journal, load_bundle(), point)


def test_dicom_facts_without_identity(tmp_path: Path, journal: Path) -> None:
    source = radiograph(PatientAge="095Y", ViewPosition="PA", KVP="70", InstitutionName="St. Made-up")
    for name, changes in (("a", {}), ("b", {"StudyInstanceUID": "1.2.3.4.5.6"}), ("c", {"PatientID": "4712"})):
        for keyword, value in changes.items():
            setattr(source, keyword, value)
        source.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
        assert recorder(journal).record(answered(tmp_path / f"{name}.dcm"))
    one, two, three = Journal(journal).entries()
    assert (one.covariates["age_years"], one.covariates["view"], one.covariates["kvp"]) == (90.0, "PA", 70.0)
    assert (one.patient, one.site) == (two.patient, two.site)
    assert one.study != two.study
    assert two.patient != three.patient
    assert None not in (one.patient, one.study, one.site)
    told = b"".join(file.read_bytes() for file in journal.parent.iterdir())
    for secret in ("Doe", "4711", "St. Made-up", str(tmp_path), source.StudyInstanceUID):
        assert secret.encode() not in told


def test_the_same_content_is_the_same_answer_wherever_it_lies(tmp_path: Path, journal: Path) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    written = [recorder(journal).record(answered(tmp_path / name)) for name in ("a.png", "a.png", "b.png")]
    assert written == [True, False, False]
    assert recorder(journal, "triage").record(answered(tmp_path / "a.png"))
    assert [entry.covariates for entry in Journal(journal).entries()] == [{}, {}]


def test_predict_tells_the_journal_where_an_image_lies(trained: Path, tmp_path: Path, journal: Path) -> None:
    radiograph().save_as(tmp_path / "a.dcm", enforce_file_format=True)
    classifier = Classifier.load(trained / "bundle")
    assert classifier.gate is not None
    (told,) = classifier.predict([tmp_path / "a.dcm"])
    assert Recorder(journal, classifier.bundle, classifier.operating_point).record(told)
    (entry,) = Journal(journal).entries()
    assert entry.embedding == told.embedding
    assert len(entry.embedding or ()) == len(classifier.gate.densities["features"].axes)
    assert "embedding" not in told.as_json()


def test_what_could_not_be_read_is_told_once(tmp_path: Path, journal: Path) -> None:
    failed = {"probability": None, "label": None, "error": "/in/doe.dcm: no such file"}
    written = [recorder(journal).record(answered(tmp_path / "doe.dcm", **failed)) for _ in range(2)]
    assert written == [True, False]
    (entry,) = Journal(journal).entries()
    assert (entry.probability, entry.reason) == (None, "could not be read")
    assert b"doe" not in journal.read_bytes()


def test_a_header_without_uids_tells_nobody_apart(tmp_path: Path, journal: Path) -> None:
    source = radiograph(StudyInstanceUID=None)
    source.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert recorder(journal).record(answered(tmp_path / "a.dcm"))
    (entry,) = Journal(journal).entries()
    assert (entry.patient, entry.covariates) == (None, {})


def test_another_secret_gives_other_pseudonyms(tmp_path: Path, journal: Path) -> None:
    radiograph().save_as(tmp_path / "a.dcm", enforce_file_format=True)
    recorder(journal).record(answered(tmp_path / "a.dcm"))
    other = tmp_path / "other.sqlite"
    recorder(other).record(answered(tmp_path / "a.dcm"))
    (one,), (two,) = Journal(journal).entries(), Journal(other).entries()
    assert one.patient != two.patient
    default_key(journal).write_text("short")
    with pytest.raises(DataError, match="too short"):
        recorder(journal)
