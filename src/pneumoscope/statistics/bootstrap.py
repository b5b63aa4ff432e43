"""The patient bootstrap: whole patients are drawn with replacement, all statistics of a block at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtr, ndtri  # not scipy.stats, which every prediction would load

from pneumoscope.records import Estimate, Floats, Ints
from pneumoscope.statistics.cohort import Cohort

Statistic = Callable[[Ints], Floats]

RESAMPLES = 2000
_BLOCK = 2_000_000  # numbers per block of a resampling: 16 MB as float64
_MAX_DROPPED = 0.05  # beyond this the remaining resamples are a biased choice


def resampled_weights(
    n_patients: int, resamples: int, rng: np.random.Generator, *, width: int | None = None
) -> Iterator[Ints]:
    """Yield blocks int64 [b, n_patients]: how often each patient is drawn in each of `resamples` resamples.

    Every row is a multinomial draw of `n_patients` patients with equal chances (the cluster bootstrap: Field
    and Welsh, J R Stat Soc B 2007). `width` is the row length the caller works at, which bounds the block.
    """
    rows = max(1, _BLOCK // max(n_patients, width or 1))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, n_patients, (size, n_patients))
        drawn += np.arange(size)[:, None] * n_patients
        yield np.bincount(drawn.ravel(), minlength=size * n_patients).reshape(size, n_patients)


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


def interval(value: float, replicates: Floats, kind: str = "percentile") -> Estimate:
    """Return `value` with the 95 % percentile interval of its bootstrap `replicates` [B].

    Undefined (NaN) replicates are dropped and counted; the interval is NaN where more than 5 % of them are. `kind`:
    what the method says, for a caller that replaces the ends.
    """
    total, defined = replicates.size, replicates[~np.isnan(replicates)]
    method = f"patient bootstrap, {kind}, {total} resamples"
    if np.isnan(value):
        return Estimate(value, np.nan, np.nan, "undefined")
    if defined.size < (1 - _MAX_DROPPED) * total:
        return Estimate(value, np.nan, np.nan, f"{method}: {total - defined.size} undefined, too many for an interval")
    if defined.size < total:
        method += f", {total - defined.size} undefined and dropped"
    low, high = (float(q) for q in np.quantile(defined, (0.025, 0.975)))
    return Estimate(value, low, high, method)


def interval_corrected(value: float, replicates: Floats) -> Estimate:
    """Return `value` with the bias-corrected percentile interval of its bootstrap `replicates` [B].

    For figures that resamples lie beside on average, such as the AUPRC (Efron and Tibshirani 1993, 14.3, without
    acceleration). Undefined replicates as in `interval`.
    """
    estimate = interval(value, replicates, "corrected percentile")
    if np.isnan(estimate.low):
        return estimate
    defined = replicates[~np.isnan(replicates)]
    below = (np.count_nonzero(defined < value) + 0.5 * np.count_nonzero(defined == value)) / defined.size
    shift = 2 * ndtri(np.clip(below, 1 / (defined.size + 1), defined.size / (defined.size + 1)))
    ends = ndtr(shift + np.array(ndtri((0.025, 0.975))))
    low, high = (float(q) for q in np.quantile(defined, ends))
    return replace(estimate, low=low, high=high)


def interval_of_distance(value: float, replicates: Floats, chance: Floats) -> Estimate:
    """Return `value`, a mean of absolute deviations in 0..1, with a 95 % interval from bootstrap replicates.

    `replicates` [B]: the figure resampled. `chance` [B]: the same of the deviations less those of the sample,
    what a true zero would show. Noise inflates such a figure and resampling inflates it again, so the
    percentile interval alone always misses a true zero. It is joined with its reflection about `value` (Davison
    and Hinkley 1997), and starts at 0 where chance reaches `value` in more than 5 %.
    """
    estimate = interval(value, replicates, "percentile and its reflection")
    low = min(estimate.low, 2 * value - estimate.high)
    if value <= np.quantile(chance[~np.isnan(chance)], 0.95):
        low = 0.0
    return replace(estimate, low=max(0.0, low), high=min(1.0, max(estimate.high, 2 * value - estimate.low)))


def without_false_certainty(estimate: Estimate) -> Estimate:
    """Return the estimate, its interval NaN where it has no width: resamples did not vary."""
    if estimate.low < estimate.high:
        return estimate
    method = estimate.method if np.isnan(estimate.low) else f"{estimate.method}: they do not vary, no interval"
    return replace(estimate, low=float("nan"), high=float("nan"), method=method)


def p_value(replicates: Floats) -> float:
    """Return the two-sided p of no difference from bootstrap differences [B]; NaN where too few are defined.

    Twice the smaller share of replicates on either side of zero, both counted with one more so that it is
    never 0 (Davison and Hinkley 1997).
    """
    defined = replicates[~np.isnan(replicates)]
    if defined.size < (1 - _MAX_DROPPED) * replicates.size:
        return float("nan")
    smaller = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    return min(1.0, 2 * (1 + smaller) / (1 + defined.size))


def mean_of(values: Floats, *, seed: int, groups: Sequence[str] | None = None) -> Estimate:
    """Return the mean of values [n] with a 95 % percentile interval from a bootstrap of images, or of `groups` [n]."""
    keys, codes = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)
    sums, sizes = np.bincount(codes, values), np.bincount(codes)
    blocks = resampled_weights(keys.size, RESAMPLES, np.random.default_rng(seed))
    means = np.concatenate([(weights @ sums) / (weights @ sizes) for weights in blocks])
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    unit = "image" if groups is None else "patient"
    return Estimate(float(np.mean(values)), low, high, f"{unit} bootstrap, percentile, {RESAMPLES} resamples")
