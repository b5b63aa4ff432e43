"""Decision curves: by hand, and the interval against a plain loop over patients."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.errors import DataError
from pneumoscope.statistics.benefit import decision_curve


def sample(n=240, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.5 * y - 0.75)))
    return y, p, np.repeat(np.arange(n // 3), 3)


def test_by_hand():
    y, p = [1, 1, 1, 0, 0, 0, 0, 0], [0.9, 0.6, 0.1, 0.7, 0.2, 0.2, 0.1, 0.1]
    curve = decision_curve(y, p, list("abcdefgh"), thresholds=(0.2, 0.5), resamples=20)
    assert curve.model == pytest.approx([2 / 8 - 3 / 8 * 0.25, 2 / 8 - 1 / 8])
    assert curve.treat_all == pytest.approx([3 / 8 - 5 / 8 * 0.25, 3 / 8 - 5 / 8])
    assert curve.gain == pytest.approx([2 / 8 - 3 / 8 * 0.25 - (3 / 8 - 5 / 8 * 0.25), 1 / 8])


def test_the_interval_is_that_of_a_plain_loop():
    y, p, patients = sample()
    curve = decision_curve(y, p, patients, thresholds=(0.3, 0.6), resamples=3000)
    rng, loop = np.random.default_rng(5), []
    for _ in range(1000):
        rows = (rng.integers(0, 80, 80)[:, None] * 3 + np.arange(3)).ravel()
        loop.append(
            [(y[rows] * (p[rows] >= t) - (1 - y[rows]) * (p[rows] >= t) * t / (1 - t)).mean() for t in (0.3, 0.6)]
        )
    low, high = np.quantile(loop, (0.025, 0.975), axis=0)
    assert curve.low == pytest.approx(low, abs=0.012)
    assert curve.high == pytest.approx(high, abs=0.012)
    assert (curve.gain_low <= curve.gain).all()
    assert (curve.gain <= curve.gain_high).all()


def test_treating_all_is_what_a_constant_score_does():
    y, _, patients = sample()
    curve = decision_curve(y, np.full(y.size, 0.5), patients, thresholds=(0.4, 0.6), resamples=50)
    assert curve.model[0] == pytest.approx(curve.treat_all[0])
    assert curve.model[1] == 0


@pytest.mark.parametrize("thresholds", [(0.0,), (1.0,), ()])
def test_thresholds_lie_between_nothing_and_all(thresholds):
    y, p, patients = sample()
    with pytest.raises(DataError):
        decision_curve(y, p, patients, thresholds=thresholds)
