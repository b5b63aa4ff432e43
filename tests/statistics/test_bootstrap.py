"""The patient bootstrap against theory, against a plain loop, and against clock and memory."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from pneumoscope.evaluation.metrics import evaluate_predictions
from pneumoscope.records import Estimate
from pneumoscope.statistics.bootstrap import (
    interval,
    interval_corrected,
    interval_of_distance,
    p_value,
    replicate,
    resampled_weights,
    without_false_certainty,
)
from pneumoscope.statistics.cohort import Cohort, cohort


def mean_of(c: Cohort, values):
    """Weighted mean of `values` as a statistic."""
    sums = np.bincount(c.codes, values, minlength=c.n_patients)
    sizes = np.bincount(c.codes, minlength=c.n_patients)
    return lambda weights: ((weights @ sums) / (weights @ sizes))[:, None]


def test_the_draw_depends_on_the_seed_alone():
    c = cohort([0, 1, 0, 1], [0, 1, 2, 3], ["a", "b", "c", "a"])
    one, same, other = (replicate(mean_of(c, c.score), c, seed=s, resamples=50) for s in (1, 1, 2))
    assert np.array_equal(one, same, equal_nan=True)
    assert not np.array_equal(one, other, equal_nan=True)


def test_it_is_the_standard_error_of_the_patients():
    rng = np.random.default_rng(1)
    effects = rng.normal(size=200)
    patients = np.repeat(np.arange(200), 4)
    y, values = np.tile([0, 1, 0, 1], 200), effects[patients]
    c = cohort(y, values, patients)
    replicates = replicate(mean_of(c, values), c, seed=0, resamples=4000)[:, 0]
    assert replicates.std() == pytest.approx(effects.std() / np.sqrt(200), rel=0.05)
    found = interval(float(values.mean()), replicates)
    assert (found.low, found.high) == pytest.approx(np.quantile(replicates, [0.025, 0.975]))
    assert found.method == "patient bootstrap, percentile, 4000 resamples"


def test_the_corrected_interval_is_that_of_percentiles_where_nothing_is_to_be_corrected():
    around = np.linspace(-1, 1, 2001)
    assert interval_corrected(0.0, around).low == pytest.approx(interval(0.0, around).low)
    shifted = interval_corrected(0.2, around)  # most resamples lie below: it goes up
    assert shifted.low > interval(0.2, around).low
    assert shifted.high > interval(0.2, around).high
    ones = interval_corrected(1.0, np.ones(500))
    assert (ones.low, ones.high) == (1, 1)
    assert np.isnan(interval_corrected(1.0, np.full(500, np.nan)).low)
    assert "bootstrap, corrected percentile" in shifted.method


def test_resamples_of_one_class_are_dropped_and_counted():
    few = cohort(np.repeat([0, 1], [40, 4]), np.arange(44.0))
    replicates = replicate(mean_of(few, few.score), few, seed=0, resamples=2000)[:, 0]
    missing = int(np.isnan(replicates).sum())
    assert stats.binom.pmf(0, 44, 4 / 44) * 2000 == pytest.approx(missing, abs=25)
    assert f"{missing} undefined and dropped" in interval(20.0, replicates).method
    fewer = cohort(np.repeat([0, 1], [40, 1]), np.arange(41.0))
    replicates = replicate(mean_of(fewer, fewer.score), fewer, seed=0, resamples=2000)[:, 0]
    found = interval(20.0, replicates)
    assert np.isnan([found.low, found.high]).all()
    assert "too many" in found.method
    assert np.isnan(p_value(replicates))


def test_resamples_of_a_cohort_of_one_class_are_kept():
    normals = cohort(np.zeros(20), np.arange(20.0))
    assert not np.isnan(replicate(mean_of(normals, normals.score), normals, seed=0, resamples=100)).any()


def test_a_distance_starts_at_zero_where_chance_reaches_it():
    replicates, small, large = np.linspace(0.3, 0.5, 101), np.linspace(0, 0.2, 101), np.linspace(0, 0.4, 101)
    told_apart = interval_of_distance(0.35, replicates, small)
    assert told_apart.low == pytest.approx(2 * 0.35 - 0.495)
    assert told_apart.high == pytest.approx(0.495)
    assert interval_of_distance(0.35, replicates, large).low == 0


def test_an_interval_without_width_is_none():
    degenerate = without_false_certainty(Estimate(1.0, 1.0, 1.0, "bootstrap"))
    assert degenerate.value == 1
    assert np.isnan([degenerate.low, degenerate.high]).all()
    proper = Estimate(0.5, 0.4, 0.6, "bootstrap")
    assert without_false_certainty(proper) is proper


def test_p_is_uniform_under_no_difference_and_small_under_one():
    rng = np.random.default_rng(2)
    p = []
    for _ in range(400):
        sample = rng.normal(size=60)
        c = cohort(np.tile([0, 1], 30), sample)
        p.append(p_value(replicate(mean_of(c, sample), c, seed=3, resamples=300)[:, 0]))
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert p_value(np.full(999, 0.2)) == pytest.approx(2 / 1000)
    assert p_value(np.zeros(100)) == 1


@pytest.mark.slow
def test_ten_thousand_images_take_seconds():
    rng = np.random.default_rng(6)
    y, patients = rng.integers(0, 2, 10_000), rng.integers(0, 6000, 10_000).astype(str)
    start = time.process_time()
    found = evaluate_predictions(y, rng.random(10_000), patients, 0.5)
    assert time.process_time() - start < 10
    assert "2000 resamples" in found["f1"].method


def test_every_row_draws_as_many_patients_as_there_are():
    blocks = list(resampled_weights(700, 5000, np.random.default_rng(0), width=2000))
    assert len(blocks) > 1
    weights = np.concatenate(blocks)
    assert weights.shape == (5000, 700)
    assert (weights.sum(axis=1) == 700).all()
    assert weights.mean() == 1
    assert weights.var() == pytest.approx(1 - 1 / 700, abs=0.01)
