"""Answering fewer images and erring less often: risk against coverage, by the network's own uncertainty.

Source: El-Yaniv and Wiener, JMLR 2010; Geifman and El-Yaniv, NeurIPS 2017; the area under the curve with ties as
their expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logit

from pneumoscope.records import Estimate, Floats, Ints
from pneumoscope.statistics.bootstrap import RESAMPLES, interval, replicate, without_false_certainty
from pneumoscope.statistics.cohort import probabilities_cohort

COVERAGE = 0.9  # at which accuracy is compared with that of all images
POINTS = tuple(round(0.5 + 0.05 * step, 2) for step in range(11))  # of the curve that is written down
_EDGE = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Selective:
    """`curve`: for each coverage 0..1 the accuracy of the images that are answered; `aurc`: mean error over all
    coverages; `best_aurc`: what an order that knew the errors would reach; `gain`: accuracy at `COVERAGE` less that of
    all images, from the same resamples.
    """

    curve: tuple[tuple[float, Estimate], ...]
    aurc: Estimate
    best_aurc: float
    gain: Estimate

    def as_json(self) -> dict[str, Any]:
        """Return plain values, estimates in the form of `metrics.json`."""
        return {
            "by": "distance of the log-odds from the threshold's",
            "curve": [{"coverage": coverage, "accuracy": value.as_json()} for coverage, value in self.curve],
            "aurc": self.aurc.as_json(),
            "best_aurc": self.best_aurc,
            "coverage": COVERAGE,
            "gain": self.gain.as_json(),
        }


def certainty(probability: ArrayLike, threshold: float) -> Floats:
    """Return how far the log-odds of probabilities [n] in 0..1 lie from those of the threshold: float64 [n], from 0."""
    p, cut = (np.clip(np.asarray(value, np.float64), _EDGE, 1 - _EDGE) for value in (probability, threshold))
    return np.abs(logit(p) - logit(cut))


def selective(
    y: ArrayLike,
    probability: ArrayLike,
    patients: Sequence[str],
    threshold: float,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Selective:
    """Return accuracy where only the most certain images are answered, with 95 % intervals by patient bootstrap.

    `y`: 0/1 [n]; `probability`: [n] in 0..1; `patients`: [n] keys. In each resample the images are chosen anew. Raises
    `DataError` as `probabilities_cohort` does.
    """
    c = probabilities_cohort(y, probability, patients)
    right = ((c.score >= threshold) == c.y).astype(np.float64)
    sure = certainty(c.score, threshold)

    def statistic(weights: Ints) -> Floats:
        return risk_coverage(right, sure, weights[:, c.codes].astype(np.float64), POINTS)

    once = statistic(np.ones((1, c.n_patients), np.int64))[0]
    many = replicate(statistic, c, seed=seed, resamples=resamples)
    at = POINTS.index(COVERAGE)
    curve = tuple(
        (coverage, without_false_certainty(interval(float(once[i]), many[:, i]))) for i, coverage in enumerate(POINTS)
    )
    gain = interval(float(once[at] - once[-2]), many[:, at] - many[:, -2])
    ideal = risk_coverage(right, right, np.ones((1, c.n)), POINTS)[0, -1]
    aurc = without_false_certainty(interval(float(once[-1]), many[:, -1]))
    return Selective(curve, aurc, float(ideal), without_false_certainty(gain))


def risk_coverage(right: Floats, sure: Floats, weights: Floats, coverages: Sequence[float]) -> Floats:
    """Return float64 [b, len(coverages) + 1]: accuracy at each coverage, and the area under risk against coverage.

    `right`: 0/1 [n]; `sure`: [n], higher is answered first; `weights`: [b, n], how often each image counts. Images that
    are equally sure are answered in equal parts. A row without weight is NaN.
    """
    levels, level = np.unique(-sure, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(levels.size))
    count = np.add.reduceat(weights[:, order], starts, axis=1)
    hits = np.add.reduceat((weights * right)[:, order], starts, axis=1)
    result = np.full((len(weights), len(coverages) + 1), np.nan)
    for row, (n, h) in enumerate(zip(count, hits, strict=True)):
        total = n.sum()
        if total == 0:
            continue
        answered, correct = np.concatenate([[0.0], n.cumsum()]), np.concatenate([[0.0], h.cumsum()])
        wanted = np.asarray(coverages) * total
        result[row, :-1] = np.interp(wanted, answered, correct) / wanted
        steps = np.arange(1, int(total) + 1)
        result[row, -1] = 1 - (np.interp(steps, answered, correct) / steps).mean()
    return result
