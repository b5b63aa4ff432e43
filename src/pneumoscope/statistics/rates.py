"""What calls are worth: figures of confusion counts, likelihood ratios, predictive values at another prevalence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from pneumoscope.errors import DataError
from pneumoscope.records import Bools, Estimate, Floats
from pneumoscope.statistics.cohort import ONE_CLASS, Cohort, cohort
from pneumoscope.statistics.proportions import proportion

COUNTED = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "npv", "mcc")

_METHOD = "MOVER from Wilson intervals with the design effect of patients"


def confusion(y: ArrayLike, predicted: ArrayLike) -> dict[str, int]:
    """Count images by truth and call: `tn, fp, fn, tp`. Both arguments: 0/1 [n]; raises `DataError` else."""
    c = _calls(y, predicted)
    return {name: int(mask.sum()) for name, mask in _cells(c.y, c.score > 0).items()}


def counted(tn: Floats, fp: Floats, fn: Floats, tp: Floats) -> dict[str, Floats]:
    """Return the figures `COUNTED` of confusion counts, any matching shapes; 0 / 0 gives NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is the NaN that is promised
        recall, specificity = tp / (tp + fn), tn / (tn + fp)
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return {
            "accuracy": (tp + tn) / (tn + fp + fn + tp),
            "balanced_accuracy": (recall + specificity) / 2,
            "precision": tp / (tp + fp),
            "recall": recall,
            "specificity": specificity,
            "f1": 2 * tp / (2 * tp + fp + fn),
            "npv": tn / (tn + fn),
            "mcc": (tp * tn - fp * fn) / np.sqrt(product),
        }


def confusion_by_patient(c: Cohort, called: Bools) -> Floats:
    """Return float64 [n_patients, 4]: each patient's images as tn, fp, fn, tp."""
    return by_patient(c, list(_cells(c.y, called).values()))


def by_patient(c: Cohort, columns: Sequence[Bools | Floats]) -> Floats:
    """Return float64 [n_patients, len(columns)]: the sum over each patient's images of every column [n]."""
    return np.stack([np.bincount(c.codes, column, minlength=c.n_patients) for column in columns], axis=1)


def likelihood_ratios(y: ArrayLike, called: ArrayLike, patients: Sequence[str]) -> dict[str, Estimate]:
    """Return `lr_positive` and `lr_negative` of calls, with 95 % intervals clustered by patient.

    `y`, `called`: 0/1 [n]; `patients`: [n] keys. lr_positive = sensitivity / (1 - specificity) and lr_negative =
    (1 - sensitivity) / specificity, both 0..infinity. The interval of the log ratio is recovered from Wilson's of
    the two proportions and their correlation over patients with images of both classes (Zou and Donner, Stat Med
    2008), so it holds at the edges too. NaN where a class is missing. Raises `DataError` for other values.
    """
    c = _calls(y, called, patients)
    if c.one_class:
        nan = float("nan")
        return dict.fromkeys(("lr_positive", "lr_negative"), Estimate(nan, nan, nan, ONE_CLASS))
    hit = c.score > 0
    return {"lr_positive": _ratio(c, hit), "lr_negative": _ratio(c, ~hit)}


def predictive_values(
    y: ArrayLike, called: ArrayLike, patients: Sequence[str], prevalence: float
) -> dict[str, Estimate]:
    """Return `ppv` and `npv` where the share of pneumonia is `prevalence`, in 0..1, taken as known.

    Arguments as in `likelihood_ratios`, whose intervals are carried through Bayes' rule: the log-odds of the PPV are
    log lr_positive + logit prevalence (Mercaldo et al., Stat Med 2007).
    """
    if not 0 < prevalence < 1:
        raise DataError(f"the prevalence is {prevalence}", remedy="give a share between 0 and 1")
    ratios = likelihood_ratios(y, called, patients)
    shift = float(special.logit(prevalence))

    def at(log_ratio: float, sign: float) -> float:
        return float(special.expit(sign * (log_ratio + shift)))

    positive, negative = ratios["lr_positive"], ratios["lr_negative"]
    with np.errstate(divide="ignore"):  # log 0 is minus infinity, whose odds are 0
        up = [float(np.log(v)) for v in (positive.value, positive.low, positive.high)]
        down = [float(np.log(v)) for v in (negative.value, negative.low, negative.high)]
    return {
        "ppv": Estimate(at(up[0], 1), at(up[1], 1), at(up[2], 1), positive.method),
        "npv": Estimate(at(down[0], -1), at(down[2], -1), at(down[1], -1), negative.method),
    }


def _cells(y: Bools, called: Bools) -> dict[str, Bools]:
    return {"tn": ~y & ~called, "fp": ~y & called, "fn": y & ~called, "tp": y & called}


def _calls(y: ArrayLike, called: ArrayLike, patients: Sequence[str] | None = None) -> Cohort:
    c = cohort(y, called, patients)
    if not np.isin(c.score, (0, 1)).all():
        raise DataError("calls must be 0 or 1", remedy="apply the threshold first")
    return c


def _ratio(c: Cohort, hit: Bools) -> Estimate:
    """Return the share of `hit` among positives over that among negatives."""
    top, bottom = proportion(hit[c.y], c.codes[c.y]), proportion(hit[~c.y], c.codes[~c.y])
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 and infinity are meant
        a, a_low, a_high = np.log([top.value, top.low, top.high])
        b, b_low, b_high = np.log([bottom.value, bottom.low, bottom.high])
        value = top.value / bottom.value if bottom.value > 0 else (np.inf if top.value > 0 else np.nan)
        r = _correlation(c, hit)
        low = a - b - _far(a - a_low, b_high - b, r) if top.value > 0 and bottom.value > 0 else a_low - b_high
        high = a - b + _far(a_high - a, b - b_low, r) if top.value > 0 and bottom.value > 0 else a_high - b_low
        low = -np.inf if top.value == 0 else low
        high = np.inf if bottom.value == 0 else high
    return Estimate(float(value), float(np.exp(low)), float(np.exp(high)), _METHOD)


def _far(a: float, b: float, r: float) -> float:
    return float(np.sqrt(max(0.0, a * a + b * b - 2 * r * a * b)))


def _correlation(c: Cohort, hit: Bools) -> float:
    """Return the correlation of the two proportions through patients who have images of both classes."""
    sides = []
    for mask in (c.y, ~c.y):
        share = hit[mask].mean()
        sides.append(np.bincount(c.codes[mask], hit[mask] - share, minlength=c.n_patients))
    u, v = sides
    spread = float(np.sqrt((u @ u) * (v @ v)))
    return float(u @ v) / spread if spread > 0 else 0.0
