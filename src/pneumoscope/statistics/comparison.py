"""Two classifiers on the same images: are they different, and by how much?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pneumoscope.records import Bools, Estimate, Floats, Ints
from pneumoscope.statistics.auc import PairedAuroc, paired_auroc, ranking, weighted_areas
from pneumoscope.statistics.bootstrap import (
    RESAMPLES,
    Statistic,
    interval,
    p_value,
    replicate,
    without_false_certainty,
)
from pneumoscope.statistics.cohort import ONE_CLASS, Cohort, probabilities_cohort
from pneumoscope.statistics.rates import confusion_by_patient, counted

DIFFERENCES = ("accuracy", "balanced_accuracy", "auroc")


@dataclass(frozen=True, slots=True)
class McNemar:
    """Images that one classifier alone gets right: `only_a`, `only_b`; `p` two-sided for equal accuracy."""

    only_a: int
    only_b: int
    p: float
    method: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of a minus that of b, with its interval and the two-sided p of no difference."""

    estimate: Estimate
    p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything said of two classifiers over `n` images of `n_patients` patients; differences are a - b."""

    n: int
    n_patients: int
    auroc: PairedAuroc
    mcnemar: McNemar
    differences: Mapping[str, Difference]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, estimates in the form of `metrics.json`."""
        m = self.mcnemar
        return {
            "n": self.n,
            "n_patients": self.n_patients,
            "auroc": self.auroc.as_json(),
            "mcnemar": {"only_a": m.only_a, "only_b": m.only_b, "p": m.p, "method": m.method},
            "differences": {
                name: {**difference.estimate.as_json(), "p": difference.p}
                for name, difference in self.differences.items()
            },
        }


def compare(
    y: ArrayLike,
    probability_a: ArrayLike,
    probability_b: ArrayLike,
    threshold_a: float,
    threshold_b: float,
    patients: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two classifiers over the same images.

    `y`: 0/1 [n]; `probability_a`, `probability_b`: [n] in 0..1; `patients`: [n] keys. AUROC: paired DeLong,
    or Obuchowski where a patient has several images. Correctness: McNemar. `differences`: patient bootstrap,
    the same resamples for both. Raises `DataError` for values outside these ranges.
    """
    a, b = (probabilities_cohort(y, p, patients) for p in (probability_a, probability_b))
    called_a, called_b = a.score >= threshold_a, b.score >= threshold_b
    statistic = _statistic(a, b, called_a, called_b)
    values = statistic(np.ones((1, a.n_patients), dtype=np.int64))[0]
    columns = replicate(statistic, a, seed=seed, resamples=resamples).T
    differences = {
        name: Difference(without_false_certainty(interval(float(value), column)), p_value(column))
        for name, value, column in zip(DIFFERENCES, values, columns, strict=True)
    }
    if a.one_class:
        nan = float("nan")
        undefined = Difference(Estimate(nan, nan, nan, ONE_CLASS), nan)
        differences |= {"balanced_accuracy": undefined, "auroc": undefined}
    tested = mcnemar(called_a == a.y, called_b == a.y, a.codes)
    return Comparison(a.n, a.n_patients, paired_auroc(a, b), tested, differences)


def mcnemar(correct_a: Bools, correct_b: Bools, codes: Ints) -> McNemar:
    """Test whether two classifiers are right equally often on the same images.

    `correct_a`, `correct_b`: bool [n]; `codes`: int [n], the patient of each image. One image per patient:
    McNemar's exact test with the mid-p (Fagerland et al., BMC Med Res Methodol 2013). Several: the chi-square
    of the sums by patient (Obuchowski, Stat Med 1998), which tests the same difference of images as the counts
    show. p is 1 where they never differ.
    """
    lead = correct_a.astype(np.int64) - correct_b
    only_a, only_b = int((lead > 0).sum()), int((lead < 0).sum())
    _, patient = np.unique(codes, return_inverse=True)
    sizes = np.bincount(patient)
    if sizes.size == lead.size:
        fewer, either = min(only_a, only_b), only_a + only_b
        p = 2 * stats.binom.cdf(fewer - 1, either, 0.5) + stats.binom.pmf(fewer, either, 0.5)
        return McNemar(only_a, only_b, min(1.0, float(p)), "McNemar, exact, mid-p")
    net = np.bincount(patient, lead)
    spread = float(net @ net)
    p = 1.0 if spread == 0 else float(stats.chi2.sf(net.sum() ** 2 / spread, 1))
    return McNemar(only_a, only_b, p, "McNemar clustered by patient (Obuchowski)")


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values [m] adjusted for m comparisons, in the same order; NaN stays NaN and is not counted.

    Holm, Scand J Stat 1979: controls the chance of any false claim without assuming independence.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    defined = np.flatnonzero(~np.isnan(p))
    order = defined[np.argsort(p[defined])]
    steps = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def _statistic(a: Cohort, b: Cohort, called_a: Bools, called_b: Bools) -> Statistic:
    """Return the function from patient weights [b, n_patients] to the `DIFFERENCES` [b, 3]."""
    sides = [(ranking(c.score), confusion_by_patient(c, called)) for c, called in ((a, called_a), (b, called_b))]

    def statistic(weights: Ints) -> Floats:
        rows = []
        for rank, cells in sides:
            figures = counted(*(weights.astype(np.float64) @ cells).T)
            area, _ = weighted_areas(rank, a.y, weights[:, a.codes])
            rows.append(np.stack([figures["accuracy"], figures["balanced_accuracy"], area], axis=1))
        return rows[0] - rows[1]

    return statistic
