"""Infidelity on networks whose reasons are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pneumoscope.explanation.faithfulness import infidelity, with_infidelity
from pneumoscope.explanation.method import finish
from pneumoscope.explanation.perturbation import log_odds, network_input
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier


def truth(coefficients: np.ndarray, image: Pixels) -> np.ndarray:
    """What each pixel of the linear network adds beyond black."""
    weight = np.kron(coefficients, np.ones((10, 10))) / 100
    return (weight * image / 255).astype(np.float32)


def test_the_true_map_of_a_linear_network_has_none_and_its_negative_all(
    linear: Classifier, coefficients: np.ndarray, bright_place: Pixels
) -> None:
    image = network_input(linear, bright_place)
    own = truth(coefficients, image)

    def ask(signed: np.ndarray) -> float:
        return infidelity(lambda images: log_odds(linear, images), image, np.zeros_like(image), signed)

    assert ask(own) == pytest.approx(0, abs=1e-4)
    assert ask(1000 * own) == pytest.approx(0, abs=1e-4), "the unit of a map is free"
    assert ask(-own) == pytest.approx(1), "but not its sign"
    assert ask(np.zeros_like(own)) == 1
    assert 0.2 < ask(np.random.default_rng(0).random(own.shape).astype(np.float32)) <= 1


def test_a_score_that_nothing_changes_is_foretold(bright_place: Pixels) -> None:
    flat = infidelity(lambda images: np.ones(len(images)), bright_place, bright_place, np.ones((60, 60), np.float32))
    assert flat == 0


def test_a_map_carries_it_with_the_answers_that_it_took(
    linear: Classifier, coefficients: np.ndarray, bright_place: Pixels
) -> None:
    heatmap = finish(truth(coefficients, network_input(linear, bright_place)), 0.0, method="own", layer="input")
    found = with_infidelity(heatmap, linear, bright_place, fill="black")
    assert found.infidelity == pytest.approx(0, abs=1e-4)
    assert found.evaluations == heatmap.evaluations + 51
    assert found.facts()["infidelity"] == found.infidelity
    blank = replace(heatmap, verdict="blank")
    assert with_infidelity(blank, linear, bright_place, fill="black") is blank
