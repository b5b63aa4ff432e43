"""Calibration figures against statsmodels, a plain loop, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special

from pneumoscope.errors import DataError
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.reliability import (
    CALIBRATION,
    _Lines,
    calibration_estimates,
    log_odds,
    logistic,
    reliability_diagram,
    spline,
)


def sample(n=600, seed=0, slope=0.7, level=0.3, per_patient=2):
    rng = np.random.default_rng(seed)
    odds = rng.normal(0.2, 1.5, n)
    y = (rng.random(n) < special.expit(slope * odds + level)).astype(int)
    return y, special.expit(odds), [f"p{i // per_patient}" for i in range(n)]


def binomial(y, x, offset=None):
    return sm.GLM(y, x, family=sm.families.Binomial(), offset=offset).fit(tol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_statsmodels(seed):
    y, p, patients = sample(seed=seed)
    found = calibration_estimates(y, p, patients, resamples=50)
    odds = special.logit(p)
    smooth = binomial(y, np.column_stack([np.ones(len(y)), spline(odds)])).fittedvalues
    assert tuple(found) == CALIBRATION
    assert {name: e.value for name, e in found.items()} == pytest.approx(
        {
            "slope": binomial(y, sm.add_constant(odds)).params[1],
            "intercept": binomial(y, np.ones(len(y)), odds).params[0],
            "oe": y.sum() / p.sum(),
            "ici": np.abs(smooth - p).mean(),
        },
        abs=1e-7,
    )


def test_refits_are_those_of_statsmodels_under_weights():
    y, p, patients = sample(n=200)
    c = cohort(y, p, patients)
    lines, rng = _Lines.of(c), np.random.default_rng(3)
    weights = rng.multinomial(c.n_patients, np.full(c.n_patients, 1 / c.n_patients), size=20)
    images = weights[:, c.codes].astype(float)
    slopes = lines.slope.refit(weights, images)
    levels = lines.level.refit(weights, images)
    for i, w in enumerate(images):
        drawn = np.repeat(np.arange(c.n), w.astype(int))
        exact = binomial(y[drawn], sm.add_constant(special.logit(p[drawn]))).params
        assert slopes[i] == pytest.approx(exact, abs=1e-3)
        assert levels[i] == pytest.approx(
            binomial(y[drawn], np.ones(drawn.size), special.logit(p[drawn])).params, abs=1e-3
        )


def test_the_interval_of_the_slope_is_that_of_theory_and_widens_with_copies():
    y, p, patients = sample(n=2000, per_patient=1)
    found = calibration_estimates(y, p, patients, resamples=1000)["slope"]
    error = binomial(y, sm.add_constant(special.logit(p))).bse[1]
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.08)
    tripled = calibration_estimates(np.tile(y, 3), np.tile(p, 3), patients * 3, resamples=1000)["slope"]
    assert tripled.high - tripled.low == pytest.approx(found.high - found.low, rel=0.02), (
        "copies of a patient add nothing"
    )


def test_a_perfect_model_has_slope_one_and_an_ici_that_may_be_zero():
    y, p, patients = sample(n=3000, slope=1, level=0)
    found = calibration_estimates(y, p, patients, seed=1)
    assert found["slope"].low < 1 < found["slope"].high
    assert found["intercept"].low < 0 < found["intercept"].high
    assert found["oe"].low < 1 < found["oe"].high
    assert found["ici"].low == 0 < found["ici"].value < 0.03
    bad = calibration_estimates(y, p**3, patients)["ici"]
    assert bad.low > 0.1


def test_classes_that_separate_or_are_missing_give_no_figure():
    y = np.repeat([0, 1], 30)
    found = calibration_estimates(y, 0.2 + 0.6 * y, [str(i) for i in range(60)], resamples=20)
    assert np.isnan(found["slope"].value)
    assert "separate" in found["slope"].method
    assert np.isfinite(found["oe"].value)
    one = calibration_estimates([1, 1], [0.4, 0.6], ["a", "b"], resamples=20)
    assert all(np.isnan(e.value) and "one class" in e.method for e in one.values())
    with pytest.raises(DataError):
        calibration_estimates([0, 1], [0.1, 1.2], ["a", "b"])


def test_logistic_finds_none_where_there_is_none():
    x = np.column_stack([np.ones(6), np.arange(6.0)])
    assert np.isnan(logistic(x, [0, 0, 0, 1, 1, 1])).all()
    assert logistic(x, [0, 1, 0, 1, 0, 1]) == pytest.approx(binomial([0, 1, 0, 1, 0, 1], x).params, abs=1e-8)


def test_extremes_stay_finite():
    assert log_odds([0.0, 1.0]) == pytest.approx([-13.8155, 13.8155], abs=1e-3)


def test_the_diagram_counts_every_image_once():
    y, p, patients = sample()
    bins = reliability_diagram(y, p, patients, bins=8)
    assert sum(b.n for b in bins) == len(y)
    assert sum(b.n * b.observed.value for b in bins) == pytest.approx(y.sum())
    assert sum(b.n * b.stated for b in bins) == pytest.approx(p.sum())
    assert [b.stated for b in bins] == sorted(b.stated for b in bins)
    tied = reliability_diagram([0, 1, 1], [0.5, 0.5, 0.5], ["a", "b", "c"])
    assert [b.n for b in tied] == [3]
