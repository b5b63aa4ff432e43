"""Decision curves: what acting on the score gains over treating all and treating none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.errors import DataError
from pneumoscope.records import Floats, Ints
from pneumoscope.statistics.bootstrap import RESAMPLES, replicate
from pneumoscope.statistics.cohort import probabilities_cohort

THRESHOLDS = tuple(float(t) for t in np.round(np.arange(0.02, 0.981, 0.02), 2))


@dataclass(frozen=True, slots=True)
class DecisionCurve:
    """Net benefit per image at each threshold probability.

    All float64 [t]: `model` and its 95 % interval, `treat_all` (treat none is 0), `gain` of the model over the
    better of the two and its interval.
    """

    thresholds: Floats
    model: Floats
    low: Floats
    high: Floats
    treat_all: Floats
    gain: Floats
    gain_low: Floats
    gain_high: Floats
    method: str

    def as_json(self) -> dict[str, Any]:
        """Return lists under the names of the fields."""
        return {name: getattr(self, name) for name in self.__slots__}


def decision_curve(
    y: ArrayLike,
    probability: ArrayLike,
    patients: Sequence[str],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> DecisionCurve:
    """Return the decision curve with pointwise 95 % patient-bootstrap intervals.

    `y`: 0/1 [n]; `probability`: [n] in 0..1; `patients`: [n] keys; `thresholds`: in 0..1, ends excluded. Net benefit
    = TP/n - FP/n t/(1-t), positive where probability >= t (Vickers and Elkin, Med Decis Making 2006); intervals
    as Vickers et al., BMC Med Inform 2008. Raises `DataError` for values outside these ranges.
    """
    t = np.asarray(thresholds, dtype=np.float64)
    if t.ndim != 1 or t.size == 0 or not ((t > 0) & (t < 1)).all():
        raise DataError("a threshold probability lies outside 0..1", remedy="give values between 0 and 1")
    c = probabilities_cohort(y, probability, patients)
    odds = t / (1 - t)
    gains = np.where(c.y[:, None], 1.0, -odds)  # [n, t], what treating one image adds
    columns = np.concatenate([gains * (c.score[:, None] >= t), gains], axis=1)
    order = np.argsort(c.codes, kind="stable")
    sizes = np.bincount(c.codes, minlength=c.n_patients)
    sums = np.add.reduceat(columns[order], np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=0)

    def statistic(weights: Ints) -> Floats:
        w = weights.astype(np.float64)
        benefit = (w @ sums) / (w @ sizes)[:, None]
        model, everyone = benefit[:, : t.size], benefit[:, t.size :]
        return np.concatenate([model, model - np.maximum(everyone, 0)], axis=1)

    values = statistic(np.ones((1, c.n_patients), dtype=np.int64))[0]
    low, high = np.nanquantile(replicate(statistic, c, seed=seed, resamples=resamples), (0.025, 0.975), axis=0)
    everyone = columns[:, t.size :].mean(axis=0)
    k = t.size
    method = f"patient bootstrap, percentile, pointwise, {resamples} resamples"
    return DecisionCurve(t, values[:k], low[:k], high[:k], everyone, values[k:], low[k:], high[k:], method)
