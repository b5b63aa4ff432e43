"""How many images an external validation needs, and how precise one of a given size will be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from pneumoscope.errors import DataError
from pneumoscope.records import Floats
from pneumoscope.statistics.auc import newcombe_variance
from pneumoscope.statistics.proportions import Z95


@dataclass(frozen=True, slots=True)
class Planned:
    """What is expected of a study: `prevalence`, `auroc`, `sensitivity`, `specificity` in 0..1; `log_odds` [n].

    `log_odds`: a sample of the scores to come, well calibrated ones (slope 1, intercept 0), or of those at hand.
    `images_per_patient` >= 1 and `correlation` within a patient in 0..1 inflate every size by 1 + (m - 1) r.
    """

    prevalence: float
    auroc: float
    sensitivity: float
    specificity: float
    log_odds: Floats
    images_per_patient: float = 1.0
    correlation: float = 0.0

    @property
    def design_effect(self) -> float:
        """Factor by which patients with several images inflate a size."""
        return 1 + (self.images_per_patient - 1) * self.correlation


@dataclass(frozen=True, slots=True)
class Widths:
    """Widths of the 95 % intervals; by default those of Riley et al., and .1 for proportions."""

    oe: float = 0.2
    slope: float = 0.2
    auroc: float = 0.1
    net_benefit: float = 0.2
    sensitivity: float = 0.1
    specificity: float = 0.1


def required(planned: Planned, widths: Widths | None = None, *, threshold: float | None = None) -> dict[str, Any]:
    """Return the images each criterion needs, and the largest of them under `n`.

    `threshold`: the probability at which one acts; adds the standardised net benefit.
    Source: Riley et al., Stat Med 2021;40:4230-4251, and BMJ 2024;384:e074821. Raises `DataError` for values outside
    their ranges.
    """
    widths = widths or Widths()
    _check(planned)
    p = planned.prevalence
    # The interval of O/E is symmetric on the log scale: its width is 2 sinh(1.96 SE).
    criteria = {
        "oe": n_for_oe(p, math.asinh(widths.oe / 2) / Z95),
        "slope": n_for_slope(planned.log_odds, widths.slope / (2 * Z95)),
        "auroc": n_for_auroc(p, planned.auroc, widths.auroc / (2 * Z95)),
        "sensitivity": n_for_proportion(planned.sensitivity, p, widths.sensitivity / (2 * Z95)),
        "specificity": n_for_proportion(planned.specificity, 1 - p, widths.specificity / (2 * Z95)),
    }
    if threshold is not None:
        se = widths.net_benefit / (2 * Z95)
        criteria["net_benefit"] = n_for_net_benefit(p, planned.sensitivity, planned.specificity, threshold, se)
    inflated = {name: math.ceil(n * planned.design_effect) for name, n in criteria.items()}
    n = max(inflated.values())
    return {
        "criteria": inflated,
        "n": n,
        "with_pneumonia": math.ceil(n * p),
        "widths": asdict(widths),
        "design_effect": planned.design_effect,
    }


def n_for_oe(prevalence: float, se_log: float) -> float:
    """Return the images for a standard error of ln(O/E): (1 - prevalence) / (prevalence se^2) (Riley 2021, eq. 3)."""
    return (1 - prevalence) / (prevalence * se_log**2)


def n_for_slope(log_odds: ArrayLike, se: float) -> float:
    """Return the images for a standard error of the calibration slope at slope 1, intercept 0.

    `log_odds`: [n], the distribution of the scores. From Fisher's information per image (Riley 2021, eq. 8).
    """
    odds = np.asarray(log_odds, dtype=np.float64)
    p = special.expit(odds)
    a = p * (1 - p)
    i_aa, i_ab, i_bb = a.mean(), (odds * a).mean(), (odds**2 * a).mean()
    return float(i_aa / (se**2 * (i_aa * i_bb - i_ab**2)))


def n_for_auroc(prevalence: float, auroc: float, se: float) -> float:
    """Return the images for a standard error of the AUROC (Newcombe, Stat Med 2006; Riley 2021, eq. 9)."""

    def error(n: float) -> float:
        return math.sqrt(newcombe_variance(auroc, n * prevalence, n * (1 - prevalence)))

    return _smallest(error, se)


def n_for_net_benefit(prevalence: float, sensitivity: float, specificity: float, threshold: float, se: float) -> float:
    """Return the images for a standard error of the net benefit over the prevalence, its maximum (Riley 2021)."""
    w = (1 - prevalence) / prevalence * threshold / (1 - threshold)
    spread = (
        sensitivity * (1 - sensitivity) / prevalence
        + w**2 * specificity * (1 - specificity) / (1 - prevalence)
        + w**2 * (1 - specificity) ** 2 / (prevalence * (1 - prevalence))
    )
    return spread / se**2


def n_for_proportion(share: float, among: float, se: float) -> float:
    """Return the images for a standard error of a proportion that is counted in a share `among` of them."""
    return share * (1 - share) / (among * se**2)


def _smallest(error: Callable[[float], float], se: float) -> float:
    low, high = 4.0, 8.0
    while error(high) > se:
        high *= 2
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (low, middle) if error(middle) <= se else (middle, high)
    return high


def _check(planned: Planned) -> None:
    inside = all(0 < v < 1 for v in (planned.prevalence, planned.auroc))
    shares = all(0 <= v <= 1 for v in (planned.sensitivity, planned.specificity, planned.correlation))
    if not (inside and shares and planned.images_per_patient >= 1 and np.size(planned.log_odds) > 1):
        raise DataError("what is expected of the study is outside its range", remedy="give shares between 0 and 1")
