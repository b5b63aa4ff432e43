"""Targets that other networks have a share in, by hand, and what is wrong with a teacher's file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.errors import DataError, StorageError
from pneumoscope.networks.transforms import prepare
from pneumoscope.predict import Classifier
from pneumoscope.training.teachers import Ensemble, shared_target, soft_targets

ALLOWED = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]], bool)
PATHS = ["a", "b", "c", "d"]


def write(folder: Path, name: str = "teacher.csv", **columns: list[object]) -> str:
    path = folder / name
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


def test_label_and_teacher_share_the_target_by_hand(tmp_path: Path) -> None:
    file = write(tmp_path, path=["b", "c", "a"], probability=[0.9, 0.6, 0.2], viral=[0.25, 0.25, 0.5])
    found = soft_targets(PATHS, ALLOWED, [file], 0.5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], [0.5 + 0.4, 0.05, 0.05], atol=1e-6)
    np.testing.assert_allclose(found[1], [0.05, 0.5 + 0.9 * 0.75 / 2, 0.9 * 0.25 / 2], atol=1e-6)
    # The subtype is open: the label's pneumonia is divided as the teacher does, three to one.
    np.testing.assert_allclose(found[2], [0.2, 0.375 + 0.225, 0.125 + 0.075], atol=1e-6)
    assert found[3].tolist() == [0, 0, 1], "nobody knows d: its label stays alone"


def test_teachers_and_rows_are_averaged_in_log_odds(tmp_path: Path) -> None:
    one = write(tmp_path, "one.csv", path=["a", "a"], probability=[0.5, 0.9])
    two = write(tmp_path, "two.csv", path=["a"], probability=[0.2])
    odds = np.mean([np.log(p / (1 - p)) for p in (0.5, 0.9, 0.2)])
    found = soft_targets(["a"], np.array([[True, False]]), [one, two], 1.0)
    np.testing.assert_allclose(found, [[1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))]], atol=1e-6)


def test_a_certain_teacher_stays_finite_and_unanalysed_images_are_unknown(tmp_path: Path) -> None:
    file = write(tmp_path, path=["a", "b"], probability=[0.0, None], viral=[1.0, None])
    found = soft_targets(PATHS, ALLOWED, [file], 0.5)
    assert np.isfinite(found).all()
    assert found[1].tolist() == [0, 1, 0]


@settings(max_examples=50, deadline=None)
@given(
    p=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    viral=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    share=st.floats(0.01, 1),
)
def test_what_a_teacher_knows_is_a_distribution(
    tmp_path_factory: pytest.TempPathFactory, p: list[float], viral: list[float], share: float
) -> None:
    file = write(tmp_path_factory.mktemp("t"), path=["a", "b", "c"], probability=p, viral=viral)
    found = soft_targets(PATHS, ALLOWED, [file], share)[:3]
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a"], "p": [0.5]}, "no probability and no viral column"),
        ({"path": ["a"], "probability": [0.5], "viral": [None]}, "no viral column to teach 3 classes"),
        ({"path": ["z"], "probability": [0.5], "viral": [0.5]}, "says nothing about the images"),
    ],
)
def test_an_unfit_file_is_named(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        soft_targets(PATHS, ALLOWED, [write(tmp_path, **columns)], 0.5)
    assert "teacher.csv" in str(caught.value)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.csv"):
        soft_targets(PATHS, ALLOWED, [str(tmp_path / "none.csv")], 0.5)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"empty\.csv.*no CSV|empty\.csv.*not a CSV"):
        soft_targets(PATHS, ALLOWED, [str(tmp_path / "empty.csv")], 0.5)


# --- networks that judge as the student learns --------------------------------------------------------------


def test_bundles_judge_the_image_that_the_student_sees(trained: Path) -> None:
    """In another normalisation and size the opinion is that of the bundle about the same pixels."""
    classifier = Classifier.load(trained / "bundle")
    own = classifier.bundle.preparation
    student = replace(own, mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    canvases = np.random.default_rng(0).integers(0, 255, (5, own.canvas, own.canvas), dtype=np.uint8)
    name = str(trained / "bundle")
    opinion = Ensemble([name, name], 3, student)(prepare(torch.from_numpy(canvases), student))
    expected = torch.from_numpy(classifier.logits(canvases)).softmax(dim=1)
    torch.testing.assert_close(opinion, expected, rtol=0, atol=2e-3)
    larger = Ensemble([name], 3, student)(torch.rand(2, 3, 2 * own.size, 2 * own.size))
    assert larger.sum(dim=1) == pytest.approx(1, abs=1e-5)


def test_a_bundle_with_other_classes_is_refused(trained: Path) -> None:
    preparation = Classifier.load(trained / "bundle").bundle.preparation
    with pytest.raises(DataError, match="does not teach 2 classes"):
        Ensemble([str(trained / "bundle")], 2, preparation)


def test_label_and_opinion_share_the_target() -> None:
    allowed = torch.tensor([[True, False, False], [False, True, True]])
    opinion = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.375, 0.125]])
    target = shared_target(allowed, opinion, 0.5)
    torch.testing.assert_close(target[0], torch.tensor([0.6, 0.2, 0.2]))
    torch.testing.assert_close(target[1], torch.tensor([0.25, 0.5625, 0.1875]))
