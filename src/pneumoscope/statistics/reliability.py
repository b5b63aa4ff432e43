"""Whether a stated probability is the observed frequency: slope, intercept, observed over expected, ICI, diagram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from pneumoscope.records import Estimate, Floats, Ints
from pneumoscope.statistics.bootstrap import (
    RESAMPLES,
    Statistic,
    interval,
    interval_of_distance,
    replicate,
    without_false_certainty,
)
from pneumoscope.statistics.cohort import ONE_CLASS, Cohort, probabilities_cohort
from pneumoscope.statistics.proportions import Z95, proportion

CALIBRATION = ("slope", "intercept", "oe", "ici")
ECE_BINS = 10
KNOTS = (0.05, 0.35, 0.65, 0.95)  # quantiles, Harrell's for four knots
_EDGE = 1e-6  # log-odds are those of probabilities within 1e-6 .. 1 - 1e-6
_FAR = 30.0  # fitted log-odds beyond this mean that the classes separate
_STEPS = 5
_SETTLED = 1e-3  # twice the log likelihood still to gain before the last step: a thirtieth of a standard error


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bin of a reliability diagram: mean stated probability, share of pneumonia with interval, images."""

    stated: float
    observed: Estimate
    n: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values, the estimate in the form of `metrics.json`."""
        return {"stated": self.stated, "observed": self.observed.as_json(), "n": self.n}


def calibration_estimates(
    y: ArrayLike,
    probability: ArrayLike,
    patients: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Return the figures `CALIBRATION` of stated probabilities, each with a patient-bootstrap 95 % interval.

    `y`: 0/1 [n]; `probability`: [n] in 0..1; `patients`: [n] keys.
    - `slope`: of y on the log-odds, logistic; 1 is right, under 1 too extreme (Cox, Biometrika 1958). Its interval
      takes the bootstrap's standard error: few patients bias a slope upwards, and percentiles do so twice.
    - `intercept`: calibration in the large, with the slope held at 1; 0 is right, in log-odds.
    - `oe`: observed over expected cases; 1 is right.
    - `ici`: mean |stated - smoothed observed|, 0..1, the smoother a logistic regression on a restricted cubic
      spline of the log-odds with knots at `KNOTS` (Austin and Steyerberg, Stat Med 2019); its interval allows for
      noise as that of the ECE does (`interval_of_distance`).
    A resample's regression takes a Newton step that all share from the sample's, and then its own until it has
    settled (Andrews, Econometrica 2002); one that does not is dropped. NaN with the reason where a class is missing
    or the classes separate. Raises `DataError` for values outside these ranges.
    """
    c = probabilities_cohort(y, probability, patients)
    nan = float("nan")
    if c.one_class:
        return dict.fromkeys(CALIBRATION, Estimate(nan, nan, nan, ONE_CLASS))
    lines = _Lines.of(c)
    statistic = lines.statistic()
    values = statistic(np.ones((1, c.n_patients), dtype=np.int64))[0]
    *columns, chance = replicate(statistic, c, seed=seed, resamples=resamples).T
    estimates = {name: interval(float(values[i]), columns[i]) for i, name in enumerate(CALIBRATION)}
    estimates["slope"] = _normal(float(values[0]), columns[0])
    if not np.isnan(values[3]):
        estimates["ici"] = interval_of_distance(float(values[3]), columns[3], chance)
    separated = Estimate(nan, nan, nan, "undefined: the probabilities separate the classes")
    return {
        name: separated if np.isnan(estimate.value) else without_false_certainty(estimate)
        for name, estimate in estimates.items()
    }


def _normal(value: float, replicates: Floats) -> Estimate:
    """Return `value` ± 1.96 standard errors of its bootstrap replicates [B]; undefined ones as in `interval`."""
    estimate = interval(value, replicates, "normal")
    if np.isnan(estimate.low):
        return estimate
    half = Z95 * float(np.nanstd(replicates, ddof=1))
    return Estimate(value, value - half, value + half, estimate.method)


def reliability_diagram(
    y: ArrayLike, probability: ArrayLike, patients: Sequence[str], *, bins: int = 10
) -> list[ReliabilityBin]:
    """Return the bins of a reliability diagram, cut at quantiles of the sample, ties together, empty ones left out.

    Arguments as in `calibration_estimates`. Intervals: Wilson with the design effect of patients.
    """
    c = probabilities_cohort(y, probability, patients)
    bin_of = equal_mass_bins(c.score, bins)
    return [
        ReliabilityBin(float(c.score[mask].mean()), proportion(c.y[mask], c.codes[mask]), int(mask.sum()))
        for mask in (bin_of == index for index in np.unique(bin_of))
    ]


def equal_mass_bins(probability: Floats, bins: int = ECE_BINS) -> Ints:
    """Return the bin of each image, int [n] in 0..bins-1, cut at the sample's quantiles, ties together."""
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, probability).astype(np.int64)


def log_odds(probability: ArrayLike) -> Floats:
    """Return the log-odds [n] of probabilities [n] in 0..1, those beyond 1e-6 of the ends drawn in."""
    return np.asarray(special.logit(np.clip(np.asarray(probability, dtype=np.float64), _EDGE, 1 - _EDGE)))


def logistic(x: Floats, y: ArrayLike, offset: Floats | float = 0.0, *, steps: int = 60) -> Floats:
    """Return the coefficients [q] of an unpenalised logistic regression of y 0/1 [n] on x [n, q], NaN where none.

    Newton's method with halved steps; none exists where a threshold on x separates the classes.
    """
    truth = np.asarray(y, dtype=np.float64)
    weights = np.ones((1, len(truth)))

    def loss(beta: Floats) -> float:
        eta = x @ beta + offset
        return float(np.sum(np.logaddexp(0, eta) - truth * eta))

    beta = np.zeros(x.shape[1])
    for _ in range(steps):
        step = _newton(x, truth, offset, beta[None], weights)[0][0]
        if not np.isfinite(step).all():
            break
        before, size = loss(beta), 1.0
        while size > 1e-6 and loss(beta + size * step) > before + 1e-12:
            size /= 2
        beta = beta + size * step
        if np.abs(x @ beta + offset).max() > _FAR + np.abs(offset).max():
            break
        if np.abs(step).max() < 1e-10:
            return np.asarray(beta, dtype=np.float64)
    return np.full(x.shape[1], np.nan)


def _newton(x: Floats, truth: Floats, offset: Floats | float, beta: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return Newton steps [b, q] from `beta` [b, q] under weights [b, n], and how much they gain (decrement) [b]."""
    q = x.shape[1]
    p = special.expit(beta @ x.T + offset)
    gradient = (weights * (truth - p)) @ x
    p *= 1 - p
    p *= weights
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), q * q)
    return _solve((p @ products).reshape(-1, q, q), gradient)


def _solve(hessian: Floats, gradient: Floats) -> tuple[Floats, Floats]:
    scale = np.sqrt(np.maximum(np.einsum("bii->bi", hessian), 1e-300))
    scaled = hessian / (scale[:, :, None] * scale[:, None, :])
    sound = np.isfinite(scaled).all(axis=(1, 2))
    sound[sound] &= np.linalg.cond(scaled[sound]) < 1e12
    step = np.full(gradient.shape, np.nan)
    step[sound] = np.linalg.solve(scaled[sound], (gradient / scale)[sound, :, None])[:, :, 0] / scale[sound]
    return step, np.einsum("bi,bi->b", step, gradient)


def spline(values: Floats) -> Floats:
    """Return the restricted cubic spline of `values` [n] without the constant, [n, k-1] for k distinct knots.

    Linear beyond the outer knots; scaled by the square of their distance (Harrell, Regression modeling
    strategies, 2015, eq. 2.25). Fewer than three distinct knots: `values` alone.
    """
    t = np.unique(np.quantile(values, KNOTS))
    columns = [values]
    if t.size >= 3:
        span = (t[-1] - t[0]) ** 2
        for knot in t[:-2]:
            columns.append(
                (
                    np.maximum(values - knot, 0) ** 3
                    - np.maximum(values - t[-2], 0) ** 3 * (t[-1] - knot) / (t[-1] - t[-2])
                    + np.maximum(values - t[-1], 0) ** 3 * (t[-2] - knot) / (t[-1] - t[-2])
                )
                / span
            )
    return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True)
class _Line:
    """One regression, fitted to the sample, that can be refitted under other weights."""

    x: Floats
    offset: Floats
    beta: Floats
    c: Cohort

    @classmethod
    def fit(cls, x: Floats, offset: Floats, c: Cohort) -> _Line:
        return cls(x, offset, logistic(x, c.y, offset), c)

    def refit(self, by_patient: Ints, weights: Floats) -> Floats:
        """Return coefficients [b, q] under weights of patients [b, k] and of images [b, n], NaN where unsettled."""
        q, truth = self.x.shape[1], self.c.y.astype(np.float64)
        if np.isnan(self.beta).any():
            return np.full((len(weights), q), np.nan)
        p = special.expit(self.x @ self.beta + self.offset)
        products = (self.x[:, :, None] * self.x[:, None, :]).reshape(len(p), q * q)
        terms = np.concatenate([(truth - p)[:, None] * self.x, (p * (1 - p))[:, None] * products], axis=1)
        sums = np.stack([np.bincount(self.c.codes, column, self.c.n_patients) for column in terms.T], axis=1)
        first = by_patient.astype(np.float64) @ sums  # at the sample's coefficients all resamples share the terms
        beta = self.beta + _solve(first[:, q:].reshape(-1, q, q), first[:, :q])[0]
        open_ = np.ones(len(beta), dtype=bool)
        for _ in range(_STEPS):
            step, gain = _newton(self.x, truth, self.offset, beta[open_], weights[open_])
            beta[open_] += step
            open_[open_] = ~(np.abs(gain) < _SETTLED)
            if not open_.any():
                break
        beta[open_] = np.nan
        return beta


@dataclass(frozen=True, slots=True)
class _Lines:
    slope: _Line
    level: _Line
    smooth: _Line
    c: Cohort

    @classmethod
    def of(cls, c: Cohort) -> _Lines:
        odds = log_odds(c.score)
        ones, nothing = np.ones((c.n, 1)), np.zeros(c.n)
        return cls(
            _Line.fit(np.column_stack([ones, odds]), nothing, c),
            _Line.fit(ones, odds, c),
            _Line.fit(np.column_stack([ones, spline(odds)]), nothing, c),
            c,
        )

    def statistic(self) -> Statistic:
        """Return the function from patient weights [b, k] to the figures `CALIBRATION` and chance's ICI [b, 5]."""
        c, smooth = self.c, self.smooth
        fitted = special.expit(smooth.x @ smooth.beta)

        def statistic(by_patient: Ints) -> Floats:
            weights = by_patient[:, c.codes].astype(np.float64)
            total = weights.sum(axis=1)
            curve = special.expit(smooth.refit(by_patient, weights) @ smooth.x.T)
            chance = np.einsum("bn,bn->b", weights, np.abs(curve - fitted)) / total
            curve -= c.score
            ici = np.einsum("bn,bn->b", weights, np.abs(curve, out=curve)) / total
            return np.stack(
                [
                    self.slope.refit(by_patient, weights)[:, 1],
                    self.level.refit(by_patient, weights)[:, 0],
                    (weights @ c.y) / (weights @ c.score),
                    ici,
                    chance,
                ],
                axis=1,
            )

        return statistic
