"""Non-inferiority and equivalence: agreement with intervals, a known answer, the size of the test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pneumoscope.errors import DataError
from pneumoscope.records import Estimate
from pneumoscope.statistics.auc import delong_paired
from pneumoscope.statistics.margins import (
    auroc_margin,
    margin_test,
    proportion_difference,
    proportion_margin,
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
    found, paired = auroc_margin(y, a, b, np.arange(400), 0.05), delong_paired(y, a, b)
    assert found.difference == paired.difference
    zero = margin_test(paired.difference, 1e-12)
    assert 2 * min(zero.p_noninferior, 1 - zero.p_noninferior) == pytest.approx(paired.p, rel=1e-6)


def test_a_difference_of_proportions_is_mcnemar_s_wald():
    a = np.repeat([True, True, False, False], [60, 20, 10, 10])
    b = np.repeat([True, False, True, False], [60, 20, 10, 10])
    found = proportion_difference(a, b, np.arange(100))
    assert found.value == pytest.approx(0.1)
    error = np.sqrt((30 - 10**2 / 100) / 100 / 99)
    assert (found.high - found.low) / 2 == pytest.approx(1.959963984540054 * error)
    copies = proportion_difference(np.tile(a, 3), np.tile(b, 3), np.tile(np.arange(100), 3))
    assert (copies.low, copies.high) == pytest.approx((found.low, found.high))


def test_no_disagreement_is_not_taken_for_certainty():
    same = np.ones(30, dtype=bool)
    found = proportion_difference(same, same, np.arange(30))
    assert found.low < -0.1 < 0.1 < found.high
    assert not proportion_margin(np.ones(30), same, same, np.arange(30), 0.05, "sensitivity").equivalent
    assert proportion_margin(np.ones(3000), np.ones(3000), np.ones(3000), np.arange(3000), 0.05, "accuracy").equivalent
    with pytest.raises(DataError):
        proportion_margin(np.ones(30), same, same, np.arange(30), 0.05, "specificity")
    with pytest.raises(DataError):
        proportion_margin(np.ones(30), same, same, np.arange(30), 0.05, "f1")


def test_at_the_margin_the_test_errs_as_often_as_it_says():
    rng, margin, wrong, runs = np.random.default_rng(1), 0.08, 0, 1500
    patients = np.repeat(np.arange(120), 3)
    for _ in range(runs):
        shared = rng.normal(size=(120, 1)) * np.sqrt(0.8)
        hard = np.repeat(shared, 3, axis=1).ravel() + rng.normal(size=360) * np.sqrt(0.2)
        u = stats.norm.cdf(hard)
        a, b = u > 0.2 + margin, rng.permuted(u.reshape(120, 3), axis=1).ravel() > 0.2
        wrong += proportion_margin(np.ones(360), a, b, patients, margin, "sensitivity").noninferior
    assert stats.binom.ppf(0.001, runs, 0.015) <= wrong <= stats.binom.ppf(0.999, runs, 0.035)
