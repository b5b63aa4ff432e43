"""Fewer answers, fewer errors: checked against a loop that sorts and counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.errors import DataError
from pneumoscope.statistics.selective import COVERAGE, POINTS, certainty, risk_coverage, selective


@given(st.integers(2, 60), st.integers(0, 10_000))
def test_accuracy_and_area_are_those_of_a_loop(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    right, sure = rng.integers(0, 2, n).astype(float), rng.permutation(n).astype(float)
    found = risk_coverage(right, sure, np.ones((1, n)), [k / n for k in range(1, n + 1)])[0]
    ordered = right[np.argsort(-sure)]
    by_loop = [ordered[:k].mean() for k in range(1, n + 1)]
    np.testing.assert_allclose(found[:-1], by_loop)
    assert found[-1] == pytest.approx(1 - np.mean(by_loop))


@given(st.integers(0, 10_000))
def test_a_weight_of_two_is_the_image_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    right, sure = rng.integers(0, 2, 20).astype(float), rng.integers(0, 6, 20).astype(float)
    weights = rng.integers(0, 3, 20)
    weights[0] = 1
    twice = np.repeat(np.arange(20), weights)
    a = risk_coverage(right, sure, weights[None].astype(float), POINTS)
    b = risk_coverage(right[twice], sure[twice], np.ones((1, twice.size)), POINTS)
    np.testing.assert_allclose(a, b)


def test_equally_sure_images_do_not_depend_on_their_order() -> None:
    right = np.array([1.0, 0.0, 1.0, 0.0])
    a, b = (risk_coverage(order, np.zeros(4), np.ones((1, 4)), POINTS) for order in (right, right[::-1]))
    np.testing.assert_allclose(a, b)
    np.testing.assert_allclose(a, [[0.5] * 11 + [0.5]])


def test_errors_near_the_threshold_are_left_out_first() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 2000)
    y = rng.uniform(0, 1, 2000) < p
    found = selective(y, p, [str(i) for i in range(2000)], 0.5, resamples=200)
    accuracy = [estimate.value for _, estimate in found.curve]
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[-1] == pytest.approx(((p >= 0.5) == y).mean())
    assert found.gain.low > 0
    assert found.gain.value == pytest.approx(accuracy[POINTS.index(COVERAGE)] - accuracy[-1])
    assert found.best_aurc < found.aurc.value < 1 - accuracy[-1]


def test_a_score_that_knows_nothing_gains_nothing() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 1000)
    found = selective(y, rng.uniform(0, 1, 1000), [str(i // 2) for i in range(1000)], 0.5, resamples=200)
    assert found.gain.low < 0 < found.gain.high


def test_certainty_is_symmetric_in_log_odds_about_the_threshold() -> None:
    np.testing.assert_allclose(certainty([0.8, 0.5, 0.2, 1.0], 0.5)[:3], [np.log(4), 0, np.log(4)])
    assert np.isfinite(certainty([0.0, 1.0], 0.9)).all()
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        selective([0, 1], [0.5, 1.5], ["a", "b"], 0.5)
