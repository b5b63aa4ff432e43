"""The patient bootstrap: whole patients are drawn with replacement, all statistics of a block at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pneumoscope.cohort import Cohort, Floats, resampled_weights
from pneumoscope.records import Estimate

Statistic = Callable[[NDArray[np.int64]], Floats]

RESAMPLES = 2000
_MAX_DROPPED = 0.05  # beyond this the remaining resamples are a biased choice


def replicate(statistic: Statistic, c: Cohort, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Return float64 [resamples, m]: `statistic` under resampled patients.

    `statistic` takes int weights [b, n_patients] and returns [b, m], NaN where a figure is undefined. Where
    the cohort has both classes, resamples of one class become NaN throughout. Memory is bounded by blocks.
    """
    rng = np.random.default_rng(seed)
    positives = np.bincount(c.codes, c.y, minlength=c.n_patients)
    sizes = np.bincount(c.codes, minlength=c.n_patients)
    blocks = []
    for weights in resampled_weights(c.n_patients, resamples, rng, width=c.n):
        block = statistic(weights)
        if not c.one_class:
            drawn = weights @ positives
            block[(drawn == 0) | (drawn == weights @ sizes)] = np.nan
        blocks.append(block)
    return np.concatenate(blocks)


def interval(value: float, replicates: Floats) -> Estimate:
    """Return `value` with the 95 % percentile interval of its bootstrap `replicates` [B].

    Undefined (NaN) replicates are dropped and counted; the interval is NaN where more than 5 % of them are.
    """
    total, kept = replicates.size, replicates[~np.isnan(replicates)]
    method = f"patient bootstrap, percentile, {total} resamples"
    if np.isnan(value):
        return Estimate(value, np.nan, np.nan, "undefined")
    if kept.size < (1 - _MAX_DROPPED) * total:
        return Estimate(value, np.nan, np.nan, f"{method}: {total - kept.size} undefined, too many for an interval")
    if kept.size < total:
        method += f", {total - kept.size} undefined and dropped"
    low, high = (float(q) for q in np.quantile(kept, (0.025, 0.975)))
    return Estimate(value, low, high, method)


def interval_corrected(value: float, replicates: Floats) -> Estimate:
    """Return `value` with the bias-corrected percentile interval of its bootstrap `replicates` [B].

    For figures that resamples lie beside on average, such as the AUPRC (Efron and Tibshirani 1993, 14.3, without
    acceleration). Undefined replicates as in `interval`.
    """
    estimate = interval(value, replicates)
    if np.isnan(estimate.low):
        return estimate
    kept = replicates[~np.isnan(replicates)]
    below = (np.count_nonzero(kept < value) + 0.5 * np.count_nonzero(kept == value)) / kept.size
    shift = 2 * stats.norm.ppf(np.clip(below, 1 / (kept.size + 1), kept.size / (kept.size + 1)))
    low, high = (float(q) for q in np.quantile(kept, stats.norm.cdf(shift + np.array(stats.norm.ppf((0.025, 0.975))))))
    return replace(estimate, low=low, high=high, method=estimate.method.replace("percentile", "corrected percentile"))


def interval_of_distance(value: float, replicates: Floats, chance: Floats) -> Estimate:
    """Return `value`, a mean of absolute deviations in 0..1, with a 95 % interval from bootstrap replicates.

    `replicates` [B]: the figure resampled. `chance` [B]: the same of the deviations less those of the sample,
    what a true zero would show. Noise inflates such a figure and resampling inflates it again, so the
    percentile interval alone misses a true zero always; joined here with its reflection about `value`
    (Davison and Hinkley 1997), and starting at 0 where chance reaches `value` in more than 5 %.
    """
    estimate = interval(value, replicates)
    low = min(estimate.low, 2 * value - estimate.high)
    if value <= np.quantile(chance[~np.isnan(chance)], 0.95):
        low = 0.0
    return replace(
        estimate,
        low=max(0.0, low),
        high=min(1.0, max(estimate.high, 2 * value - estimate.low)),
        method=estimate.method.replace("percentile", "percentile and its reflection"),
    )


def without_false_certainty(estimate: Estimate) -> Estimate:
    """Return the estimate, its interval NaN where it has no width: resamples that never vary tell nothing."""
    if estimate.low < estimate.high:
        return estimate
    method = estimate.method if np.isnan(estimate.low) else f"{estimate.method}: they do not vary, no interval"
    return replace(estimate, low=float("nan"), high=float("nan"), method=method)


def p_value(replicates: Floats) -> float:
    """Return the two-sided p of no difference from bootstrap differences [B]; NaN where too few are defined.

    Twice the smaller share of replicates on either side of zero, both counted with one more so that it is
    never 0 (Davison and Hinkley 1997).
    """
    kept = replicates[~np.isnan(replicates)]
    if kept.size < (1 - _MAX_DROPPED) * replicates.size:
        return float("nan")
    smaller = min(np.count_nonzero(kept <= 0), np.count_nonzero(kept >= 0))
    return min(1.0, 2 * (1 + smaller) / (1 + kept.size))
