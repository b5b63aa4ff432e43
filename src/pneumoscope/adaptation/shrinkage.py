"""Fits that stay near what the bundle knows, the nearer the fewer labels there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special
from sklearn.model_selection import StratifiedGroupKFold

from pneumoscope.bundle.calibration import pneumonia_logit
from pneumoscope.records import Bools, Floats

SPREAD_BIAS = 2.0  # prior standard deviation of a change of bias, in log-odds
SPREAD_LOG_T = 0.7  # and of the logarithm of the temperature: a factor of two either way
SPREAD_HEAD = 1.0  # and of what a new head adds to the log-odds
INNER = 5
_LOG_T = (float(np.log(0.05)), float(np.log(20.0)))
_STEPS = 30


def calibration_near(
    logits: Floats, y: Bools, start: tuple[float, float], *, temperature: bool = True
) -> tuple[float, float]:
    """Return the temperature and bias of highest posterior density, normal about the bundle's own (`start`).

    `logits`: [n, C] of any n, also 0; `y`: bool [n]. The prior is worth few labels: with many, the result is that of
    `calibration.fit_calibration`. Without `temperature` only the bias moves.
    """
    from scipy import optimize  # slow to load

    if not len(y):
        return start

    def loss(x: Floats) -> float:
        log_t = float(np.log(start[0])) + (x[1] if temperature else 0.0)
        odds = pneumonia_logit(logits / np.exp(log_t)) + start[1] + x[0]
        prior = (x[0] / SPREAD_BIAS) ** 2 + ((x[1] / SPREAD_LOG_T) ** 2 if temperature else 0.0)
        return float(np.logaddexp(0.0, np.where(y, -odds, odds)).sum() + prior / 2)

    room = (_LOG_T[0] - float(np.log(start[0])), _LOG_T[1] - float(np.log(start[0])))
    bounds = [(-40.0, 40.0), room] if temperature else [(-40.0, 40.0)]
    solution = optimize.minimize(loss, np.zeros(len(bounds)), method="L-BFGS-B", bounds=bounds)
    moved = float(solution.x[1]) if temperature else 0.0
    return float(start[0] * np.exp(moved)), float(start[1] + solution.x[0])


@dataclass(frozen=True, slots=True, eq=False)
class HeadChange:
    """What is added to the log-odds of pneumonia: `features @ direction + shift`.

    `direction`: float64 [F]; `out_of_fold`: float64 [n], what a fit without its patient adds to each image that was
    learned from.
    """

    direction: Floats
    shift: float
    out_of_fold: Floats

    def added(self, features: Floats) -> Floats:
        """Return float64 [n] for features [n, F]."""
        return np.asarray(features @ self.direction + self.shift)


def head_near(features: Floats, y: Bools, patients: NDArray[np.str_], offset: Floats, *, seed: int) -> HeadChange:
    """Fit a ridge logistic regression of y on embeddings, on top of the log-odds that the bundle gives already.

    `features`: [n, F]; `y`: bool [n] with both classes in at least `INNER` patients each; `offset`: [n], log-odds. A
    change of zero is the original head, so the penalty pulls towards it. It gives what is added a prior standard
    deviation of `SPREAD_HEAD`, were the features independent; chosen by cross-validation it did worse on few labels.
    """
    penalty = features.shape[1] / SPREAD_HEAD**2
    added = np.zeros(y.size)
    splitter = StratifiedGroupKFold(INNER, shuffle=True, random_state=seed)
    for rest, part in splitter.split(features, y.astype(int), patients):
        direction, shift = _ridge(features[rest], y[rest], offset[rest], penalty)
        added[part] = features[part] @ direction + shift
    direction, shift = _ridge(features, y, offset, penalty)
    return HeadChange(direction, shift, added)


def _ridge(features: Floats, y: Bools, offset: Floats, penalty: float) -> tuple[Floats, float]:
    """Return the direction [F] and shift of a ridge logistic regression with an offset, features standardised.

    Newton's method in the span of the images, which has at most n dimensions. The penalty is per standardised feature.
    """
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    u, s, vt = np.linalg.svd((features - mean) / scale, full_matrices=False)
    keep = s > 1e-9 * max(float(s[0]), 1e-300)
    x = np.column_stack([u[:, keep] * s[keep], np.ones(y.size)])
    weight = np.append(np.full(int(keep.sum()), penalty), 1 / SPREAD_BIAS**2)
    beta = np.zeros(x.shape[1])

    def loss(b: Floats) -> float:
        odds = x @ b + offset
        return float(np.logaddexp(0.0, np.where(y, -odds, odds)).sum() + weight @ (b * b) / 2)

    for _ in range(_STEPS):
        p = special.expit(x @ beta + offset)
        gradient = x.T @ (y - p) - weight * beta
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + np.diag(weight), gradient)
        size, before = 1.0, loss(beta)
        while size > 1e-6 and loss(beta + size * step) > before:
            size /= 2
        beta = beta + size * step
        if float(np.abs(size * step).max()) < 1e-7:
            break
    direction = (vt[keep].T @ beta[:-1]) / scale
    return np.asarray(direction, dtype=np.float64), float(beta[-1] - mean @ direction)
