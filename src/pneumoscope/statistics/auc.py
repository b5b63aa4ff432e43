"""Areas under the ROC and precision-recall curves, with intervals for one and for two classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from scipy.optimize import brentq

from pneumoscope.records import Bools, Estimate, Floats, Ints
from pneumoscope.statistics.bootstrap import interval, replicate
from pneumoscope.statistics.cohort import ONE_CLASS, Cohort, cohort
from pneumoscope.statistics.proportions import Z95

_NO_VARIANCE = 1e-20  # under this a variance is rounding


@dataclass(frozen=True, slots=True)
class PairedAuroc:
    """Two AUROCs over the same images; `difference` is a minus b, `p` two-sided for no difference."""

    auc_a: Estimate
    auc_b: Estimate
    difference: Estimate
    z: float
    p: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values, estimates in the form of `metrics.json`."""
        estimates = {name: getattr(self, name).as_json() for name in ("auc_a", "auc_b", "difference")}
        return {**estimates, "z": self.z, "p": self.p}


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores in descending order: `order` int [n], `ends` int [groups], the last image of each tied group."""

    order: Ints
    ends: Ints


def ranking(score: Floats) -> Ranking:
    """Sort `score`, float [n], once, to measure many weightings of it."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    return Ranking(order, ends)


def weighted_areas(rank: Ranking, y: Bools, weights: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return AUROC [b] and average precision [b] of the same images under `b` weightings.

    `y`: bool [n]; `weights`: integers or floats >= 0 [b, n], both in the order of the images. NaN where a
    weighting leaves one class. Ties count half in the AUROC; a tied group is one step of the precision-recall
    curve, without interpolation (Davis and Goadrich, ICML 2006).
    """
    ordered = weights[:, rank.order]
    everyone = np.cumsum(ordered, axis=1)[:, rank.ends].astype(np.float64)
    ordered *= y[rank.order]
    true = np.cumsum(ordered, axis=1)[:, rank.ends].astype(np.float64)
    false = everyone - true
    true_step = np.diff(true, axis=1, prepend=0.0)
    false_step = np.diff(false, axis=1, prepend=0.0)
    positives, negatives = true[:, -1], false[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is the NaN that is promised
        auroc_ = np.sum(false_step * (true - true_step / 2), axis=1) / (positives * negatives)
        precision = np.divide(true, everyone, out=np.zeros_like(true), where=everyone > 0)
        auprc_ = np.sum(true_step * precision, axis=1) / positives
    auprc_[negatives == 0] = np.nan
    return auroc_, auprc_


def auroc(y: ArrayLike, score: ArrayLike) -> float:
    """Return the area under the ROC curve, ties counting half; NaN where one class is missing.

    `y`: 0/1 [n]; `score`: [n], higher is more positive. Raises `DataError` on anything else.
    """
    c = cohort(y, score)
    return float("nan") if c.one_class else _placements(c)[0]


def auroc_estimate(c: Cohort) -> Estimate:
    """Return the AUROC with its 95 % interval on the logit scale: DeLong's, or Obuchowski's where patients repeat.

    Time O(n log n) through midranks. A patient may have images of both classes. Where the variance is zero or undefined
    (classes completely separated, a constant score, one image of a class) the interval is Clopper-Pearson's
    on the independent positive-negative pairs that the patients allow: exact for complete separation,
    conservative otherwise. Sources: DeLong et al., Biometrics 1988; Sun and Xu, IEEE Signal Process Lett
    2014; Obuchowski, Biometrics 1997, 53:567-578; logit scale: Pepe, The statistical evaluation of medical tests, 2003.
    """
    if c.one_class:
        return Estimate(np.nan, np.nan, np.nan, ONE_CLASS)
    value, residual = _placements(c)
    variance = _variance(c, residual)
    if not (variance > _NO_VARIANCE and 0 < value < 1):
        return _from_pairs(c, value)
    half = Z95 * np.sqrt(variance) / (value * (1 - value))
    middle = special.logit(value)
    low, high = special.expit(middle - half), special.expit(middle + half)
    return Estimate(value, float(low), float(high), f"{_method(c)}, logit scale")


def paired_auroc(a: Cohort, b: Cohort) -> PairedAuroc:
    """Compare two scorings of one cohort: DeLong where each patient has one image, else Obuchowski.

    The interval of the difference is on its own scale, not logit. z and p are NaN where the difference has no
    variance and is not zero.
    """
    estimate_a, estimate_b = auroc_estimate(a), auroc_estimate(b)
    nan = float("nan")
    if a.one_class:
        return PairedAuroc(estimate_a, estimate_b, Estimate(nan, nan, nan, ONE_CLASS), nan, nan)
    (value_a, residual_a), (value_b, residual_b) = _placements(a), _placements(b)
    difference = value_a - value_b
    variance = _variance(a, residual_a - residual_b)
    if variance > _NO_VARIANCE:
        error = float(np.sqrt(variance))
        z, half = difference / error, Z95 * error
        p = float(2 * stats.norm.sf(abs(z)))
        estimate = Estimate(difference, difference - half, difference + half, f"{_method(a)}, paired")
    elif np.array_equal(residual_a, residual_b) and difference == 0:
        z, p = 0.0, 1.0
        estimate = Estimate(0.0, 0.0, 0.0, f"{_method(a)}, paired: both order the images alike")
    else:
        z, p = nan, nan
        estimate = Estimate(difference, nan, nan, "undefined: no variance to estimate")
    return PairedAuroc(estimate_a, estimate_b, estimate, z, p)


def auroc_interval(y: Bools, scores: Floats, groups: Ints, *, seed: int, resamples: int = 1000) -> Estimate:
    """Return the AUROC with the wider of two 95 % intervals: bootstrap over patients, and Newcombe's.

    A bootstrap collapses to a point where the classes separate fully, and Newcombe's interval (with the number of
    patients as its sample size) does not; it cannot see that images of a patient are alike. `y`: bool [n] of both
    classes; `scores`: [n], finite; `groups`: int [n], the patient of each image.
    """
    c = cohort(y, scores, groups)
    rank = ranking(c.score)

    def statistic(weights: Ints) -> Floats:
        return weighted_areas(rank, c.y, weights[:, c.codes])[0][:, None]

    value = _placements(c)[0]
    drawn = interval(value, replicate(statistic, c, seed=seed, resamples=resamples)[:, 0])
    low, high = newcombe_interval(value, len(np.unique(c.codes[c.y])), len(np.unique(c.codes[~c.y])))
    method = f"wider of Newcombe's interval and a bootstrap over patients ({resamples} resamples)"
    return Estimate(value, float(np.fmin(low, drawn.low)), float(np.fmax(high, drawn.high)), method)


def newcombe_interval(value: float, n_positive: int, n_negative: int) -> tuple[float, float]:
    """Return the 95 % score interval of an AUROC, of positive width at 0 and 1 too.

    The ends solve |A - value| = 1.96 sqrt(V(A)) with `newcombe_variance`: method 5 of Newcombe,
    Statistics in Medicine 2006;25:559-573.
    """

    def excess(area: float) -> float:
        return (area - value) ** 2 - Z95**2 * newcombe_variance(area, n_positive, n_negative)

    tiny = 1e-9  # at 0 and 1 the point itself is the other, trivial root
    low = 0.0 if value <= 0 else float(brentq(excess, 0.0, min(value, 1 - tiny)))
    high = 1.0 if value >= 1 else float(brentq(excess, max(value, tiny), 1.0))
    return low, high


def newcombe_variance(area: float, n_positive: float, n_negative: float) -> float:
    """Return Hanley and McNeil's variance of an AUROC (Radiology 1982) at the mean of the two sample sizes."""
    n = (n_positive + n_negative) / 2
    spread = 1 + (n - 1) * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * spread / (n_positive * n_negative)


def _placements(c: Cohort) -> tuple[float, Floats]:
    """Return the AUROC and, per image, its placement among the other class minus the AUROC [n]."""
    y, positives = c.y, int(c.y.sum())
    negatives = c.n - positives
    ranks = stats.rankdata(c.score)
    placement = np.empty(c.n)
    placement[y] = (ranks[y] - stats.rankdata(c.score[y])) / negatives
    placement[~y] = 1 - (ranks[~y] - stats.rankdata(c.score[~y])) / positives
    value = float(placement[y].mean())
    return value, placement - value


def _variance(c: Cohort, residual: Floats) -> float:
    """Return the variance of the mean placement (Obuchowski 1997), DeLong's where patients have one image."""
    y, codes, k = c.y, c.codes, c.n_patients
    positives, negatives = np.bincount(codes[y], minlength=k), np.bincount(codes[~y], minlength=k)
    with_positive, with_negative = np.count_nonzero(positives), np.count_nonzero(negatives)
    if min(with_positive, with_negative) < 2:
        return float("nan")
    m, n = positives.sum(), negatives.sum()
    u = np.bincount(codes[y], residual[y], minlength=k) / m
    v = np.bincount(codes[~y], residual[~y], minlength=k) / n
    s10 = with_positive / (with_positive - 1) * (u @ u)
    s01 = with_negative / (with_negative - 1) * (v @ v)
    s11 = k / (k - 1) * (u @ v)
    return float(s10 + s01 + 2 * s11)


def _method(c: Cohort) -> str:
    return "Obuchowski" if c.clustered else "DeLong"


def _from_pairs(c: Cohort, value: float) -> Estimate:
    """Return Clopper-Pearson's interval for `value` seen on the independent pairs that the cohort holds.

    An AUROC A puts k disjoint pairs of patients in order with probability A^k at most when all are seen in
    order, so complete separation excludes A < .025^(1/k).
    """
    k = c.n_patients
    positive = np.bincount(c.codes[c.y], minlength=k) > 0
    negative = np.bincount(c.codes[~c.y], minlength=k) > 0
    pairs = max(1, min(int(positive.sum()), int(negative.sum()), k // 2))
    hits = value * pairs
    low = 0.0 if hits <= 0 else float(stats.beta.ppf(0.025, hits, pairs - hits + 1))
    high = 1.0 if hits >= pairs else float(stats.beta.ppf(0.975, hits + 1, pairs - hits))
    return Estimate(value, low, high, f"Clopper-Pearson on {pairs} independent pairs: no variance to estimate")
