from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from pneumoscope.errors import DataError
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.report import run_report

HOSTILE = "<script>alert(1)</script>"
Read = Callable[[Path], Any]


def markdown(out: Path) -> tuple[str, str]:
    text = (out / "report.md").read_text(encoding="utf-8")
    return text, MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_one_run(one_report: Path, read_page: Read) -> None:
    page = read_page(one_report / "report.html")
    run = one_report.parent / "run"
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    assert f"{metrics['auroc']['value']:.3f}" in page.text
    assert f"flags {round(100 * metrics['recall']['value'])} (95 % CI" in page.text
    assert "Paired comparison" not in page.text
    assert "Validation figures." not in page.text
    assert "Synthetic images." not in page.text
    assert "12\N{NO-BREAK SPACE}min 34\N{NO-BREAK SPACE}s" in " ".join(page.words)
    for said in ("2.14.0", "rotation = 10", "a3f1" * 16):
        assert said in page.text


def test_three_runs_and_their_comparison(three_reported: Path, read_page: Read) -> None:
    page = read_page(three_reported / "report.html")
    assert "vgg16-frozen has the higher AUROC than custom-cnn." in page.text
    assert "No difference in AUROC was shown" in page.text
    assert "does not hold after correction for 3 comparisons" in page.text
    for name in ("custom-cnn", "vgg16-frozen", "efficientnet-finetuned"):
        assert name in page.text
    assert len(page.all("details")) == 6


def test_the_markdown_has_the_same_figures_and_its_pictures_exist(three_reported: Path) -> None:
    text, rendered = markdown(three_reported)
    assert RESEARCH_ONLY in text
    pictures = re.findall(r'<img src="([^"]+)"', rendered)
    assert len(pictures) > 20
    assert all((three_reported / picture).is_file() for picture in pictures)
    shown = re.findall(r'class="(?:value|ci)">([^<]+)<', (three_reported / "report.html").read_text("utf-8"))
    assert len(shown) > 50
    assert all(figure in text for figure in shown)
    tables = [len(set(map(len, rows))) for rows in _tables(text)]
    assert len(tables) >= 8
    assert set(tables) == {1}, "a row has more cells than its header"
    assert rendered.count("<table>") == len(tables)


def _tables(text: str) -> list[list[list[str]]]:
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append(re.split(r"(?<!\\)\|", line))
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def test_missing_files_are_said(run_folder: Path, tmp_path: Path, read_page: Read) -> None:
    for name in ("evaluation", "figures", "bundle"):
        shutil.rmtree(run_folder / name)
    for name in ("history.csv", "environment.json", "config.toml", "predictions.csv"):
        (run_folder / name).unlink()
    page = read_page(run_report.write([run_folder], tmp_path / "out"))
    for said in (
        "Validation figures.",
        "No examples of augmented images",
        "No history.csv",
        "No config.toml",
        "no predictions.csv, so no curve could be drawn",
        "No explanations were made for this run. Run pneumoscope explain",
        "The data are not described further here. Run pneumoscope data describe",
        "Learned from: not recorded",
        "its scores are not calibrated",
        "not recorded",
    ):
        assert said in page.text
    text, _ = markdown(tmp_path / "out")
    assert "Validation figures." in text
    assert "No history.csv" in text


def test_scores_without_calibration_are_not_called_probabilities(
    run_folder: Path, tmp_path: Path, read_page: Read, change_json: Any
) -> None:
    change_json(run_folder / "bundle" / "card.json", calibration=None)
    page = read_page(run_report.write([run_folder], tmp_path / "out"))
    assert "score (not calibrated)" in page.text
    assert "probability of pneumonia" not in page.text


def test_synthetic_images_raise_a_banner(two_reported: Path, read_page: Read) -> None:
    page = read_page(two_reported / "report.html")
    assert "Synthetic images. vgg16-frozen: trained and measured on computer-made radiographs" in page.text
    assert "does not record how many images each split holds" in page.text
    assert "Synthetic images." in markdown(two_reported)[0]


def test_a_comparison_that_is_not_there_is_said(two_reported: Path, read_page: Read) -> None:
    page = read_page(two_reported / "report.html")
    assert "The runs were not compared on the same images. Run pneumoscope compare" in page.text
    assert "not measured on the same images" not in page.text


def test_different_images_are_not_compared_line_by_line(
    two_runs: list[Path], tmp_path: Path, read_page: Read, change_json: Any
) -> None:
    change_json(two_runs[0] / "evaluation" / "metrics.json", data={"source": "b", "sha256": "b" * 64})
    page = read_page(run_report.write(two_runs, tmp_path / "out"))
    assert "The runs were not measured on the same images" in page.text


def test_validation_and_held_out_images_are_not_the_same(two_runs: list[Path], tmp_path: Path, read_page: Read) -> None:
    shutil.rmtree(two_runs[0] / "evaluation")
    page = read_page(run_report.write(two_runs, tmp_path / "out"))
    assert "The runs were not measured on the same images" in page.text
    assert "Validation figures. custom-cnn:" in page.text


def test_names_cannot_inject(
    two_runs: list[Path], comparison_folder: Path, tmp_path: Path, read_page: Read, change_json: Any
) -> None:
    name = f'{HOSTILE}|"><img src=x onerror=alert(1)>'
    data = {"source": name, "synthetic": True, "splits": {name: {"NORMAL": 1}}}
    facts = {"name": name, "title": name, "network": name, "weights": name, "strategy": name, "aspect": name}
    change_json(two_runs[0] / "run.json", **facts, limits=[name], classes=[name], data=data)
    change_json(two_runs[0] / "bundle" / "card.json", population={"description": name}, limits=[name])
    change_json(two_runs[0] / "environment.json", command=name, device=name)
    (two_runs[0] / "config.toml").write_text(name, encoding="utf-8")
    comparison = json.loads((comparison_folder / "comparison.json").read_text(encoding="utf-8"))
    comparison["pairs"][0]["a"] = name
    change_json(comparison_folder / "comparison.json", pairs=comparison["pairs"])
    for runs in (two_runs, two_runs[:1]):
        written = run_report.write(runs, tmp_path / "out", comparison_folder)
        read_page(written)  # asserts: no script element, no handler, nothing fetched
        assert "<script" not in written.read_text(encoding="utf-8")
        text, rendered = markdown(tmp_path / "out")
        assert "<script" not in rendered
        assert "<img src=x" not in rendered
        assert {len(set(map(len, rows))) for rows in _tables(text)} == {1}


def test_the_data_page_is_linked(one_report: Path, read_page: Read, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no HTML page"):
        run_report.write([one_report.parent / "run"], tmp_path / "out", data=tmp_path)
    page = read_page(one_report / "report.html")
    assert "../described/index.html" in [link.get("href") for link in page.all("a")]


def test_runs_need_names_of_their_own(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two runs are named efficientnet-lite0"):
        run_report.write([run_folder, run_folder], tmp_path / "out")
    with pytest.raises(DataError, match="no run was given"):
        run_report.write([], tmp_path / "out")


def test_the_same_files_give_the_same_page(one_report: Path) -> None:
    first = (one_report / "report.html").read_bytes()
    around = one_report.parent
    path = run_report.write([around / "run"], one_report, data=around / "described")
    assert path == one_report / "report.html"
    assert path.read_bytes() == first


def test_one_sheet_of_augmentation_is_shown_once(two_reported: Path, read_page: Read) -> None:
    page = read_page(two_reported / "report.html")
    sheets = [image for image in page.all("img") if image["alt"] == "Sheet of augmented training images"]
    assert len(sheets) == 1
    assert len(list((two_reported / "figures").glob("augmentation-*.png"))) == 1
