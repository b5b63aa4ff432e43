"""Answers about files in the journal: once by content, with DICOM facts, without identity."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts.pacs.radiographs import radiograph

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.data.sources import open_source
from pneumoscope.errors import DataError
from pneumoscope.journal.journal import Journal
from pneumoscope.journal.pseudonyms import default_key
from pneumoscope.journal.recording import Recorder
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, Prediction
from pneumoscope.version import __version__


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


def test_facts_of_detector_and_exposure(tmp_path: Path, journal: Path) -> None:
    said = {
        "ExposureIndex": "412", "TargetExposureIndex": "400", "DeviationIndex": "0.1", "DetectorType": "SCINTILLATOR",
        "DetectorID": "SN-4711-X", "SoftwareVersions": "VB10", "Grid": ["FIXED", "FOCUSED"],
        "ImagerPixelSpacing": ["0.139", "0.139"], "DistanceSourceToDetector": "1800", "LossyImageCompression": "00",
        "AcquisitionDate": "20260301", "StudyDate": "20260228",
    }  # fmt: skip
    radiograph(**said).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    radiograph(DetectorID="SN-4712-X", DeviationIndex=None).save_as(tmp_path / "b.dcm", enforce_file_format=True)
    for name in ("a", "b"):
        assert recorder(journal).record(answered(tmp_path / f"{name}.dcm", logit=-1.25))
    one, other = Journal(journal).entries()
    facts = {name: one.covariates[name] for name in ("exposure_index", "target_exposure_index", "deviation_index")}
    assert list(facts.values()) == [412.0, 400.0, 0.1]
    assert [one.covariates[name] for name in ("detector_type", "software", "grid")] == ["SCINTILLATOR", "VB10", "FIXED"]
    assert [one.covariates[name] for name in ("pixel_spacing_mm", "source_distance_mm", "lossy")] == [
        0.139,
        1800,
        False,
    ]
    assert len(one.covariates["detector"]) == 24
    assert one.covariates["detector"] != other.covariates["detector"]
    assert other.covariates["deviation_index"] is None
    assert (one.acquired_on, one.logit, one.operating_point) == (date(2026, 3, 1), -1.25, "balanced")
    assert (one.feed, one.shown, one.state, one.version) == ("predict", None, "analysed", __version__)
    assert b"4711-X" not in journal.read_bytes()
    columns = Journal(journal).columns(("acquired_on", "covariates.lossy", "covariates.grid", "logit", "shown"))
    assert columns["acquired_on"][0] == np.datetime64("2026-03-01")
    assert (columns["covariates.lossy"][0], columns["covariates.grid"][0]) == (0.0, "FIXED")
    assert np.isnan(columns["shown"]).all()


def test_images_without_a_header_have_the_patient_of_their_manifest(tmp_path: Path, journal: Path) -> None:
    for n in range(3):
        Image.fromarray(np.full((32, 32), n, np.uint8)).save(tmp_path / f"{n}.png")
    radiograph(PatientID="4711").save_as(tmp_path / "3.dcm", enforce_file_format=True)
    table = tmp_path / "manifest.csv"
    table.write_text(
        "path,label,patient_id,site,age_years,view\n0.png,NORMAL,anna,north,95,PA\n1.png,NORMAL,anna,north,4,AP\n"
        "3.dcm,NORMAL,anna,north,4,AP\n"
    )
    writer = Recorder(journal, load_bundle(), "balanced", open_source(table).samples)
    for name in ("0.png", "1.png", "2.png", "3.dcm"):
        assert writer.record(answered(tmp_path / name))
    one, two, unnamed, dicom = Journal(journal).entries()
    assert one.patient == two.patient == writer.pseudonyms.of("patient", None, "anna")
    assert one.site == two.site
    assert one.site is not None
    assert (one.covariates["age_years"], two.covariates["view"]) == (90.0, "AP")
    assert unnamed.patient is None
    assert dicom.patient not in (None, one.patient), "a header knows its patient better"
    assert b"anna" not in journal.read_bytes()


def test_what_the_header_refused_was_declined(tmp_path: Path, journal: Path) -> None:
    radiograph(ViewPosition="LL").save_as(tmp_path / "a.dcm", enforce_file_format=True)
    classifier = Classifier.load()
    (prediction,) = classifier.predict([tmp_path / "a.dcm"])
    Recorder(journal, classifier.bundle, classifier.operating_point).record(prediction)
    (entry,) = Journal(journal).entries()
    assert (entry.state, entry.abstained, entry.probability) == ("declined", True, None)
    assert entry.quality["refused_by"] == "view"


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
    assert (entry.probability, entry.reason, entry.state) == (None, "could not be read", "quarantined")
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
