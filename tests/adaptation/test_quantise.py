"""A bundle in eight bits is another bundle, with its own thresholds and what it lost on its card."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.adaptation.quantise import quantise
from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.data.sources import open_source
from pneumoscope.errors import ConfigError, DataError
from pneumoscope.predict import Classifier


@pytest.fixture(scope="module")
def quantised(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nncf", reason='quantising needs pip install "pneumoscope[int8]"')
    out = tmp_path_factory.mktemp("quantised") / "small-int8"
    quantise(load_bundle(trained / "bundle"), open_source(trained / "split.csv"), out, name="small-int8")
    return out


def test_it_is_smaller_and_says_where_it_comes_from(trained: Path, quantised: Path) -> None:
    original, small = load_bundle(trained / "bundle"), load_bundle(quantised)
    assert small.name == "small-int8"
    assert small.sha256 != original.sha256
    assert small.card["quantised_from"]["sha256"] == original.sha256
    assert small.card["runtime"]["precision"] == "int8"
    assert sorted(small.card["runtime"]["files"]) == ["model.bin", "model.xml"]
    assert b'element_type="i8"' in (quantised / "model.xml").read_bytes()


def test_its_probabilities_are_the_originals_and_so_its_thresholds(trained: Path, quantised: Path) -> None:
    original, small = load_bundle(trained / "bundle").card, load_bundle(quantised).card
    assert small["calibration"]["temperature"] != original["calibration"]["temperature"]
    assert small["calibration"]["n"] == original["population"]["images"]
    for name, point in original["operating_points"].items():
        assert small["operating_points"][name]["threshold"] == point["threshold"]
        assert small["operating_points"][name]["carried"]
    paths = [sample.path for sample in open_source(trained / "split.csv").select("train").samples]
    p, q = (
        np.array([line.probability for line in Classifier.load(folder).predict(paths)])
        for folder in (trained / "bundle", quantised)
    )
    assert np.abs(p - q).mean() < 0.02
    assert q.mean() == pytest.approx(p.mean(), abs=0.003)


def test_it_is_compared_on_validation_images(quantised: Path) -> None:
    small = load_bundle(quantised).card
    evidence = small["evidence"]["against_original"]
    assert evidence["images"] == "validation split"
    assert set(evidence["differences"]) == {"accuracy", "balanced_accuracy", "auroc"}
    assert "validation" not in small["evidence"], "the original's figures are not its own"


def test_it_answers_like_the_original_and_explains_itself(trained: Path, quantised: Path, chests: Path) -> None:
    paths = sorted((chests / "test").rglob("*.png"))[:12]
    answers = [
        np.array([line.logit for line in Classifier.load(folder).predict(paths)])
        for folder in (trained / "bundle", quantised)
    ]
    assert 0 < np.abs(answers[0] - answers[1]).max() < 1.0
    assert load_bundle(quantised).network.features == load_bundle(trained / "bundle").network.features


def test_what_cannot_be_quantised(
    trained: Path, quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_source(trained / "split.csv")
    with pytest.raises(DataError, match="holds no ONNX model"):
        quantise(load_bundle(quantised), manifest, tmp_path / "a", name="a")
    with pytest.raises(DataError, match="val"):
        quantise(load_bundle(trained / "bundle"), manifest.select("train"), tmp_path / "a", name="a")
    with pytest.raises(ConfigError, match="is the bundle itself"):
        quantise(load_bundle(trained / "bundle"), manifest, trained / "bundle", name="a")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"nncf is not installed.*int8"):
        quantise(load_bundle(trained / "bundle"), manifest, tmp_path / "a", name="a")
    assert not (tmp_path / "a").exists()


def test_it_names_no_place_of_this_machine(quantised: Path, tmp_path: Path) -> None:
    for file in quantised.iterdir():
        assert str(Path.home()).encode() not in file.read_bytes() or str(Path.home()) == "/"
        assert str(tmp_path.parent.parent).encode() not in file.read_bytes()
    json.loads((quantised / "card.json").read_text())
