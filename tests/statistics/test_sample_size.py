"""Sizes against the published output of R's pmvalsampsize and sampsizeval, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from pneumoscope.errors import DataError
from pneumoscope.statistics.auc import auroc
from pneumoscope.statistics.reliability import log_odds, logistic
from pneumoscope.statistics.sample_size import (
    Planned,
    Widths,
    n_for_auroc,
    n_for_net_benefit,
    n_for_oe,
    n_for_proportion,
    n_for_slope,
    required,
)

VALVE = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000, -5, 2.5)  # mechanical heart valves, Riley et al. 2021


def test_the_published_example_of_pmvalsampsize():
    planned = Planned(0.018, 0.8, 0.8, 0.8, VALVE)
    found = required(planned, Widths(oe=1.0))
    assert found["criteria"]["oe"] == pytest.approx(905, abs=1)
    assert found["criteria"]["auroc"] == 4252
    assert found["criteria"]["slope"] == pytest.approx(4501, rel=0.02), "theirs is from 1,000 simulated scores"
    assert found["n"] == max(found["criteria"].values())
    beta = special.logit(stats.beta.ppf((np.arange(200_000) + 0.5) / 200_000, 0.5, 0.5))
    assert n_for_slope(beta, 0.2 / (2 * 1.96)) == pytest.approx(1641, rel=0.06)


def test_sampsizeval_finds_the_same_for_the_auroc():
    # Pavlou et al., Stat Methods Med Res 2021: 1599 by their own formula for the same question
    assert n_for_auroc(0.057, 0.77, 0.025) == pytest.approx(1599, rel=0.03)


def test_patients_with_several_images_inflate_it():
    odds = np.random.default_rng(0).normal(size=1000)
    once = required(Planned(0.4, 0.9, 0.9, 0.9, odds))
    thrice = required(Planned(0.4, 0.9, 0.9, 0.9, odds, images_per_patient=3, correlation=0.8))
    assert thrice["design_effect"] == pytest.approx(2.6)
    assert thrice["n"] == pytest.approx(2.6 * once["n"], rel=1e-3)
    assert once["with_pneumonia"] == math.ceil(0.4 * once["n"])
    assert required(Planned(0.4, 0.9, 0.9, 0.9, odds), threshold=0.3)["criteria"].keys() == {
        "oe", "slope", "auroc", "sensitivity", "specificity", "net_benefit"
    }  # fmt: skip
    with pytest.raises(DataError):
        required(Planned(1.0, 0.9, 0.9, 0.9, odds))


def test_a_study_of_that_size_has_that_precision():
    rng, runs = np.random.default_rng(2), 400
    odds = rng.normal(-0.5, 1.6, 4000)
    p = special.expit(odds)
    prevalence, threshold = float(p.mean()), 0.4
    truth = np.concatenate([np.ones(4000), np.zeros(4000)])
    weights = np.concatenate([p, 1 - p])
    called = np.tile(odds, 2) >= special.logit(threshold)
    sensitivity = float(np.average(called[:4000], weights=p))
    specificity = float(np.average(~called[4000:], weights=1 - p))
    assert truth @ weights / weights.sum() == pytest.approx(prevalence)
    for name, n, se in (
        ("slope", n_for_slope(odds, 0.1), 0.1),
        ("oe", n_for_oe(prevalence, 0.05), 0.05),
        ("net_benefit", n_for_net_benefit(prevalence, sensitivity, specificity, threshold, 0.05), 0.05),
        ("sensitivity", n_for_proportion(sensitivity, prevalence, 0.03), 0.03),
    ):
        found = []
        for _ in range(runs):
            x = rng.choice(odds, round(n))
            y = rng.random(x.size) < special.expit(x)
            call = x >= special.logit(threshold)
            found.append(
                {
                    "slope": lambda x=x, y=y: logistic(np.column_stack([np.ones(x.size), x]), y)[1],
                    "oe": lambda y=y: np.log(y.mean() / prevalence),
                    "net_benefit": lambda y=y, call=call: (
                        ((y & call).mean() - (~y & call).mean() * threshold / (1 - threshold)) / y.mean()
                    ),
                    "sensitivity": lambda y=y, call=call: call[y].mean(),
                }[name]()
            )
        assert np.std(found) == pytest.approx(se, rel=0.13), name


def test_the_auroc_s_formula_is_close_to_delong():
    rng = np.random.default_rng(0)
    n = round(n_for_auroc(0.5, stats.norm.cdf(1 / np.sqrt(2)), 0.03))
    y = np.arange(n) % 2
    found = [auroc(y, rng.normal(size=n) + y) for _ in range(400)]
    assert np.std(found) == pytest.approx(0.03, rel=0.12)
    assert log_odds([0.5])[0] == 0
