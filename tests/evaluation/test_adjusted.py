"""Figures that the frame and the machine cannot lift."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.evaluation.adjusted import adjusted

COUNT = 240
SIDE = 48


@pytest.fixture(scope="module")
def study() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, classes, and an exposure that agrees with the class in four of five."""
    rng = np.random.default_rng(0)
    positive = np.arange(COUNT) % 2 == 0
    bright = np.where(rng.random(COUNT) < 0.8, positive, ~positive)
    images = np.where(bright, 150, 90)[:, None, None] + rng.normal(0, 15, (COUNT, SIDE, SIDE))
    return images.clip(0, 255).astype(np.uint8), positive, bright


def figures(study: tuple[np.ndarray, np.ndarray, np.ndarray], score: np.ndarray) -> dict:
    images, positive, _ = study
    patients = [f"p{index}" for index in range(COUNT)]
    found = adjusted(images, None, positive, score, patients, 0.5)
    assert found is not None
    return found


def test_a_score_that_reads_the_exposure_loses_its_area(study: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    bright = study[2]
    of_the_exposure = figures(study, 0.2 + 0.6 * bright + rng.uniform(-0.1, 0.1, COUNT))
    assert of_the_exposure["shortcut_auroc"]["value"] > 0.6
    assert of_the_exposure["auroc"]["value"] < 0.7  # .8 without weights
    assert of_the_exposure["conflict_specificity"]["value"] < 0.6  # .8 of all
    assert of_the_exposure["conflict_recall"]["value"] < 0.6


def test_a_score_that_reads_the_disease_keeps_it(study: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    _, positive, _ = study
    of_the_disease = figures(study, 0.2 + 0.6 * positive + rng.uniform(-0.25, 0.25, COUNT))
    assert of_the_disease["auroc"]["value"] > 0.95
    assert of_the_disease["conflict_specificity"]["value"] > 0.8
    assert 0.3 * COUNT < of_the_disease["effective_n"] <= COUNT


def test_few_patients_say_nothing(study: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    images, positive, _ = study
    patients = [f"p{index % 40}" for index in range(COUNT)]
    assert adjusted(images, None, positive, positive.astype(float), patients, 0.5) is None
