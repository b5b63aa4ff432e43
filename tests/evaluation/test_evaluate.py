"""From a bundle and labelled images to the files of the contract, checked against scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as oracle

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError
from pneumoscope.evaluation.evaluate import evaluate, score
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, PNEUMONIA, Prediction, Sample

NAMES = {
    "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "auroc", "auprc", "brier", "ece",
    "npv", "mcc",
}  # fmt: skip


@pytest.fixture(scope="module")
def classifier(trained: Path) -> Classifier:
    return Classifier.load(trained / "bundle")


@pytest.fixture(scope="module")
def evaluated(
    classifier: Classifier, chest_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("evaluation")
    return evaluate(classifier, chest_manifest, out), out


def test_the_file_has_the_keys_of_the_contract(evaluated: tuple[dict[str, Any], Path]) -> None:
    returned, out = evaluated
    written = json.loads((out / "metrics.json").read_text())
    assert written.keys() == returned.keys()
    assert set(written) == {
        "n", "n_patients", "prevalence", "threshold", "operating_point", "metrics", "confusion", "bundle", "data",
        "subtype", "failed", "not_analysed", "limits", "refused", "selective", "overlap",
        "reliability",
    }  # fmt: skip
    assert set(written["metrics"]) >= NAMES
    for figure in written["metrics"].values():
        assert set(figure) == {"value", "ci95", "method"}
        low, high = figure["ci95"]
        assert low <= figure["value"] <= high
    assert set(written["bundle"]) == {"name", "sha256"}
    assert set(written["data"]) == {"source", "sha256", "patients", "splits"}
    assert written["data"]["source"] == "data", "the name of the folder, not its place"
    assert set(written["subtype"]) == {"n", "question", "metrics"}


def test_the_figures_are_those_of_scikit_learn_on_the_table(
    evaluated: tuple[dict[str, Any], Path], classifier: Classifier
) -> None:
    written, out = evaluated
    table = pd.read_csv(out / "predictions.csv")
    y, p = table["label"] == PNEUMONIA, table["probability"]
    called = table["predicted"] == PNEUMONIA
    assert (called == (p >= classifier.threshold)).all()
    assert 0 < called.sum() < len(called), "an evaluation where all are alike shows nothing"
    found = {name: figure["value"] for name, figure in written["metrics"].items()}
    expected = {
        "auroc": oracle.roc_auc_score(y, p),
        "auprc": oracle.average_precision_score(y, p),
        "accuracy": oracle.accuracy_score(y, called),
        "balanced_accuracy": oracle.balanced_accuracy_score(y, called),
        "recall": oracle.recall_score(y, called),
        "precision": oracle.precision_score(y, called),
        "specificity": oracle.recall_score(~y, ~called),
        "npv": oracle.precision_score(~y, ~called),
        "f1": oracle.f1_score(y, called),
        "mcc": oracle.matthews_corrcoef(y, called),
        "brier": oracle.brier_score_loss(y, p),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    tn, fp, fn, tp = oracle.confusion_matrix(y, called).ravel().tolist()
    assert written["confusion"] == {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    assert written["n"] == len(table)
    assert written["n_patients"] == table["patient_id"].nunique() < len(table)
    assert written["prevalence"] == pytest.approx(y.mean())


def test_the_reliability_bins_have_intervals_by_patient() -> None:
    rng = np.random.default_rng(0)
    p, hit = rng.uniform(size=200), rng.uniform(size=200)
    labels = [PNEUMONIA if h < q else NORMAL for h, q in zip(hit, p, strict=True)]
    once = _scored(p, labels, copies=1)["reliability"]
    thrice = _scored(p, labels, copies=3)["reliability"]
    assert sum(cell["n"] for cell in once) == 200
    assert [cell["n"] for cell in thrice] == [3 * cell["n"] for cell in once]
    for a, b in zip(once, thrice, strict=True):
        assert b["observed"]["value"] == pytest.approx(a["observed"]["value"])
        assert b["observed"]["ci95"] == pytest.approx(a["observed"]["ci95"]), "copies of an image tell nothing more"


def _scored(p: np.ndarray, labels: list[str], *, copies: int) -> dict[str, Any]:
    order = np.repeat(np.arange(len(p)), copies)
    samples = [Sample(f"{row}.png", str(i), labels[i]) for row, i in enumerate(order)]
    predictions = [Prediction(sample.path, float(p[i]), None, 0.5) for sample, i in zip(samples, order, strict=True)]
    return score(samples, predictions, 0.5)


def test_the_subtype_figure_is_about_known_pneumonia(evaluated: tuple[dict[str, Any], Path]) -> None:
    written, out = evaluated
    table = pd.read_csv(out / "predictions.csv")
    known = table[(table["label"] == PNEUMONIA) & table["subtype"].notna()]
    assert written["subtype"]["n"] == len(known)
    auroc = oracle.roc_auc_score(known["subtype"] == "viral", known["viral"])
    assert written["subtype"]["metrics"]["auroc"]["value"] == pytest.approx(auroc)


def test_the_table_has_one_row_per_image_in_the_order_of_the_manifest(
    evaluated: tuple[dict[str, Any], Path], chest_manifest: Manifest
) -> None:
    table = pd.read_csv(evaluated[1] / "predictions.csv")
    assert table["path"].tolist() == [sample.path for sample in chest_manifest.samples]
    assert table["patient_id"].tolist() == [sample.patient_id for sample in chest_manifest.samples]
    assert table["error"].isna().all()


def test_evaluating_twice_writes_the_same(
    evaluated: tuple[dict[str, Any], Path], classifier: Classifier, chest_manifest: Manifest, tmp_path: Path
) -> None:
    evaluate(classifier, chest_manifest, tmp_path)
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / name).read_bytes() == (evaluated[1] / name).read_bytes()


def test_images_that_fail_are_counted_and_leave_the_figures_alone(
    classifier: Classifier, chest_manifest: Manifest, tmp_path: Path
) -> None:
    samples = list(chest_manifest.samples[::4])
    plain = evaluate(classifier, replace(chest_manifest, samples=tuple(samples)), tmp_path / "plain")
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(tmp_path / "flat.png")
    samples.insert(3, Sample(str(tmp_path / "missing.png"), "x", PNEUMONIA))
    samples.insert(7, Sample(str(tmp_path / "flat.png"), "y", NORMAL))
    done: list[tuple[int, int]] = []
    with_bad = evaluate(
        classifier, replace(chest_manifest, samples=tuple(samples)), tmp_path / "bad",
        progress=lambda *counts: done.append(counts),
    )  # fmt: skip
    assert (with_bad["failed"], with_bad["not_analysed"]) == (1, 2)
    assert with_bad["n"] == plain["n"] == len(samples) - 2
    assert with_bad["confusion"] == plain["confusion"]
    for name in ("auroc", "brier", "accuracy"):
        assert with_bad["metrics"][name]["value"] == pytest.approx(plain["metrics"][name]["value"], abs=1e-6)
    table = pd.read_csv(tmp_path / "bad" / "predictions.csv")
    assert len(table) == len(samples)
    assert table["probability"].isna().tolist() == [index in (3, 7) for index in range(len(samples))]
    assert "no such file" in table["error"][3]
    assert table["reason"][7].startswith("not analysed")
    assert done[-1] == (len(samples), len(samples))


def test_one_class_alone_gives_what_can_be_given(
    classifier: Classifier, chest_manifest: Manifest, tmp_path: Path
) -> None:
    normal = chest_manifest.where(lambda sample: sample.label == NORMAL)
    evaluate(classifier, normal, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["metrics"]["auroc"]["value"] is None
    assert written["metrics"]["recall"]["value"] is None
    assert 0 <= written["metrics"]["specificity"]["value"] <= 1
    assert "subtype" not in written


def test_nothing_to_score_is_an_error(classifier: Classifier, chest_manifest: Manifest, tmp_path: Path) -> None:
    missing = tuple(replace(sample, path=f"{sample.path}.gone") for sample in chest_manifest.samples[:3])
    with pytest.raises(DataError, match=r"not one of 3 images could be analysed \(.*no such file"):
        evaluate(classifier, replace(chest_manifest, samples=missing), tmp_path)
    unlabelled = tuple(replace(sample, label=None) for sample in chest_manifest.samples[:3])
    with pytest.raises(DataError, match="no image has a label"):
        evaluate(classifier, replace(chest_manifest, samples=unlabelled), tmp_path)


def test_a_probability_of_nought_is_a_probability() -> None:
    samples = [Sample("a", "1", NORMAL), Sample("b", "2", PNEUMONIA)]
    predictions = [Prediction("a", 0.0, NORMAL, 0.5), Prediction("b", 1.0, PNEUMONIA, 0.5)]
    assert score(samples, predictions, 0.5)["n"] == 2


def test_a_two_class_bundle_has_no_subtype_figures(
    make_bundle: Callable[..., Path], chest_manifest: Manifest, tmp_path: Path
) -> None:
    two = Classifier.load(make_bundle(tmp_path / "b", classes=2))
    assert "subtype" not in evaluate(two, chest_manifest, tmp_path / "out")
