"""One gate: `predict` and the gateway judge the same header alike, with the same words.

PNEUMOSCOPE_HEADERS=10000 compares them on so many generated headers instead of 200.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from tests.support.findings import radiograph

from pneumoscope.gate.header_rules import Rules, ages_of, judge
from pneumoscope.images.header import Header, header_of
from pneumoscope.predict import Classifier
from pneumoscope.records import Prediction
from pneumoscope.serving.intake.receipt import Intake, Receipt, open_intake
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import open_store
from pneumoscope.serving.store.tables import DECLINED, WAITING

HEADERS = int(os.environ.get("PNEUMOSCOPE_HEADERS", "200"))
KEYS = {"no pixels", "frames", "raw", "modality", "view", "body part", "age"}
NUMBERS = count(1)
NOTHING: dict[str, Any] = dict.fromkeys(
    ("Modality", "ViewPosition", "BodyPartExamined", "PatientAge", "PatientBirthDate", "StudyDescription")
)


@pytest.fixture(scope="module")
def both(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A classifier and an intake of the same bundle, which is meant for one to five years, both with default rules."""
    folder = tmp_path_factory.mktemp("both")
    bundle = make_bundle(folder / "bundle", population={"age_years": [1.0, 5.0]})
    receive = {"port": 0, "callers": ("XRAYROOM1",), "free_mb": 0}
    config = Gateway.model_validate({"folder": folder, "receive": receive, "bundle": {"path": bundle}})
    config.images.mkdir()
    store = open_store(config.database, migrate=True)
    yield Classifier.load(bundle), open_intake(config, store)
    store.close()


def written(folder: Path, **changes: Any) -> Path:
    """A DICOM file of a child; a change to None removes the attribute, and values need not be valid."""
    number = next(NUMBERS)
    with pydicom.config.disable_value_validation():
        source = radiograph(32, **{"SOPInstanceUID": f"1.2.826.0.1.{number}", **changes})
        source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
        source.file_meta.MediaStorageSOPClassUID = source.SOPClassUID
        source.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder / f"{number}.dcm"


def answers(both: tuple[Classifier, Intake], file: Path) -> tuple[Prediction, Receipt]:
    """What `predict` says of a file, and what the gateway does with it."""
    classifier, intake = both
    (prediction,) = classifier.predict([file], workers=1)
    return prediction, intake.take(file, "test")


def agreed(prediction: Prediction, receipt: Receipt) -> str | None:
    """Compare the two, and return the key of the refusal."""
    key = prediction.quality.get("refused_by")
    if key in KEYS:
        assert prediction.abstained
        assert str(prediction.reason).startswith("not analysed, because ")
        assert (receipt.state, receipt.reason) == (DECLINED, prediction.reason)
        return str(key)
    assert (receipt.state, receipt.reason) == (WAITING, None)
    return None


ELEVEN = [
    ({"ViewPosition": "PA"}, None),
    (NOTHING, None),
    ({"Modality": "CT"}, "modality"),
    ({"ViewPosition": "LL"}, "view"),
    ({"BodyPartExamined": "HAND"}, "body part"),
    ({"PatientAge": "044Y"}, "age"),
    ({"PatientAge": None, "PatientBirthDate": "19560101"}, "age"),
    ({"BodyPartExamined": "CHEST PA"}, None),
    ({"ViewPosition": "AP AXIAL"}, "view"),
    ({"StudyDescription": "Thorax lateral"}, "view"),
    ({"PresentationIntentType": "FOR PROCESSING"}, "raw"),
]
MORE = [
    ({"NumberOfFrames": 3}, "frames"),
    ({"Rows": 0}, "no pixels"),
    ({"SOPClassUID": uid.DigitalXRayImageStorageForProcessing}, "raw"),
    ({"Modality": "dx", "ViewPosition": "pa", "BodyPartExamined": "Port chest"}, None),
    ({"ViewPosition": "AP_SUPINE"}, None),
    ({"ViewPosition": "PORTABLE", "StudyDescription": "CHEST_LAT"}, "view"),
    ({"StudyDescription": "XR CHEST PA AND LATERAL"}, None),
    ({"ViewPosition": "PA", "StudyDescription": "Thorax seitlich"}, None),
    ({"PatientAge": "006M"}, "age"),
    ({"PatientAge": "old"}, None),
]


@pytest.mark.parametrize(("changes", "key"), ELEVEN + MORE)
def test_predict_and_the_gateway_give_one_answer(
    both: tuple[Classifier, Intake], tmp_path: Path, changes: dict[str, Any], key: str | None
) -> None:
    assert agreed(*answers(both, written(tmp_path, **changes))) == key


ODD = st.text(st.characters(codec="latin-1", exclude_categories=("Cc",), exclude_characters="\\"), max_size=16)
DATES = st.dates(date(1930, 1, 1), date(2030, 1, 1)).map(lambda day: day.strftime("%Y%m%d"))
DESCRIPTIONS = st.sampled_from(
    ["Chest PA", "Thorax lateral", "CHEST_LAT", "Rx p.a. und seitlich", "radio de face", "profil", "AP", "Knie", ""]
)


def element(*usual: Any) -> st.SearchStrategy[Any]:
    """One of the usual values in any case, several of them, something odd, nothing, or no element at all."""
    names = [name for name in usual if isinstance(name, str)]
    either = st.sampled_from([None, "", *usual, *map(str.lower, names), *(f" {name} " for name in names)])
    return st.one_of(either, either, st.lists(st.sampled_from(usual), max_size=3), ODD if names else st.none())


HEADER = st.fixed_dictionaries(
    {
        "Modality": st.one_of(st.just("DX"), element("DX", "CR", "RG", "CT", "OT")),
        "ViewPosition": element("PA", "AP", "LL", "RLD", "AP AXIAL", "PA ERECT", "AP_SUPINE", "PORTABLE"),
        "BodyPartExamined": element("CHEST", "THORAX", "CHEST PA", "PORT CHEST", "LUNG", "HAND", "ABDOMEN"),
        "SeriesDescription": st.one_of(st.none(), DESCRIPTIONS, ODD),
        "ProtocolName": st.one_of(st.none(), DESCRIPTIONS),
        "StudyDescription": st.one_of(st.none(), DESCRIPTIONS),
        "PatientAge": element("005Y", "044Y", "018M", "030D", "104W", "5Y", "006Y"),
        "PatientBirthDate": st.one_of(st.none(), DATES, DATES, ODD),
        "StudyDate": st.one_of(DATES, st.sampled_from([None, "", "20260304", "2026"])),
        "PresentationIntentType": st.one_of(st.none(), element("FOR PRESENTATION", "FOR PROCESSING")),
        "SOPClassUID": st.sampled_from(
            [
                *[uid.DigitalXRayImageStorageForPresentation, uid.ComputedRadiographyImageStorage] * 4,
                uid.DigitalXRayImageStorageForProcessing,
                uid.DigitalMammographyXRayImageStorageForProcessing,
            ]
        ),
        "NumberOfFrames": st.sampled_from([None] * 8 + [0, 1, 3]),
        "Rows": st.sampled_from([32] * 12 + [0]),
    }
)
SITES = st.sampled_from(
    [
        *[Rules()] * 3,
        Rules(unknown=False),
        Rules(views=("pa", "LL"), body_parts=("chest", "abdomen")),
        Rules(modalities=("DX",), age_years=(18.0, 120.0)),
    ]
)


def test_generated_headers(both: tuple[Classifier, Intake], tmp_path: Path) -> None:
    seen: Counter[str | None] = Counter()
    different: set[str] = set()

    @given(HEADER, SITES)
    @settings(max_examples=HEADERS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def compare(changes: dict[str, Any], rules: Rules) -> None:
        classifier, intake = copy.copy(both[0]), both[1]
        classifier.rules, classifier.ages = rules, ages_of(rules, classifier.bundle.card)
        theirs = replace(intake, rules=rules, ages=classifier.ages)
        seen[agreed(*answers((classifier, theirs), written(tmp_path, **changes)))] += 1
        different.add(repr((changes, rules)))

    compare()
    print(f"{sum(seen.values())} headers, {len(different)} different:", dict(seen))
    assert seen.keys() == {*KEYS, None}


# --- the rules alone --------------------------------------------------------------------------------------


def header(**facts: Any) -> Header:
    usual = {"modality": "DX", "rows": 64, "columns": 64, **facts}
    return Header("1.2.3", "1.2.4", "1.2.5", "1.2.6", "1.2.840.10008.1.2.1", **usual)


def test_files_without_a_header_are_not_refused_by_it() -> None:
    assert judge(None, Rules(unknown=False), (1.0, 5.0)) is None


@pytest.mark.parametrize("changes", [{"view": "LL"}, {"body_part": "HAND"}, {"age_years": 44.0}])
def test_without_the_gate_only_what_is_no_plain_radiograph_is_refused(changes: dict[str, Any]) -> None:
    assert judge(header(**changes), Rules(), (1.0, 5.0)) is not None
    assert judge(header(**changes), Rules(), (1.0, 5.0), gate=False) is None
    for always in ({"modality": "CT"}, {"intent": "FOR PROCESSING"}, {"frames": 2}, {"rows": None}):
        assert judge(header(**always), Rules(), (1.0, 5.0), gate=False) is not None


def test_predict_without_the_gate(both: tuple[Classifier, Intake], tmp_path: Path) -> None:
    ungated = Classifier(both[0].bundle, gate=False)
    changes = [{"ViewPosition": "LL"}, {"PatientAge": "044Y"}, {"Modality": "CT"}, {"NumberOfFrames": 2}]
    found = ungated.predict([written(tmp_path, **one) for one in changes])
    assert [one.quality.get("refused_by") for one in found] == [None, None, "modality", "frames"]


def test_a_site_that_wants_lateral_views_gets_them() -> None:
    rules = Rules(views=("ll", "PA"))
    assert judge(header(view="LL"), rules, None) is None
    assert judge(header(description="Thorax lateral"), rules, None) is None
    assert judge(header(view="AP"), rules, None) is not None


@pytest.mark.parametrize(
    ("missing", "what"), [("modality", "modality"), ("view", "view"), ("body_part", "body part"), ("age_years", "age")]
)
def test_what_is_not_given_may_be_refused(missing: str, what: str) -> None:
    facts = {"modality": "DX", "view": "PA", "body_part": "CHEST", "age_years": 4.0, missing: None}
    assert judge(header(**facts), Rules(), (1.0, 5.0)) is None
    refusal = judge(header(**facts), Rules(unknown=False), (1.0, 5.0))
    assert refusal is not None
    assert (refusal.key, str(refusal).endswith("is not given")) == (what, True)


def test_ages_are_those_of_the_rules_else_of_the_gate_else_of_the_population() -> None:
    card = {"population": {"age_years": [0.0, 90.0]}, "gate": {"ages": [1.0, 5.0]}}
    assert ages_of(Rules(age_years=(2.0, 3.0)), card) == (2.0, 3.0)
    assert ages_of(Rules(), card) == (1.0, 5.0)
    assert ages_of(Rules(), {**card, "gate": {"ages": None}}) == (0.0, 90.0)
    assert ages_of(Rules(), {}) is None


@given(st.dates(date(1930, 1, 1), date(2015, 1, 1)), st.integers(1, 9), st.integers(-1, 364))
@settings(max_examples=200, deadline=None)
def test_years_are_completed_on_the_birthday(born: date, years: int, days: int) -> None:
    leaps = (born.month, born.day) == (2, 29)
    birthday = date(born.year + years, 3, 1) if leaps else born.replace(year=born.year + years)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.PatientBirthDate, dataset.StudyDate = f"{born:%Y%m%d}", f"{birthday + timedelta(days):%Y%m%d}"
    age = header_of(dataset).age_years
    assert age is not None
    assert int(age) == (years if days >= 0 else years - 1)
