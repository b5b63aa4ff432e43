"""Every figure of `metrics.json`, each with its 95 % interval by patient."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.records import Bools, Estimate, Floats, Ints
from pneumoscope.statistics.auc import auroc_estimate, ranking, weighted_areas
from pneumoscope.statistics.bootstrap import (
    RESAMPLES,
    Statistic,
    interval,
    interval_corrected,
    interval_of_distance,
    replicate,
    without_false_certainty,
)
from pneumoscope.statistics.cohort import ONE_CLASS, Cohort, probabilities_cohort
from pneumoscope.statistics.proportions import proportion
from pneumoscope.statistics.rates import COUNTED, by_patient, confusion_by_patient, counted
from pneumoscope.statistics.reliability import ECE_BINS, equal_mass_bins

METRICS = (*COUNTED[:6], "auroc", "auprc", "brier", "ece", "npv", "mcc")

_DEFINED_IN_ONE_CLASS = {True: "recall", False: "specificity"}
_UNDEFINED = {
    "precision": "undefined: no image is called positive",
    "npv": "undefined: no image is called negative",
    "mcc": "undefined: all images are called alike",
}
_WIDENED = "; widened by a Wilson bound where no error or no success was seen"


def evaluate_predictions(
    y: ArrayLike,
    probability: ArrayLike,
    patients: Sequence[str],
    threshold: float,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Return the figures `METRICS` of a binary classifier, each with its 95 % interval.

    `y`: 0/1 [n]; `probability`: [n] in 0..1; `patients`: [n] keys; an image is called positive where
    probability >= threshold. AUROC: DeLong's interval, or Obuchowski's where a patient has several images.
    The others: patient bootstrap. Its intervals of proportions near 0 or 1 are too narrow, so accuracy,
    recall, specificity, precision and NPV also cover Wilson's interval; and since resampling cannot see
    errors that did not occur, where recall or specificity is 0 or 1 the counted figures are widened to what
    its Wilson bound makes of them. ECE: mean over `ECE_BINS` equal-mass bins (quantiles of this sample, ties
    together) of |observed - predicted| (Naeini et al., AAAI 2015), with `interval_of_distance`.
    What is undefined is NaN and its method says why. Raises `DataError` for values outside these ranges.
    """
    c = probabilities_cohort(y, probability, patients)
    called = c.score >= threshold
    statistic = _statistic(c, called)
    values = statistic(np.ones((1, c.n_patients), dtype=np.int64))[0]
    *columns, chance = replicate(statistic, c, seed=seed, resamples=resamples).T
    estimates = {name: interval(float(values[i]), columns[i]) for i, name in enumerate(METRICS)}
    ece = METRICS.index("ece")
    estimates["ece"] = interval_of_distance(float(values[ece]), columns[ece], chance)
    estimates["auroc"] = auroc_estimate(c)
    area = METRICS.index("auprc")
    estimates["auprc"] = interval_corrected(float(values[area]), columns[area])
    for name, estimate in estimates.items():
        if np.isnan(estimate.value):
            estimates[name] = replace(estimate, method=_UNDEFINED.get(name, ONE_CLASS))
    if c.one_class:
        defined = {"accuracy", "brier", "ece", _DEFINED_IN_ONE_CLASS[bool(c.y[0])]}
        nan = Estimate(np.nan, np.nan, np.nan, ONE_CLASS)
        estimates = {name: estimate if name in defined else nan for name, estimate in estimates.items()}
    widened = _widened(c, called, estimates)
    estimates |= widened
    if c.n_patients > 1:  # of one patient nothing is known
        estimates |= _as_wide_as_wilson(c, called, estimates, widened.keys())
    return {name: without_false_certainty(estimate) for name, estimate in estimates.items()}


def subtype_metrics(
    is_viral: ArrayLike,
    p_viral_given_pneumonia: ArrayLike,
    patients: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Return how well viral is told from bacterial among images of pneumonia, cut at 0.5.

    `is_viral`: 0/1 [n], images of known subtype only; `p_viral_given_pneumonia`: [n] in 0..1. AUROC, accuracy
    and balanced accuracy as in `evaluate_predictions`, which says what is raised.
    """
    estimates = evaluate_predictions(is_viral, p_viral_given_pneumonia, patients, 0.5, seed=seed, resamples=resamples)
    return {name: estimates[name] for name in ("auroc", "accuracy", "balanced_accuracy")}


def _statistic(c: Cohort, called: Bools) -> Statistic:
    """Return the function from patient weights [b, n_patients] to the figures `METRICS` and chance's ECE."""
    rank, gap, bins = ranking(c.score), c.y - c.score, equal_mass_bins(c.score)
    columns = [gap**2, *(gap * (bins == index) for index in range(ECE_BINS))]
    sums = np.concatenate([confusion_by_patient(c, called), by_patient(c, columns)], axis=1)
    sample_gaps = sums[:, 5:].sum(axis=0) / c.n

    def statistic(weights: Ints) -> Floats:
        totals = weights.astype(np.float64) @ sums
        tn, fp, fn, tp = totals[:, :4].T
        n = totals[:, :4].sum(axis=1)
        figures = counted(tn, fp, fn, tp)
        figures["auroc"], figures["auprc"] = weighted_areas(rank, c.y, weights[:, c.codes])
        figures["brier"] = totals[:, 4] / n
        gaps = totals[:, 5:] / n[:, None]
        figures["ece"] = np.abs(gaps).sum(axis=1)
        chance = np.abs(gaps - sample_gaps).sum(axis=1)
        return np.stack([*(figures[name] for name in METRICS), chance], axis=1)

    return statistic


def _as_wide_as_wilson(
    c: Cohort, called: Bools, estimates: Mapping[str, Estimate], widened: Collection[str]
) -> dict[str, Estimate]:
    """Return the proportions whose bootstrap interval does not cover Wilson's, widened to it.

    `widened`: those that say so already.
    """
    right = called == c.y
    among = {"accuracy": right | True, "recall": c.y, "specificity": ~c.y, "precision": called, "npv": ~called}
    wider = {}
    for name, mask in among.items():
        estimate, bounds = estimates[name], proportion(right[mask], c.codes[mask])
        if bounds.low < estimate.low or bounds.high > estimate.high:
            added = "" if name in widened else f"; {bounds.method} where wider"
            low, high = min(bounds.low, estimate.low), max(bounds.high, estimate.high)
            wider[name] = replace(estimate, low=low, high=high, method=estimate.method + added)
    return wider


def _widened(c: Cohort, called: Bools, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return the counted figures whose interval a rate of exactly 0 or 1 makes too narrow, widened."""
    rates = {}
    for truth in (True, False):
        mask = c.y == truth
        if mask.any():
            rate = proportion(called[mask] == truth, c.codes[mask])
            rates[truth] = {rate.value, {0.0: rate.high, 1.0: rate.low}.get(rate.value, rate.value)}
    positives = float(c.y.sum())
    negatives = c.n - positives
    grid = [(r, s) for r in rates.get(True, {0.0}) for s in rates.get(False, {0.0})]
    if len(grid) == 1:
        return {}
    recall, specificity = np.array(grid).T
    others = counted(
        negatives * specificity, negatives * (1 - specificity), positives * (1 - recall), positives * recall
    )
    wider = {}
    for name in COUNTED:
        estimate = estimates[name]
        low, high = np.fmin.reduce(others[name]), np.fmax.reduce(others[name])
        if low < estimate.low or high > estimate.high:
            low, high = float(min(low, estimate.low)), float(max(high, estimate.high))
            wider[name] = replace(estimate, low=low, high=high, method=estimate.method + _WIDENED)
    return wider
