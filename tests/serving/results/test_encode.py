"""Every object is read back, validated by programs of others, and taken by a real PACS."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from fhir.resources.R4B.bundle import Bundle
from hl7apy.parser import parse_message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import AE
from scripts.pacs.orthanc import Orthanc
from scripts.pacs.radiographs import chest, radiograph
from tests.support.delivery import verify
from tests.support.findings import abstained, finding, heat, prediction, saved, unreadable

from pneumoscope.errors import ConfigError
from pneumoscope.predict import Classifier
from pneumoscope.serving.results import KINDS, Encoded, encode, words
from pneumoscope.serving.results.finding import Finding
from pneumoscope.serving.results.regions import outlines

MADE = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
DICOM = ("sr", "sc", "gsps", "seg")
CASES: dict[str, Callable[[], Finding]] = {
    "flagged": finding,
    "not flagged": lambda: finding(answer=prediction(0.1), urgent=False),
    "abstained": abstained,
    "unreadable": unreadable,
}
HEADERS: dict[str, dict[str, Any]] = {
    "as DX": {},
    "nothing optional": dict.fromkeys(
        [
            "StudyID",
            "StudyDate",
            "StudyTime",
            "AccessionNumber",
            "PatientName",
            "PatientID",
            "PatientBirthDate",
            "PatientSex",
            "PatientAge",
            "ReferringPhysicianName",
            "StudyDescription",
            "BodyPartExamined",
            "PatientOrientation",
            "IssuerOfPatientID",
            "BurnedInAnnotation",
            "WindowCenter",
            "WindowWidth",
            "PresentationLUTShape",
            "SpecificCharacterSet",
        ]
    ),
    "CR": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR"},
    "Greek": {"SpecificCharacterSet": "ISO_IR 126", "PatientName": "Παπαδόπουλος^Μαρία"},
    "Japanese": {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    },
    "hostile": {"PatientName": "<script>alert(1)</script>^'\"&|~", "StudyDescription": "{{7*7}} <img src=x>"},
    "white is zero": {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    "hand": {"BodyPartExamined": "HAND", "Laterality": "L"},
    "private class": {"SOPClassUID": "1.2.3.4.5"},
}


def read(result: Encoded) -> Any:
    return pydicom.dcmread(io.BytesIO(result.data))


def by_kind(results: tuple[Encoded, ...]) -> dict[str, Encoded]:
    return {result.kind: result for result in results}


def texts(dataset: Any) -> str:
    values: list[str] = []
    dataset.walk(lambda _, element: values.append(str(element.value)) if element.VR != "SQ" else None)
    return "\n".join(values)


@pytest.mark.parametrize("case", CASES)
def test_dciodvfy_and_highdicom_accept_every_object(case: str, pacs_tools: None, tmp_path: Path) -> None:
    results = by_kind(encode(CASES[case](), DICOM, MADE))
    assert set(results) == set(DICOM if case == "flagged" else DICOM[:3])
    for result in results.values():
        assert verify(result, tmp_path) == []
        again = read(result)
        assert (again.SOPInstanceUID, again.SOPClassUID) == (result.uid, result.sop_class)
        assert again.file_meta.MediaStorageSOPInstanceUID == result.uid
    report = highdicom.sr.srread(io.BytesIO(results["sr"].data))
    groups = report.content.get_image_measurement_groups()
    assert len(groups) == 1
    assert len(report.content.get_planar_roi_measurement_groups()) == (case == "flagged")
    if case == "flagged":
        assert highdicom.seg.segread(io.BytesIO(results["seg"].data)).number_of_segments == 1


def test_dciodvfy_would_complain(pacs_tools: None, tmp_path: Path) -> None:
    result = encode(finding(), ["sr"], MADE)[0]
    broken = read(result)
    del broken.CompletionFlag
    buffer = io.BytesIO()
    broken.save_as(buffer)
    assert verify(Encoded("sr", result.uid, result.sop_class, buffer.getvalue(), ".dcm"), tmp_path)


@pytest.mark.parametrize("name", HEADERS)
def test_every_header_gives_valid_objects(name: str, pacs_tools: None, tmp_path: Path) -> None:
    source = saved(radiograph(**HEADERS[name]))
    for result in encode(finding(source), DICOM, MADE):
        assert verify(result, tmp_path) == []
        again = read(result)
        assert again.StudyInstanceUID == source.StudyInstanceUID
        assert again.SeriesInstanceUID != source.SeriesInstanceUID
        assert again.SpecificCharacterSet == "ISO_IR 192"
        assert again.ContentQualification == "RESEARCH"
        for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "PatientAge", "StudyDescription", "StudyID"):
            assert str(again.get(keyword) or "") == str(source.get(keyword) or "")
    encode(finding(source), ("fhir", "hl7"), MADE)


def test_a_report_is_preliminary_and_unverified() -> None:
    report = read(encode(finding(), ["sr"], MADE)[0])
    assert (report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )
    assert (report.ContentDate, report.ContentTime[:6]) == ("20260304", "050607")


@pytest.mark.parametrize("form", ["comprehensive", "enhanced"])
def test_other_forms_of_the_report(form: Any, pacs_tools: None, tmp_path: Path) -> None:
    usual, other = encode(finding(), ["sr"], MADE)[0], encode(finding(), ["sr"], MADE, report=form)[0]
    assert verify(other, tmp_path) == []
    assert usual.uid != other.uid
    assert usual.sop_class != other.sop_class


def test_equal_findings_give_equal_bytes() -> None:
    assert encode(finding(), KINDS, MADE) == encode(finding(), KINDS, MADE)
    assert len({result.uid for result in encode(finding(), KINDS, MADE)}) == len(KINDS)


def test_another_bundle_gives_other_uids() -> None:
    first = encode(finding(), KINDS, MADE)
    second = encode(finding(bundle={**finding().bundle, "sha256": "f" * 64}), KINDS, MADE)
    assert not {result.uid for result in first} & {result.uid for result in second}


@pytest.mark.parametrize("case", ["abstained", "unreadable"])
def test_not_analysed_is_said_and_no_score_with_it(case: str) -> None:
    results = by_kind(encode(CASES[case](), KINDS, MADE))
    report = read(results["sr"])
    assert "not analysed, because" in texts(report)
    assert not {"122157", "111012", "52101004"} & set(texts(report).split("\n"))
    assert "373121007" in texts(report).split("\n")
    marks = texts(read(results["gsps"]))
    assert "NOT ANALYSED" in marks
    transaction = json.loads(results["fhir"].data)
    observation = next(e["resource"] for e in transaction["entry"] if e["resource"]["resourceType"] == "Observation")
    assert "not analysed, because" in observation["dataAbsentReason"]["text"]
    assert not {"component", "valueCodeableConcept", "valueQuantity"} & set(observation)
    message = results["hl7"].data.decode()
    assert "|X" in message
    assert "|NM|" not in message
    for data in (result.data for result in results.values()):
        assert b"4711_Doe" not in data  # nor the name of the file
        assert b"Not flagged" not in data


def test_no_result_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "4711  Doe"  # two spaces, which messages do not keep
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    answer, _ = Classifier.load(Path("fast")).predict_one(folder / "a.png")
    assert "Doe" not in words.reason(finding(answer=answer))
    assert "is not an image" in words.reason(finding(answer=answer))


def test_under_the_threshold_nothing_is_ruled_out() -> None:
    results = by_kind(encode(finding(answer=prediction(0.1), urgent=False), KINDS, MADE))
    assert "does not rule out pneumonia" in texts(read(results["sr"]))
    assert not {"52101004", "2667000", "112033"} & set(texts(read(results["sr"])).split("\n"))
    assert "GraphicObjectSequence" not in read(results["gsps"]).GraphicAnnotationSequence[0]
    assert "seg" not in results
    task = next(
        e["resource"] for e in json.loads(results["fhir"].data)["entry"] if e["resource"]["resourceType"] == "Task"
    )
    assert "priority" not in task


def test_a_score_that_is_no_probability_is_not_called_one() -> None:
    card = {**finding().bundle, "calibration": None}
    results = by_kind(encode(finding(bundle=card), KINDS, MADE))
    words = texts(read(results["sr"]))
    assert "111012" in words.split("\n")
    assert "122157" not in words.split("\n")
    assert b"122157" not in results["fhir"].data + results["hl7"].data
    assert b"not a probability" in results["hl7"].data


def test_the_picture_shows_the_anatomy_and_no_identity() -> None:
    picture = read(encode(finding(), ["sc"], MADE)[0])
    shown = picture.pixel_array[:, :, :].astype(float)
    original = chest(256).astype(float)
    top = next(y for y in range(200) if np.abs(shown[y : y + 20, 192:448].mean(2) - original[:20]).max() < 2)
    inside = shown[top : top + 256, 192:448].mean(2)
    assert np.abs(inside - original)[:, 200:].max() < 2  # without evidence: untouched
    area = (slice(100, 180), slice(60, 100))
    assert np.corrcoef(inside[area].ravel(), original[area].ravel())[0, 1] > 0.2
    assert picture.BurnedInAnnotation == "NO"
    burned = read(encode(finding(radiograph(BurnedInAnnotation="YES")), ["sc"], MADE)[0])
    assert burned.BurnedInAnnotation == "YES"


def test_a_large_picture_is_reduced_and_says_so() -> None:
    image = np.tile(chest(256).astype(np.float32) / 255, (8, 8))
    picture = read(encode(finding(image=image), ["sc"], MADE)[0])
    assert picture.Columns == 1024
    assert "Reduced from 2048 x 2048 to 1024 x 1024" in picture.DerivationDescription


def test_the_map_comes_back_from_the_segmentation() -> None:
    segmentation = read(encode(finding(), ["seg"], MADE)[0])
    assert (segmentation.SegmentationType, segmentation.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    values = segmentation.pixel_array / 255
    y, x = np.unravel_index(values.argmax(), values.shape)
    assert values.shape == (256, 256)
    assert abs(x / 256 - 0.3) < 0.08
    assert abs(y / 256 - 0.6) < 0.08


def test_outlines_lie_where_the_map_is_and_leave_holes_out() -> None:
    ring = np.zeros((20, 20), np.float32)
    ring[5:15, 5:15] = 1
    ring[8:12, 8:12] = 0
    (outline,) = outlines(ring, 200, 100)
    assert outline.min(0) == pytest.approx([50, 25], abs=1)
    assert outline.max(0) == pytest.approx([150, 75], abs=1)
    assert (outline[0] == outline[-1]).all()
    (whole,) = outlines(np.ones((4, 4), np.float32), 40, 40)
    assert whole.min() == 0
    assert whole.max() == 40
    assert outlines(np.zeros((4, 4), np.float32), 40, 40) == outlines(None, 40, 40) == []


def test_the_presentation_keeps_how_the_image_is_shown() -> None:
    state = read(encode(finding(), ["gsps"], MADE)[0])
    shown = state.SoftcopyVOILUTSequence[0]
    assert (shown.WindowCenter, shown.WindowWidth) == (2048, 4096)
    inverse = read(encode(finding(radiograph(**HEADERS["white is zero"])), ["gsps"], MADE)[0])
    assert inverse.PresentationLUTShape == "INVERSE"
    free = radiograph(WindowCenter=None, WindowWidth=None)
    shown = read(encode(finding(free), ["gsps"], MADE)[0]).SoftcopyVOILUTSequence[0]
    low, high = np.percentile(np.frombuffer(free.PixelData, np.uint16), (0.5, 99.5))
    assert shown.WindowCenter == pytest.approx((low + high) / 2, abs=0.5)
    colour = radiograph(SamplesPerPixel=3, PhotometricInterpretation="RGB")
    assert encode(finding(colour), ["gsps"], MADE) == ()


def test_fhir_is_valid_and_links_within_itself() -> None:
    transaction = json.loads(encode(finding(), ["fhir"], MADE)[0].data)
    Bundle.model_validate(transaction)
    resources = {entry["resource"]["resourceType"]: entry for entry in transaction["entry"]}
    urls = {entry["fullUrl"] for entry in transaction["entry"]}
    report, task = resources["DiagnosticReport"]["resource"], resources["Task"]["resource"]
    assert report["status"] == "preliminary"
    assert {
        report["result"][0]["reference"],
        report["imagingStudy"][0]["reference"],
        task["focus"]["reference"],
    } <= urls
    assert task["priority"] == "urgent"
    observation = resources["Observation"]["resource"]
    assert observation["component"][0]["valueQuantity"]["value"] == 87
    assert all("ifNoneExist" in entry["request"] for entry in transaction["entry"])
    assert "For research use only" in report["conclusion"]


def test_hl7_is_valid_and_nothing_cuts_its_fields() -> None:
    source = radiograph(PatientName="O|x~y&z^Jane^^Dr^III", PatientID="47|11", IssuerOfPatientID="A&B")
    message = parse_message(encode(finding(source), ["hl7"], MADE)[0].data.decode(), find_groups=True)
    message.validate()
    lines = encode(finding(source), ["hl7"], MADE)[0].data.decode().split("\r")
    person = next(line for line in lines if line.startswith("PID")).split("|")
    assert person[3] == "47\\F\\11^^^A\\T\\B"
    assert person[5] == "O\\F\\x\\R\\y\\T\\z^Jane^^III^Dr"
    assert any(line.startswith("TQ1|1||||||||S^") for line in lines)
    assert lines[0].split("|")[17] == "UNICODE UTF-8"


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="no such kind of result: pdf"):
        encode(finding(), ["sr", "pdf"], MADE)


ODD = st.one_of(
    st.none(),
    st.text(max_size=90),
    st.sampled_from(
        ["0", "\\", "^^^^^^", "=", "1.2.3", "1..2", "20261399", "25:61:00", "005Y", "-1", "99999", "\x1b$B"]
    ),
)
KEYWORDS = [
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "Modality",
    "BodyPartExamined",
    "PatientOrientation",
    "PhotometricInterpretation",
    "WindowCenter",
    "WindowWidth",
    "RescaleSlope",
    "RescaleIntercept",
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
]


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(changes=st.dictionaries(st.sampled_from(KEYWORDS), ODD, max_size=8))
def test_odd_headers_never_fail_and_stay_valid(
    changes: dict[str, str | None], pacs_tools: None, tmp_path: Path
) -> None:
    source = radiograph()
    with pydicom.config.disable_value_validation():
        for keyword, value in changes.items():
            if value is None:
                source.pop(keyword, None)
            else:
                raw = value.encode("latin-1", "replace")
                vr = pydicom.datadict.dictionary_VR(keyword)
                tag = pydicom.tag.Tag(keyword)
                source[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(raw), raw, 0, False, True, True)
    for result in encode(finding(source), DICOM, MADE):
        errors = verify(result, tmp_path)
        assert errors == []
    encode(finding(source), ("fhir", "hl7"), MADE)


def test_an_empty_header_still_gives_a_result() -> None:
    results = by_kind(encode(unreadable(source=Dataset()), KINDS, MADE))
    assert set(results) == {"sr", "sc", "fhir", "hl7"}


def test_the_report_reads_as_a_page(pacs_tools: None, tmp_path: Path) -> None:
    source = saved(radiograph(**HEADERS["hostile"]))
    file = tmp_path / "sr.dcm"
    file.write_bytes(encode(finding(source), ["sr"], MADE)[0].data)
    page = subprocess.run(["dsr2html", "+U8", str(file)], capture_output=True, text=True, check=True).stdout
    assert "<script>alert" not in page
    for text in ("Pneumonia suspected", "87.0", "Present", "PRELIMINARY", "For research use only"):
        assert text in page


def test_a_real_pacs_takes_and_finds_everything(orthanc: Orthanc) -> None:
    source = saved(radiograph(**HEADERS["Greek"], StudyInstanceUID="1.2.826.0.1.3680043.8.498.76"))
    results = encode(finding(source), DICOM, MADE)
    entity = AE("PNEUMOSCOPE")
    for result in results:
        assert result.sop_class
        entity.add_requested_context(result.sop_class, "1.2.840.10008.1.2.1")
    association = entity.associate(orthanc.host, orthanc.port, ae_title=orthanc.title)
    assert association.is_established
    try:
        statuses = [association.send_c_store(read(result)).Status for result in results]
    finally:
        association.release()
    assert statuses == [0] * 4
    client = DICOMwebClient(orthanc.dicomweb)
    study = read(results[0]).StudyInstanceUID
    instances = client.search_for_instances(study_instance_uid=study)
    assert {item["00080018"]["Value"][0] for item in instances} == {result.uid for result in results}


def test_a_real_pacs_takes_everything_over_the_web(orthanc: Orthanc) -> None:
    source = radiograph(StudyInstanceUID="1.2.826.0.1.3680043.8.498.77", SOPInstanceUID="1.2.826.0.1.3680043.8.498.78")
    results = encode(finding(source), DICOM, MADE)
    client = DICOMwebClient(orthanc.dicomweb)
    client.store_instances([read(result) for result in results])
    instances = client.search_for_instances(study_instance_uid="1.2.826.0.1.3680043.8.498.77")
    assert {item["00080018"]["Value"][0] for item in instances} == {result.uid for result in results}


def test_a_class_that_needs_a_frame_of_reference_gets_no_segmentation() -> None:
    tomogram = radiograph(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")
    assert "seg" not in by_kind(encode(finding(tomogram), KINDS, MADE))


def test_a_blank_map_gives_no_marks() -> None:
    blank = finding(heatmap=np.zeros_like(heat()))
    assert "seg" not in by_kind(encode(blank, KINDS, MADE))
    assert b"112033" not in by_kind(encode(blank, KINDS, MADE))["sr"].data


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("keyword", ["PatientName", "ReferringPhysicianName", "PatientBirthDate", "PatientID"])
def test_what_is_odd_about_a_person_is_not_printed(keyword: str, caplog: pytest.LogCaptureFixture) -> None:
    with pydicom.config.disable_value_validation():
        source = saved(radiograph(**{keyword: "SECRET"}))
    assert len(encode(finding(source), KINDS, MADE)) == len(KINDS)
    assert "SECRET" not in caplog.text
