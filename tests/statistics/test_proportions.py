"""Shares of images and their interval, against statsmodels and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from pneumoscope.statistics.proportions import proportion, wilson


def test_wilson_is_the_published_interval():
    for count, n in ((0, 10), (10, 10), (7, 31), (499, 500)):
        assert wilson(count / n, n) == pytest.approx(proportion_confint(count, n, method="wilson"), abs=1e-12)


def test_a_proportion_counts_patients_where_their_images_agree():
    rng = np.random.default_rng(4)
    success = rng.random(50) < 0.7
    alone = proportion(success, np.arange(50))
    copied = proportion(np.repeat(success, 4), np.repeat(np.arange(50), 4))
    assert (alone.low, alone.high) == pytest.approx(wilson(success.mean(), 50), rel=0.02)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    perfect = proportion(np.ones(80, dtype=bool), np.repeat(np.arange(20), 4))
    assert (perfect.low, perfect.high) == pytest.approx(wilson(1.0, 20))
    assert np.isnan(proportion(np.array([], dtype=bool), np.array([], dtype=int)).value)


def test_the_clustered_proportion_covers():
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(150), 3)
    truth, covered, naive = 0.9, 0, 0
    for _ in range(1000):
        shared, own = rng.normal(size=150), rng.normal(size=450)
        success = np.sqrt(0.8) * shared[patients] + np.sqrt(0.2) * own < stats.norm.ppf(truth)
        found, plain = proportion(success, patients), wilson(float(success.mean()), 450)
        covered += found.low <= truth <= found.high
        naive += plain[0] <= truth <= plain[1]
    assert 930 <= covered <= 970
    assert naive < 850


def test_images_that_disagree_within_a_patient_are_not_trusted_to_add_certainty():
    opposed = proportion(np.tile([True, False], 30), np.repeat(np.arange(30), 2))
    assert (opposed.low, opposed.high) == pytest.approx(wilson(0.5, 60))
