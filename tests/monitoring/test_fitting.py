"""References of images: what the bundle answers now, with the labels of the data source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError
from pneumoscope.monitoring.fitting import _card_errors, from_images, rows_of
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load("fast", threads=1)


def test_rows_of_images_are_those_that_a_journal_would_hold(classifier: Classifier, chest_manifest: Manifest) -> None:
    samples = list(chest_manifest.samples)[:6]
    rows, truth = rows_of(classifier, samples)
    assert len(rows) == 6
    assert truth.tolist() == [int(sample.label == PNEUMONIA) for sample in samples]
    assert rows.text["patient"].tolist() == [sample.patient_id for sample in samples]
    assert set(rows.text["bundle"]) == {classifier.bundle.sha256}
    assert set(rows.text["site"]) == {""}, "names of sites are not pseudonyms"
    assert set(rows.text["state"]) == {"analysed"}
    assert (rows.number["mean"] > 0).all()


def test_too_few_images_are_refused_with_their_number(classifier: Classifier, chest_manifest: Manifest) -> None:
    few = replace(chest_manifest, samples=chest_manifest.samples[:5])
    with pytest.raises(DataError, match=r"5 images of \d patients are too few"):
        from_images(classifier, few)


def test_the_card_says_how_often_a_bundle_errs() -> None:
    card = load_bundle(Path("default")).card
    found = _card_errors(card)
    point = card["operating_points"][card["operating_point"]]
    assert found["missed"]["value"] == pytest.approx(1 - point["sensitivity"]["value"])
    assert found["missed"]["high"] == pytest.approx(1 - point["sensitivity"]["ci95"][0])
    assert found["false"]["value"] < found["false"]["high"]
