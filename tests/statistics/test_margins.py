"""Non-inferiority and equivalence: agreement with intervals, a known answer, the size of the test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pneumoscope.errors import DataError
from pneumoscope.records import Estimate
from pneumoscope.statistics.auc import paired_auroc
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.margins import (
    auroc_margin,
    margin_test,
)


def estimate(value, error):
    return Estimate(value, value - 1.959963984540054 * error, value + 1.959963984540054 * error, "")


def test_p_is_that_of_the_normal_and_follows_the_interval():
    found = margin_test(estimate(-0.01, 0.01), 0.04)
    assert found.p_noninferior == pytest.approx(stats.norm.sf(3))
    assert found.p_equivalent == pytest.approx(stats.norm.sf(3))
    assert found.noninferior
    assert found.equivalent
    edge = estimate(-0.01, 0.01)
    assert margin_test(edge, -edge.low + 1e-9).noninferior
    assert not margin_test(edge, -edge.low - 1e-9).noninferior
    better = margin_test(estimate(0.2, 0.01), 0.04)
    assert better.noninferior
    assert not better.equivalent
    assert np.isnan(margin_test(Estimate(0.0, 0.0, 0.0, ""), 0.1).p_noninferior)
    with pytest.raises(DataError):
        margin_test(edge, 0)


def test_the_auroc_margin_uses_the_paired_difference():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    a, b = (rng.normal(size=400) + y for _ in range(2))
    found, paired = auroc_margin(y, a, b, np.arange(400), 0.05), paired_auroc(cohort(y, a), cohort(y, b))
    assert found.difference == paired.difference
    zero = margin_test(paired.difference, 1e-12)
    assert 2 * min(zero.p_noninferior, 1 - zero.p_noninferior) == pytest.approx(paired.p, rel=1e-6)


def test_at_the_margin_the_test_errs_as_often_as_it_says():
    rng, wrong, runs = np.random.default_rng(1), 0, 1000
    patients, y = np.repeat(np.arange(120), 3), np.repeat([0, 1], 180)
    margin = stats.norm.cdf(1.8 / np.sqrt(2)) - stats.norm.cdf(1.3 / np.sqrt(2))  # AUROC of normal scores, b less a
    for _ in range(runs):
        shared = np.repeat(rng.normal(size=120), 3) * np.sqrt(0.8)
        a, b = (shared + rng.normal(size=360) * np.sqrt(0.2) + distance * y for distance in (1.3, 1.8))
        wrong += auroc_margin(y, a, b, patients, margin).noninferior
    assert stats.binom.ppf(0.001, runs, 0.015) <= wrong <= stats.binom.ppf(0.999, runs, 0.035)
