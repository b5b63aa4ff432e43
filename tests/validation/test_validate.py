"""From images to the files a review board reads: contents, checklist, void results, the page, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pneumoscope.cli import main
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.errors import DataError
from pneumoscope.predict import Classifier
from pneumoscope.report import validation_page
from pneumoscope.validation.checklist import CLAIM, TRIPOD, resolve
from pneumoscope.validation.study import age_band, banded
from pneumoscope.validation.validate import validate


@pytest.fixture(scope="module")
def source(chests: Path, chest_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV manifest of synthetic radiographs with sites, ages, a follow-up number, and labels that mean nothing."""
    folder = tmp_path_factory.mktemp("hospital")
    rng = np.random.default_rng(0)
    (folder / "broken: by day.png").write_bytes(b"no image")
    frame = chest_manifest.frame()
    patients = sorted(set(frame["patient_id"]))
    facts = {p: (rng.choice(["A", "B"]), rng.integers(1, 80), rng.choice(["F", "M"])) for p in patients}
    for column, place in (("site", 0), ("age_years", 1), ("sex", 2)):
        frame[column] = [facts[p][place] for p in frame["patient_id"]]
    ill = dict(zip(patients, rng.permutation(len(patients)) % 2, strict=True))
    frame["label"] = [["NORMAL", "PNEUMONIA"][ill[p]] for p in frame["patient_id"]]
    frame["subtype"] = ""
    frame["follow_up"] = rng.integers(0, 40, len(frame))
    broken = {
        **frame.iloc[0].to_dict(),
        "path": str(folder / "broken: by day.png"),
        "patient_id": "broken",
        "split": "",
    }
    unlabelled = {**frame.iloc[1].to_dict(), "label": ""}
    table = pd.concat([frame, pd.DataFrame([broken, unlabelled])], ignore_index=True)
    table["split"] = ""
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def done(source: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("validation")
    classifier = Classifier.load(trained / "bundle", threads=1)
    return validate(classifier, open_source(source), out, groups=["follow_up"]), out


def test_the_file_holds_what_the_metrics_hold(done: tuple[dict[str, Any], Path]) -> None:
    found, out = done
    written = json.loads((out / "validation.json").read_text())
    assert written == json.loads(json.dumps(found))
    metrics = json.loads((out / "metrics.json").read_text())
    assert written["headline"]["metrics"]["auroc"] == metrics["metrics"]["auroc"]
    assert written["headline"]["metrics"]["recall"]["value"] == metrics["metrics"]["recall"]["value"]
    assert written["threshold"] == metrics["threshold"]
    assert {cell["site"] for cell in written["sites"]["per_site"]} == {"A", "B"}
    assert sum(cell["n"] for cell in written["sites"]["per_site"]) == written["headline"]["n"]
    assert "follow_up" in written["subgroups"]["columns"]


def test_the_flow_adds_up(done: tuple[dict[str, Any], Path]) -> None:
    flow = done[0]["flow"]
    left = {step["key"]: step for step in flow["left_out"]}
    assert flow["found"]["images"] == flow["analysed"]["images"] + sum(step["images"] for step in flow["left_out"])
    assert left["unlabelled"]["reasons"] == {"no label": 1}
    assert left["unselected"]["reasons"] == {}
    assert left["unread"]["images"] == 1
    [fault] = left["unread"]["reasons"]
    assert "by day" not in fault, "the file's name is not part of the reason, whatever it holds"
    assert flow["analysed"]["with_pneumonia"] + flow["analysed"]["normal"] == flow["analysed"]["images"]


def test_no_item_of_the_checklist_is_silent(done: tuple[dict[str, Any], Path]) -> None:
    found, out = done
    items = json.loads((out / "checklist.json").read_text())
    assert len(items) == len(CLAIM) + len(TRIPOD)
    assert [row["number"] for row in items[: len(CLAIM)]] == [str(k) for k in range(1, 45)]
    assert {row["number"].rstrip("abcdefg") for row in items[len(CLAIM) :]} == {str(k) for k in range(1, 28)}
    for row in items:
        assert row["by"] in ("measured", "human")
        assert row["figures"] if row["by"] == "measured" else row["human"]
        for figure in row["figures"]:
            assert resolve(found, figure["pointer"]) is not None
            assert figure["says"]


def test_a_figure_that_is_missing_goes_to_a_person(done: tuple[dict[str, Any], Path]) -> None:
    from pneumoscope.validation.checklist import fill

    without = {**done[0], "sample_size": {}, "failures": {}}
    rows = {(r["standard"], r["number"]): r for r in fill(without)}
    assert rows["CLAIM 2024", "39"]["by"] == "human"
    assert "/failures" in rows["CLAIM 2024", "39"]["human"]


def test_flags_point_to_their_figures(done: tuple[dict[str, Any], Path]) -> None:
    found, _ = done
    assert "no discrimination" in {flag["kind"] for flag in found["flags"]}, "the labels are random"
    for flag in found["flags"]:
        assert resolve(found, flag["pointer"]) is not None


def test_the_page_is_whole_and_says_what_the_file_says(
    done: tuple[dict[str, Any], Path], read_page: Callable[[Path], Any]
) -> None:
    found, out = done
    page, checklist = (read_page(path) for path in validation_page.write(out))
    auroc = found["headline"]["metrics"]["auroc"]
    assert f"{auroc['value']:.3f}" in page.text
    for flag in found["flags"]:
        assert flag["text"] in page.text
    assert f"{found['flow']['analysed']['images']:,} images" in page.text
    assert "27b" in checklist.text
    figures = [figure for row in found["checklist"] for figure in row["figures"]]
    assert figures
    for pointer in {figure["pointer"] for figure in figures}:
        assert checklist.text.count(pointer) >= sum(figure["pointer"] == pointer for figure in figures)


def test_a_hostile_value_stays_text(done: tuple[dict[str, Any], Path], tmp_path: Path, read_page: Any) -> None:
    text = json.dumps(done[0]).replace('"A"', '"<script>alert(1)</script>"')
    (tmp_path / "validation.json").write_text(text)
    for path in validation_page.write(tmp_path):
        read_page(path)
    (tmp_path / "validation.json").write_text("{}")
    with pytest.raises(DataError, match="lacks"):
        validation_page.write(tmp_path)


def test_images_that_the_network_learned_from_void_the_result(
    trained: Path, chests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["validate", "--data", chests, "--bundle", trained / "bundle", "--out", tmp_path / "v", "--threads", 1]
    monkeypatch.setattr("sys.argv", ["pneumoscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert "trained or tuned on" in said.err
    assert said.out.splitlines() == [str(tmp_path / "v" / "validation.html"), str(tmp_path / "v" / "checklist.html")]
    assert "Void" in (tmp_path / "v" / "validation.html").read_text()


def test_a_picture_under_both_labels_voids_the_result(source: Path, trained: Path, tmp_path: Path) -> None:
    table = pd.read_csv(source, dtype=str, keep_default_na=False)
    table = table[table["label"] != ""]
    other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}[table.iloc[0]["label"]]
    twice = pd.concat([table, pd.DataFrame([{**table.iloc[0], "label": other, "patient_id": "twin"}])])
    twice.to_csv(source.parent / "twice.csv", index=False)
    classifier = Classifier.load(trained / "bundle", threads=1)
    found = validate(classifier, open_source(source.parent / "twice.csv"), tmp_path)
    assert any("both labels" in reason for reason in found["void"])


def test_an_unknown_column_is_told_before_the_work(source: Path, trained: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(trained / "bundle", threads=1)
    with pytest.raises(DataError, match="follow_up"):
        validate(classifier, open_source(source), tmp_path / "o", groups=["folow_up"])
    assert not (tmp_path / "o").exists()


def test_bands() -> None:
    assert [age_band(a) for a in (0.5, 1, 17.9, 64, 65, 130)] == [
        "under 1", "1 to 4", "5 to 17", "40 to 64", "65 and over", "65 and over",
    ]  # fmt: skip
    numbers = [str(k) for k in range(100)]
    assert sorted(set(banded([*numbers, ""]))) == [
        "",
        "0 to under 24.75",
        "24.75 to under 49.5",
        "49.5 to under 74.25",
        "74.25 to 99",
    ]
    assert banded(["PA", "AP", ""]) == ["PA", "AP", ""]
