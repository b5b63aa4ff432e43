"""Two evaluations of the same images, compared from their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from pneumoscope.errors import DataError
from pneumoscope.evaluation.pairs import compare_folders
from pneumoscope.records import NORMAL, PNEUMONIA

N = 60


def write(folder: Path, seed: int, signal: float, **changes: Any) -> Path:
    """An evaluation of 60 patients whose score carries `signal`."""
    rng = np.random.default_rng(seed)
    sick = np.arange(N) % 3 > 0
    p = 1 / (1 + np.exp(-(signal * (sick - 0.5) + rng.normal(size=N))))
    table = pd.DataFrame(
        {
            "path": [f"{i:03d}.png" for i in range(N)],
            "patient_id": [f"p{i}" for i in range(N)],
            "label": np.where(sick, PNEUMONIA, NORMAL),
            "probability": p,
            "threshold": 0.5,
        }
    ).assign(**changes)
    folder.mkdir(parents=True)
    table.to_csv(folder / "predictions.csv", index=False)
    metrics = {"metrics": {"auroc": {"value": 0.5}}, "threshold": 0.5, "bundle": {"name": folder.name, "sha256": "0"}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / name, seed, signal) for name, seed, signal in (("a", 1, 3.0), ("b", 2, 1.0), ("c", 3, 0.2))
    ]


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv")


def test_every_pair_is_compared_and_written(three: list[Path], tmp_path: Path) -> None:
    result = compare_folders(three, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written == result
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [entry["name"] for entry in result["evaluations"]] == ["a", "b", "c"]
    assert (result["n"], result["n_patients"], result["left_out"]) == (N, N, 0)


def test_differences_and_mcnemar_are_those_of_other_libraries(three: list[Path], tmp_path: Path) -> None:
    for pair in compare_folders(three, tmp_path / "out")["pairs"]:
        a, b = (read(tmp_path / pair[side]) for side in "ab")
        y = a["label"] == PNEUMONIA
        expected = roc_auc_score(y, a["probability"]) - roc_auc_score(y, b["probability"])
        assert pair["auroc"]["difference"]["value"] == pytest.approx(expected)
        low, high = pair["auroc"]["difference"]["ci95"]
        assert low < expected < high
        right_a, right_b = ((table["probability"] >= 0.5) == y for table in (a, b))
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        assert (pair["mcnemar"]["only_a_right"], pair["mcnemar"]["only_b_right"]) == (only_a, only_b)
        exact = mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue
        mid = exact - _point(only_a, only_b)
        assert min(abs(pair["mcnemar"]["p"] - exact), abs(pair["mcnemar"]["p"] - mid)) < 1e-9
        assert pair["accuracy"]["difference"]["value"] == pytest.approx(right_a.mean() - right_b.mean())


def _point(a: int, b: int) -> float:
    """What the mid-p variant takes off: the probability of the observed table itself."""
    from scipy.stats import binom

    return float(binom.pmf(min(a, b), a + b, 0.5))


def test_p_values_are_adjusted_by_holm_over_the_pairs(three: list[Path], tmp_path: Path) -> None:
    pairs = compare_folders(three, tmp_path / "out")["pairs"]
    for test in ("auroc", "mcnemar"):
        raw = [pair[test]["p"] for pair in pairs]
        adjusted = multipletests(raw, method="holm")[1]
        assert [pair[test]["p_holm"] for pair in pairs] == pytest.approx(adjusted.tolist())
        assert any(pair[test]["p_holm"] > pair[test]["p"] for pair in pairs)


def test_the_order_of_the_rows_does_not_matter(three: list[Path], tmp_path: Path) -> None:
    before = compare_folders(three[:2], tmp_path / "one")
    shuffled = read(three[1]).sample(frac=1, random_state=0)
    shuffled.to_csv(three[1] / "predictions.csv", index=False)
    assert compare_folders(three[:2], tmp_path / "two") == before


def test_an_image_that_one_left_out_is_left_out_for_all(three: list[Path], tmp_path: Path) -> None:
    table = read(three[1])
    table.loc[[4, 9], "probability"] = np.nan
    table.to_csv(three[1] / "predictions.csv", index=False)
    result = compare_folders(three, tmp_path / "out")
    assert (result["n"], result["left_out"]) == (N - 2, 2)
    kept = [i for i in range(N) if i not in (4, 9)]
    a, c = read(three[0]).iloc[kept], read(three[2]).iloc[kept]
    y = a["label"] == PNEUMONIA
    expected = roc_auc_score(y, a["probability"]) - roc_auc_score(y, c["probability"])
    assert result["pairs"][1]["auroc"]["difference"]["value"] == pytest.approx(expected)


def test_images_of_one_patient_count_as_one_patient(tmp_path: Path) -> None:
    patients = [f"p{i // 3}" for i in range(N)]
    folders = [write(tmp_path / name, seed, 2.0, patient_id=patients) for name, seed in (("a", 1), ("b", 2))]
    assert compare_folders(folders, tmp_path / "out")["n_patients"] == N // 3


def test_names_are_those_of_runs_or_tell_the_folders_apart(tmp_path: Path) -> None:
    runs = [write(tmp_path / name / "evaluation", seed, 2.0) for name, seed in (("lite0", 1), ("vgg", 2))]
    names = [entry["name"] for entry in compare_folders(runs, tmp_path / "out")["evaluations"]]
    assert names == ["lite0", "vgg"]
    same = [write(tmp_path / name / "x", seed, 2.0) for name, seed in (("1", 1), ("2", 2))]
    names = [entry["name"] for entry in compare_folders(same, tmp_path / "out2")["evaluations"]]
    assert len(set(names)) == 2


# --- what cannot be compared ------------------------------------------------------------------------------


def test_other_images_are_refused(three: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other", 5, 1.0, path=[f"x{i}.png" for i in range(N)])
    with pytest.raises(DataError, match="other images") as caught:
        compare_folders([three[0], other], tmp_path / "out")
    assert str(other) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_labels_are_refused(three: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other", 5, 1.0, label=[PNEUMONIA, NORMAL] * (N // 2))
    with pytest.raises(DataError, match="other images"):
        compare_folders([three[0], other], tmp_path / "out")


def test_fewer_images_are_refused(three: list[Path], tmp_path: Path) -> None:
    read(three[1]).head(50).to_csv(three[1] / "predictions.csv", index=False)
    with pytest.raises(DataError, match="other images"):
        compare_folders(three[:2], tmp_path / "out")


def test_one_evaluation_is_no_comparison(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two"):
        compare_folders(three[:1], tmp_path / "out")


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", 'path,"unclosed\n'])
def test_a_damaged_table_is_an_error(three: list[Path], tmp_path: Path, content: str) -> None:
    (three[1] / "predictions.csv").write_text(content)
    with pytest.raises(DataError, match="evaluate again"):
        compare_folders(three[:2], tmp_path / "out")


def test_a_folder_without_files_is_an_error(three: list[Path], tmp_path: Path) -> None:
    (three[1] / "metrics.json").write_text('{"n": 60}')
    with pytest.raises(DataError, match=r"metrics\.json: lacks 'metrics'; evaluate again"):
        compare_folders(three[:2], tmp_path / "out")
    (three[1] / "metrics.json").unlink()
    with pytest.raises(DataError, match=r"holds no metrics\.json"):
        compare_folders(three[:2], tmp_path / "out")
    (three[0] / "predictions.csv").unlink()
    with pytest.raises(DataError, match=r"holds no predictions\.csv"):
        compare_folders(three[:2], tmp_path / "out")


def _with_overlap(folder: Path, **overlap: Any) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "overlap": {"checked": True, "share": 1, **overlap}}))


def test_images_that_tuned_a_network_are_refused_unless_asked(three: list[Path], tmp_path: Path) -> None:
    _with_overlap(three[1], images=N, parts={"val": N})
    with pytest.raises(DataError, match="trained or tuned its network") as error:
        compare_folders(three, tmp_path / "out")
    assert str(three[1]) in str(error.value)
    result = compare_folders(three, tmp_path / "out", anyway=True)
    assert [doubt["dir"] for doubt in result["doubts"]] == [str(three[1])]
    _with_overlap(three[1], images=N, parts={"test": N})
    assert compare_folders(three, tmp_path / "out")["doubts"] == []


def test_the_validation_of_an_older_run_is_refused(three: list[Path], tmp_path: Path) -> None:
    (three[0] / "run.json").write_text("{}")
    with pytest.raises(DataError, match="chose the epoch"):
        compare_folders(three, tmp_path / "out")


def test_one_evaluation_twice_is_refused_unless_asked(three: list[Path], tmp_path: Path) -> None:
    for folders in ([three[0], three[0]], [three[0], three[0].parent / "." / "a"]):
        with pytest.raises(DataError, match="same predictions"):
            compare_folders(folders, tmp_path / "out")
    result = compare_folders([three[0], three[0]], tmp_path / "out", anyway=True)
    assert result["pairs"][0]["auroc"]["difference"]["value"] == 0
