"""Zones of the lungs removed one by one, and what each is worth, where the truth is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pneumoscope.explanation.counterfactual import counterfactual
from pneumoscope.explanation.perturbation import FILLS, network_input
from pneumoscope.explanation.zoned import Lungs, find_lungs, worths
from pneumoscope.images.preparation import Pixels
from pneumoscope.lungs import ZONES
from pneumoscope.predict import Classifier


@pytest.fixture
def lungs(place: np.ndarray) -> Lungs:
    """The planted place is the left middle zone; the others lie elsewhere."""
    zones = np.zeros(place.shape, np.int64)
    zones[0:15, 0:20], zones[20:35, 0:20] = 1, 2
    zones[place] = ZONES.index("left middle")
    return Lungs(zones)


@pytest.fixture
def doubting(planted: Classifier) -> Any:
    """The planted network, which without its bright place says .12, not a half."""

    def logits(pixels: Pixels) -> np.ndarray:
        return planted.runtime.logits(pixels) - np.array([[0, 2]], np.float32)

    return SimpleNamespace(runtime=SimpleNamespace(logits=logits), calibration=(0.5, 0.0), bundle=planted.bundle)


def test_only_the_zone_that_counts_lowers_the_score(doubting: Any, bright_place: Pixels, lungs: Lungs) -> None:
    found = counterfactual(doubting, network_input(doubting, bright_place), lungs, "black")
    assert found.fill == "black"
    assert set(found.without["black"]) == {"outside", "right upper", "right middle", "left middle"}
    assert found.score > 0.99
    assert found.without["black"]["left middle"] == pytest.approx(1 / (1 + np.exp(4))), (
        "calibrated: log-odds of -2 by .5"
    )
    for zone in ("outside", "right upper", "right middle"):
        assert found.without["black"][zone] == pytest.approx(found.score)
    served = len(found.without)
    for lung, score in found.together["black"].items():
        counts = lung in ("left lung", "both lungs")
        assert score == pytest.approx(found.without["black"]["left middle"] if counts else found.score)
    assert found.evaluations == 1 + len(FILLS) + (4 + 3) * served


def test_a_fill_that_keeps_the_score_is_refused_and_another_is_quoted(
    doubting: Any, bright_place: Pixels, lungs: Lungs
) -> None:
    bright = np.where(bright_place < 130, np.uint8(130), bright_place)
    found = counterfactual(doubting, bright, lungs, "mean")
    assert found.refused["mean"] > 0.5
    assert "mean" not in found.without
    assert found.fill in found.without
    assert set(found.without) | set(found.refused) == set(FILLS)
    assert found.empty["mean"] > 0.5


def test_where_no_fill_serves_nothing_is_claimed(doubting: Any, lungs: Lungs) -> None:
    dark = np.zeros((60, 60), np.uint8)  # scores little, and so does every fill of it
    found = counterfactual(doubting, dark, lungs, "shuffle")
    assert (found.fill, dict(found.without)) == (None, {})
    assert set(found.refused) == set(FILLS)
    assert found.as_json()["fill"] is None


def test_all_coalitions_give_exact_worths(linear: Classifier, bright_place: Pixels, lungs: Lungs) -> None:
    """In a linear network a zone is worth the log-odds that it carries beyond the fill, by both methods."""
    assert lungs.zones is not None
    told = worths(linear, bright_place, lungs, "black")
    assert told["evaluations"] == 2**4
    alone = {}
    for index in np.unique(lungs.zones):
        only = np.where(lungs.zones == index, bright_place, 0).astype(np.uint8)
        logits = linear.runtime.logits(np.stack([only, np.zeros_like(only)]))
        alone[ZONES[index]] = float((logits[0, 1] - logits[0, 0]) - (logits[1, 1] - logits[1, 0]))
    for name in ("lime", "shap"):
        assert told[name]["hidden"] is None
        assert told[name]["contributions"] == pytest.approx(alone, abs=1e-3)
        assert told[name]["surrogate_r2"] == pytest.approx(1, abs=1e-3)


def test_worths_that_no_linear_model_fits_are_hidden(
    linear: Classifier, bright_place: Pixels, lungs: Lungs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parity(_classifier: object, _image: object, _fill: object, _labels: object, masks: np.ndarray) -> np.ndarray:
        return (masks.sum(axis=1) % 2).astype(float)

    monkeypatch.setattr("pneumoscope.explanation.zoned.answers", parity)
    told = worths(linear, bright_place, lungs, "black")
    assert told["lime"]["surrogate_r2"] < 0.5
    assert "less than 0.5" in told["lime"]["hidden"]


def test_no_lungs_is_an_outcome_with_its_reason(linear: Classifier, bright_place: Pixels) -> None:
    assert (
        find_lungs(linear, bright_place, "no segmenter, because of a test").reason == "no segmenter, because of a test"
    )

    class Blind:
        label = "blind"

        def masks(self, canvases: Pixels) -> np.ndarray:
            return np.zeros(canvases.shape, np.float32)

    found = find_lungs(linear, bright_place, Blind())  # type: ignore[arg-type]
    assert found.zones is None
    assert str(found.reason).startswith("lungs not found: 0% of the image")
    assert found.segmenter == "blind"
