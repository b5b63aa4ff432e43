from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pneumoscope.errors import DataError
from pneumoscope.report import folders


def test_a_folder_that_is_no_run_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json: is missing; name a folder that `pneumoscope train` wrote"):
        folders.read_run(tmp_path)
    with pytest.raises(DataError, match=r"metrics\.json: is missing"):
        folders.read_evaluation(tmp_path)
    with pytest.raises(DataError, match=r"comparison\.json: is missing"):
        folders.read_comparison(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "{"])
def test_damaged_json_is_a_data_error(evaluation_folder: Path, text: str) -> None:
    (evaluation_folder / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.json"):
        folders.read_evaluation(evaluation_folder)


@pytest.mark.parametrize("text", ["", "path,label\na,NORMAL\n", 'path,label\n"a,b\n'])
def test_damaged_predictions_are_a_data_error(evaluation_folder: Path, text: str) -> None:
    (evaluation_folder / "predictions.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"predictions\.csv"):
        folders.read_evaluation(evaluation_folder)


def test_only_images_with_an_answer_are_analysed(evaluation_folder: Path) -> None:
    evaluation = folders.read_evaluation(evaluation_folder)
    rows = evaluation.analysed()
    assert len(rows) == 398
    assert evaluation.predictions is not None
    left_out = set(evaluation.predictions.index) - set(rows.index)
    assert left_out == {3, 4}


@pytest.mark.parametrize(
    ("written", "read"), [("True", True), ("1", True), ("False", False), ("", False), ("0", False)]
)
def test_abstained_is_read_as_written(tmp_path: Path, written: str, read: bool) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(f"path,label,probability,predicted,abstained\nNA,NORMAL,0.2,NORMAL,{written}\n", encoding="utf-8")
    table = folders.read_predictions(path)
    assert table is not None
    assert table["abstained"].tolist() == [read]
    assert table["path"].tolist() == ["NA"]
    assert table["error"].tolist() == [""]


def test_numbers_as_patients_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    rows = {
        "path": ["a"],
        "patient_id": ["007"],
        "label": ["NORMAL"],
        "probability": [0.2],
        "predicted": ["NORMAL"],
    }
    pd.DataFrame(rows).to_csv(path, index=False)
    table = folders.read_predictions(path)
    assert table is not None
    assert table["patient_id"].tolist() == ["007"]


def test_one_class_gives_no_curve(evaluation_folder: Path) -> None:
    path = evaluation_folder / "predictions.csv"
    table = pd.read_csv(path)
    table[table["label"] == "NORMAL"].to_csv(path, index=False)
    assert folders.read_evaluation(evaluation_folder).scored("net") is None


def test_an_index_reaches_only_the_files_beside_it(evaluation_folder: Path) -> None:
    secret = evaluation_folder / "secret.png"
    secret.write_bytes((evaluation_folder / "explanations" / "0.png").read_bytes())
    index = evaluation_folder / "explanations" / "index.json"
    index.write_text('[{"image": "../secret.png", "overlay": "/etc/passwd"}]', encoding="utf-8")
    (item,) = folders.read_evaluation(evaluation_folder).explanations
    assert item.image.parent == item.overlay.parent == evaluation_folder / "explanations"
    assert not item.image.exists()


def test_a_thumbnail_is_looked_for_below_the_source(tmp_path: Path, evaluation_folder: Path) -> None:
    evaluation = folders.read_evaluation(evaluation_folder)
    rows = evaluation.analysed()
    wrong = rows[rows["label"] != rows["predicted"]]["path"].iloc[0]
    assert folders.thumbnail(wrong, str(tmp_path / "data"))[0].startswith("data:image/jpeg;base64,")
    uri, why = folders.thumbnail(wrong, None)
    assert uri == ""
    assert why
