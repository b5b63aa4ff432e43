"""Would a local calibration mend the probabilities? Fitted to some patients, measured on the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import StratifiedGroupKFold

from pneumoscope.bundle.calibration import at_prevalence, estimate_prevalence
from pneumoscope.evaluation.metrics import evaluate_predictions
from pneumoscope.records import Bools, Floats, Ints
from pneumoscope.statistics.bootstrap import interval, p_value, replicate
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.reliability import calibration_estimates, log_odds, logistic
from pneumoscope.validation.study import Study

FOLDS = 5
LEAST = 10  # patients of each class
Fit = Callable[[Floats, Bools, Floats], Floats]

METHODS: dict[str, tuple[str, bool]] = {
    "as shipped": ("no change", False),
    "prior shift": ("the share of pneumonia estimated from the scores and put in Bayes' rule (Saerens 2002)", False),
    "temperature": ("log-odds divided by one number (Guo 2017)", True),
    "Platt": ("log-odds times one number plus another (Platt 1999)", True),
    "isotonic": ("any rising step function (Zadrozny and Elkan 2002)", True),
}


def recalibration(study: Study, prevalence: float | None, *, seed: int, resamples: int = 1000) -> dict[str, Any]:
    """Return how well calibrated each method of `METHODS` is, cross-fitted in five parts that keep patients whole.

    `prevalence`: the share of pneumonia where the probabilities were calibrated, 0..1; None leaves prior shift out.
    For each: log loss (nats), Brier, ECE, slope, intercept, ICI, and how much log loss and Brier fall, with the
    patient bootstrap's interval and p. None where a class has fewer than ten patients.
    """
    groups = np.unique(study.patients, return_inverse=True)[1]
    if min(np.unique(groups[study.y]).size, np.unique(groups[~study.y]).size) < LEAST:
        return {"why_not": f"a class has fewer than {LEAST} patients", "methods": []}
    calibrated = {
        name: cross_fit(study, fit(name, prevalence), seed) for name in METHODS if name != "prior shift" or prevalence
    }
    shipped = calibrated["as shipped"]
    return {
        "folds": FOLDS,
        "taught_prevalence": prevalence,
        "estimated_prevalence": estimate_prevalence(study.p, prevalence) if prevalence else None,
        "methods": [
            {
                "name": name,
                "says": METHODS[name][0],
                "labels": METHODS[name][1],
                **_measured(study, p, shipped, seed, resamples),
            }
            for name, p in calibrated.items()
        ],
    }


def fit(name: str, prevalence: float | None) -> Fit:
    """Return the function (probabilities to learn from [n], truth [n], probabilities to change [m]) -> [m]."""

    def shifted(p: Floats, _: Bools, new: Floats) -> Floats:
        assert prevalence is not None
        return at_prevalence(new, prevalence, estimate_prevalence(p, prevalence))

    def temperature(p: Floats, y: Bools, new: Floats) -> Floats:
        slope = logistic(log_odds(p)[:, None], y)[0]
        return np.asarray(special.expit(log_odds(new) * max(float(np.nan_to_num(slope, nan=1.0)), 1e-3)))

    def platt(p: Floats, y: Bools, new: Floats) -> Floats:
        beta = logistic(np.column_stack([np.ones(p.size), log_odds(p)]), y)
        beta = beta if np.isfinite(beta).all() else np.array([0.0, 1.0])
        return np.asarray(special.expit(beta[0] + beta[1] * log_odds(new)))

    def isotonic(p: Floats, y: Bools, new: Floats) -> Floats:
        edge = 0.5 / p.size
        line = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip")
        return np.asarray(line.fit(p, y.astype(float)).predict(new))

    methods: dict[str, Fit] = {
        "as shipped": lambda _p, _y, new: new,
        "prior shift": shifted,
        "temperature": temperature,
        "Platt": platt,
        "isotonic": isotonic,
    }
    return methods[name]


def cross_fit(study: Study, method: Fit, seed: int) -> Floats:
    """Return probabilities [n], each from a fit that did not see its patient."""
    changed = study.p.copy()
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for rest, part in splitter.split(study.p[:, None], study.y, study.patients):
        changed[part] = method(study.p[rest], study.y[rest], study.p[part])
    return changed


def _losses(study: Study, p: Floats) -> Floats:
    inside = np.clip(p, 1e-6, 1 - 1e-6)
    return np.stack([-np.log(np.where(study.y, inside, 1 - inside)), (study.y - p) ** 2], axis=1)


def _measured(study: Study, p: Floats, shipped: Floats, seed: int, resamples: int) -> dict[str, Any]:
    patients = study.patients.tolist()
    c = cohort(study.y, p, patients)
    new, old = _losses(study, p), _losses(study, shipped)
    columns = np.concatenate([new, new - old], axis=1)
    sums = np.stack([np.bincount(c.codes, column, c.n_patients) for column in columns.T], axis=1)
    sizes = np.bincount(c.codes, minlength=c.n_patients)

    def statistic(weights: Ints) -> Floats:
        w = weights.astype(np.float64)
        return np.asarray((w @ sums) / (w @ sizes)[:, None])

    draws = replicate(statistic, c, seed=seed, resamples=resamples)
    value = columns.mean(axis=0)
    ece = evaluate_predictions(study.y, p, patients, study.threshold, seed=seed, resamples=resamples)["ece"]
    rest = {"ece": ece, **calibration_estimates(study.y, p, patients, seed=seed, resamples=resamples)}
    names = ("log_loss", "brier")
    return {
        "metrics": {
            **{name: interval(float(value[i]), draws[:, i]).as_json() for i, name in enumerate(names)},
            **{name: estimate.as_json() for name, estimate in rest.items()},
        },
        "against_shipped": {
            name: {**interval(float(value[i + 2]), draws[:, i + 2]).as_json(), "p": p_value(draws[:, i + 2])}
            for i, name in enumerate(names)
        },
    }
