"""Likelihood ratios and predictive values: by hand, against Bayes' rule, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.errors import DataError
from pneumoscope.statistics.rates import likelihood_ratios, predictive_values


def table(tp, fn, fp, tn):
    y = np.repeat([1, 1, 0, 0], [tp, fn, fp, tn])
    called = np.repeat([1, 0, 1, 0], [tp, fn, fp, tn])
    return y, called, [str(i) for i in range(y.size)]


def test_values_by_hand():
    found = likelihood_ratios(*table(80, 20, 30, 70))
    assert found["lr_positive"].value == pytest.approx(0.8 / 0.3)
    assert found["lr_negative"].value == pytest.approx(0.2 / 0.7)


def test_the_interval_is_close_to_the_log_normal_one_in_large_samples():
    found = likelihood_ratios(*table(1600, 400, 600, 1400))["lr_positive"]
    error = np.sqrt(1 / 1600 - 1 / 2000 + 1 / 600 - 1 / 2000)  # Simel et al., J Clin Epidemiol 1991
    expected = np.exp(np.log(0.8 / 0.3) + np.array([-1.96, 1.96]) * error)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=0.01)


@pytest.mark.parametrize("prevalence", [0.05, 0.5, 0.9])
def test_predictive_values_follow_bayes(prevalence):
    cells = table(80, 20, 30, 70)
    found = predictive_values(*cells, prevalence)
    assert found["ppv"].value == pytest.approx(0.8 * prevalence / (0.8 * prevalence + 0.3 * (1 - prevalence)))
    assert found["npv"].value == pytest.approx(0.7 * (1 - prevalence) / (0.7 * (1 - prevalence) + 0.2 * prevalence))
    for e in found.values():
        assert 0 < e.low < e.value < e.high < 1


def test_at_the_prevalence_of_the_sample_they_are_the_observed_shares():
    found = predictive_values(*table(80, 20, 30, 70), 0.5)
    assert found["ppv"].value == pytest.approx(80 / 110)
    assert found["npv"].value == pytest.approx(70 / 90)


def test_edges_have_one_honest_end():
    perfect = likelihood_ratios(*table(40, 0, 0, 40))
    assert perfect["lr_positive"].value == np.inf
    assert 5 < perfect["lr_positive"].low < np.inf
    assert perfect["lr_positive"].high == np.inf
    assert (perfect["lr_negative"].value, perfect["lr_negative"].low) == (0, 0)
    assert 0 < perfect["lr_negative"].high < 0.2
    values = predictive_values(*table(40, 0, 0, 40), 0.1)
    assert (values["ppv"].value, values["ppv"].high) == (1, 1)
    assert 0.3 < values["ppv"].low < 1
    useless = likelihood_ratios(*table(0, 10, 0, 10))
    assert np.isnan(useless["lr_positive"].value)
    assert useless["lr_negative"].value == 1


def test_copies_of_patients_do_not_narrow_the_interval():
    y, called, patients = table(80, 20, 30, 70)
    once = likelihood_ratios(y, called, patients)["lr_positive"]
    thrice = likelihood_ratios(np.tile(y, 3), np.tile(called, 3), patients * 3)["lr_positive"]
    assert np.log(thrice.high / thrice.low) == pytest.approx(np.log(once.high / once.low), rel=0.01)


def test_patients_with_both_classes_count_for_the_correlation():
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 300)
    keen = np.repeat(rng.random(300) < 0.5, 2)
    called = (rng.random(600) < np.where(keen, 0.9, 0.3)).astype(int)
    both = likelihood_ratios(y, called, np.repeat(np.arange(300), 2).astype(str).tolist())["lr_positive"]
    apart = likelihood_ratios(y, called, [str(i) for i in range(600)])["lr_positive"]
    assert both.high / both.low < 0.95 * apart.high / apart.low, "shared keenness cancels in the ratio"


def test_wrong_values_are_refused():
    with pytest.raises(DataError):
        likelihood_ratios([0, 1], [0.3, 0.7], ["a", "b"])
    with pytest.raises(DataError):
        predictive_values([0, 1], [0, 1], ["a", "b"], 1.0)
    assert np.isnan(likelihood_ratios([1, 1], [0, 1], ["a", "b"])["lr_positive"].value)
