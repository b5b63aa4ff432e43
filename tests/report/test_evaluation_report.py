from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from pneumoscope.report import evaluation_report

HOSTILE = "<script>alert(1)</script>"


def test_the_page_shows_the_figures_of_the_file(evaluation_folder: Path, read_page: Callable[[Path], Any]) -> None:
    metrics = json.loads((evaluation_folder / "metrics.json").read_text(encoding="utf-8"))
    path = evaluation_report.write(evaluation_folder, "net")
    assert path == evaluation_folder / "report.html"
    page = read_page(path)
    for name in ("accuracy", "recall", "auroc"):
        value = metrics["metrics"][name]
        assert f"{value['value']:.3f} {value['ci95'][0]:.3f}–{value['ci95'][1]:.3f}" in page.text
    assert "no interval" in page.text
    assert "398 radiographs of 200 patients" in page.text
    assert {file.stem for file in (evaluation_folder / "figures").glob("*.svg")} == {
        "roc",
        "precision_recall",
        "calibration",
        "confusion",
        "scores",
    }
    assert len(page.all("svg")) == 5


def test_the_worst_errors_are_the_most_confident_ones(evaluation_folder: Path, tmp_path: Path) -> None:
    evaluation = evaluation_report.read_evaluation(evaluation_folder)
    table = pd.read_csv(evaluation_folder / "predictions.csv")
    missed, alarms = evaluation_report.worst_errors(evaluation, 3)
    for group, label in ((missed, "PNEUMONIA"), (alarms, "NORMAL")):
        scores = table[(table["label"] == label) & (table["predicted"] != label) & table["error"].isna()]["probability"]
        scores = scores.sort_values(ascending=label == "PNEUMONIA")
        assert group["total"] == len(scores)
        assert [image["score"] for image in group["images"]] == pytest.approx(scores.head(3).tolist())
        assert all(image["uri"] for image in group["images"])


def test_images_without_an_answer_are_listed_with_the_reason(
    evaluation_folder: Path, read_page: Callable[[Path], Any]
) -> None:
    evaluation = evaluation_report.read_evaluation(evaluation_folder)
    assert [row[1:] for row in evaluation_report.not_analysed(evaluation)] == [
        ("not read", "the image is damaged (truncated)"),
        ("abstained", "not a frontal chest radiograph"),
    ]
    page = read_page(evaluation_report.write(evaluation_folder, "net"))
    assert "the image is damaged (truncated)" in page.text


def test_missing_files_are_said(evaluation_folder: Path, read_page: Callable[[Path], Any], change_json: Any) -> None:
    (evaluation_folder / "predictions.csv").unlink()
    (evaluation_folder / "explanations" / "index.json").unlink()
    change_json(evaluation_folder / "metrics.json", subtype=None)
    page = read_page(evaluation_report.write(evaluation_folder, "net"))
    assert "no predictions.csv, so no curve could be drawn" in page.text
    assert "wrong calls cannot be shown" in page.text
    assert "No explanations were made for this run. Run pneumoscope explain ." in page.text
    assert "holds no figures by subtype" in page.text
    assert "Not analysed: 2; predictions.csv does not say which" in page.text
    assert len(page.all("svg")) == 2  # the confusion matrix and the reliability need the metrics alone


def test_reliability_is_drawn_from_the_metrics_or_not_at_all(
    evaluation_folder: Path, read_page: Callable[[Path], Any], change_json: Any
) -> None:
    page = read_page(evaluation_report.write(evaluation_folder, "net"))
    assert "with 95 % intervals by patient" in page.text
    assert "treat images as independent" not in page.text
    (evaluation_folder / "figures" / "calibration.svg").unlink()
    change_json(evaluation_folder / "metrics.json", reliability=None)  # written by an earlier version
    page = read_page(evaluation_report.write(evaluation_folder, "net"))
    assert "no reliability by patient, so none is drawn: run pneumoscope evaluate again" in page.text
    assert not (evaluation_folder / "figures" / "calibration.svg").exists()


def test_images_that_are_gone_are_said(
    evaluation_folder: Path, read_page: Callable[[Path], Any], change_json: Any
) -> None:
    change_json(evaluation_folder / "metrics.json", data={"source": "/nowhere", "sha256": "0"})
    page = read_page(evaluation_report.write(evaluation_folder, "net"))
    assert "The image cannot be shown here" in page.text


@pytest.mark.parametrize("gone", ["0.png", "0-overlay.png"])
def test_an_overlay_is_never_shown_alone(evaluation_folder: Path, read_page: Callable[[Path], Any], gone: str) -> None:
    before = read_page(evaluation_report.write(evaluation_folder, "net"))
    (evaluation_folder / "explanations" / gone).unlink()
    after = read_page(evaluation_report.write(evaluation_folder, "net"))
    assert len(before.all("img")) - len(after.all("img")) == 2
    assert "an overlay is never shown alone" in after.text


def test_one_class_has_no_curve(evaluation_folder: Path, read_page: Callable[[Path], Any]) -> None:
    path = evaluation_folder / "predictions.csv"
    table = pd.read_csv(path)
    table[table["label"] == "NORMAL"].to_csv(path, index=False)
    page = read_page(evaluation_report.write(evaluation_folder, "net"))
    assert "not of both classes" in page.text
    assert "the files do not agree" in page.text


def test_names_cannot_inject(evaluation_folder: Path, read_page: Callable[[Path], Any], change_json: Any) -> None:
    path = evaluation_folder / "predictions.csv"
    table = pd.read_csv(path, keep_default_na=False)
    table["path"] = [f"{HOSTILE}{i}" for i in range(len(table))]
    table.loc[3, "error"] = HOSTILE
    table.to_csv(path, index=False)
    names = {"bundle": {"name": HOSTILE}, "data": {"source": HOSTILE}, "operating_point": HOSTILE}
    change_json(evaluation_folder / "metrics.json", **names, subtype={HOSTILE: {"value": 0.5, "method": HOSTILE}})
    index = evaluation_folder / "explanations" / "index.json"
    entries = json.loads(index.read_text(encoding="utf-8"))
    for key in ("path", "case", "method", "layer", "verdict", "label"):
        entries[0][key] = f'">{HOSTILE}'
    index.write_text(json.dumps(entries), encoding="utf-8")
    written = evaluation_report.write(evaluation_folder, f'">{HOSTILE}')
    page = read_page(written)  # asserts that there is no script element
    assert page.text.count(HOSTILE) > 10
    assert "<script" not in written.read_text(encoding="utf-8")
    assert all("<script" not in file.read_text(encoding="utf-8") for file in evaluation_folder.glob("figures/*.svg"))


def test_the_same_files_give_the_same_page(evaluation_folder: Path) -> None:
    first = evaluation_report.write(evaluation_folder, "net").read_bytes()
    assert evaluation_report.write(evaluation_folder, "net").read_bytes() == first


def test_the_bare_minimum_is_enough(tmp_path: Path, read_page: Callable[[Path], Any]) -> None:
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    page = read_page(evaluation_report.write(tmp_path, "net"))
    assert "not available" in page.text


def test_figures_under_stress_stand_in_a_table_with_a_picture(
    evaluation_folder: Path, read_page: Callable[[Path], Any]
) -> None:
    def figures(value: float) -> dict[str, Any]:
        estimate = {"value": value, "ci95": [value - 0.02, value + 0.02], "method": "by hand"}
        return dict.fromkeys(evaluation_report.STRESSED, estimate)

    page = read_page(evaluation_report.write(evaluation_folder, "net"))
    assert "pneumoscope evaluate --stress 4" in page.text
    adjusted = {
        "shortcut_auroc": figures(0.941)["auroc"],
        "auroc": figures(0.877)["auroc"],
        "effective_n": 61.4,
        "conflict_n": 33,
        "conflict_recall": None,
        "conflict_specificity": figures(0.712)["auroc"],
    }
    section = {"draws": 2, "n": 398, "none": figures(0.951), "all": figures(0.823), "adjusted": adjusted}
    path = evaluation_folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**metrics, "stressed": section}), encoding="utf-8")
    Image.new("L", (60, 20), 90).save(evaluation_folder / "figures" / "stress.png")
    page = read_page(evaluation_report.write(evaluation_folder, "net"))
    assert "all of them" in page.text
    assert page.text.count("0.823 0.803–0.843") == len(evaluation_report.STRESSED)
    assert "that is worth 61 images" in page.text
    assert "the 33 images of which frame and machine say the wrong class: Specificity 0.712" in page.text
    assert "as they are, then all of them" in page.text
