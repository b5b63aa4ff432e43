"""Missed and false calls, bet on apart: is the error still within the reference's upper bound and a margin?

For errors X in 0..1 whose mean is at most q, 1 + bet (X - q) has a mean of at most 1, so the Shiryaev-Roberts sum
reaches a threshold no oftener than once in as many labels, also when q was estimated: it is the bound of the estimate
(Shin, Ramdas and Rinaldo, NEJSDS 2024). Where a design asked for labels with known chances, X - q is divided by the
chance, and by the largest such weight before, as which a larger one counts: that keeps the range, and from then on
the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope.monitoring.detector import Budget, Detection, stamp
from pneumoscope.monitoring.labels import Judged
from pneumoscope.monitoring.reference import Reference
from pneumoscope.monitoring.streams import TRUTH
from pneumoscope.records import Floats
from pneumoscope.statistics.proportions import Z95

MARGIN = 0.01  # of missed or false calls, beyond the bound
KINDS = {"missed": "pneumonia that was called normal", "false": "normal images that were called pneumonia"}
LEAST_CHANCE = 0.01  # a smaller chance would make one label outweigh a hundred
_ABOVE = np.geomspace(0.01, 0.6, 12)  # how far beyond the bound each bettor thinks the error is
_HUGE = 1e200


class Errors:
    """One e-detector for missed calls, one for false calls; fed with labels in the order of their arrival."""

    name = "errors"

    def __init__(self, reference: Reference, budget: Budget, state: Mapping[str, Any] | None = None) -> None:
        self.bounds = {kind: min(0.95, facts["high"] + MARGIN) for kind, facts in reference.errors.items()}
        self.shares = {kind: float(facts["value"]) for kind, facts in reference.errors.items()}
        self.sizes = {kind: int(facts["n"]) for kind, facts in reference.errors.items()}
        self.threshold = budget.errors
        stored: Mapping[str, Any] = state or {"after": 0, "kinds": {}}
        self._after = int(stored["after"])
        self.kinds: dict[str, dict[str, Any]] = {
            kind: dict(stored["kinds"].get(kind) or _start()) for kind in self.bounds
        }

    @property
    def after(self) -> int:
        """The last label that was bet on."""
        return self._after

    def state(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"after": self._after, "kinds": self.kinds}

    def step(self, labels: Judged) -> list[Detection]:
        """Take labels; those up to `after` are ignored."""
        found: list[Detection] = []
        for index in np.flatnonzero(labels.row > self._after):
            positive, called = bool(labels.positive[index]), bool(labels.called[index])
            kind, wrong = ("missed", positive and not called) if positive else ("false", called and not positive)
            if kind in self.kinds:
                found += self._bet(kind, float(wrong), labels, int(index))
        if len(labels):
            self._after = max(self._after, int(labels.row.max()))
        return found

    def _bet(self, kind: str, wrong: float, labels: Judged, index: int) -> list[Detection]:
        state, bound = self.kinds[kind], self.bounds[kind]
        chance = labels.chance[index]
        heavy = 1 / max(LEAST_CHANCE, chance) if math.isfinite(chance) else 1.0
        largest = state["heaviest"] or heavy
        weight = min(1.0, heavy / largest)
        state["heaviest"] = max(largest, heavy)
        capital = np.array(state["capital"]) + 1 / _ABOVE.size
        state["capital"] = np.minimum(capital * bets(wrong, bound, weight), _HUGE).tolist()
        state["labels"] += 1
        state["wrong"] += wrong
        state["designed"] += math.isfinite(chance)
        if state["cusum"] <= 0:
            state |= {"since": stamp(labels.at[index]), "since_row": int(labels.row[index]), "run": [0, 0.0]}
        worse = min(0.95, 2 * max(bound, 0.02))
        step = math.log(worse / bound) if wrong else math.log((1 - worse) / (1 - bound))
        state["cusum"] = max(0.0, state["cusum"] + step)
        state["run"] = [state["run"][0] + 1, state["run"][1] + wrong]
        total = float(sum(state["capital"]))
        if total < self.threshold:
            return []
        run, errors = state["run"]
        evidence = {
            "statistic": total, "threshold": self.threshold, "labels": run, "wrong": errors, "bound": bound,
            "kind": kind, "design": state["designed"] == state["labels"],
        }  # fmt: skip
        row, first, at, since = int(labels.row[index]), state["since_row"], stamp(labels.given[index]), state["since"]
        state["capital"], state["cusum"] = _start()["capital"], 0.0
        return [Detection(self.name, TRUTH, [kind], row, first, at, since, evidence)]


def bets(wrong: ArrayLike, bound: ArrayLike, weight: float = 1.0) -> Floats:
    """Return what each bettor's capital is multiplied by, [..., 12]; `weight` in 0..1."""
    excess = weight * (np.asarray(wrong, np.float64) - np.asarray(bound, np.float64))
    return np.asarray(1 + strengths(bound) * excess[..., None])


def strengths(bound: ArrayLike) -> Floats:
    """Return the bets [..., 12], the best ones for errors that much beyond the bound (Kelly)."""
    q = np.asarray(bound, np.float64)[..., None]
    return np.asarray((np.minimum(q + _ABOVE, 0.99) - q) / (q * (1 - q)))


def run_length(share: float, bound: float, worse: float, height: float) -> float:
    """Return the mean number of labels until a Bernoulli CUSUM reaches `height` where `share` of them are wrong.

    Siegmund's approximation (Sequential Analysis 1985, 2.6) with the overshoot of a lattice; its log-likelihood ratio
    is of `worse` against `bound`.
    """
    up, down = math.log(worse / bound), math.log((1 - worse) / (1 - bound))
    drift = share * up + (1 - share) * down
    spread = share * (1 - share) * (up - down) ** 2
    if spread <= 0:
        return math.inf
    top = height + up / 3
    rate = -2 * drift / spread
    if abs(rate * top) < 1e-6:
        return top**2 / spread
    if rate * top > 500:
        return math.inf
    return (math.exp(rate * top) - rate * top - 1) / abs(drift * rate)


def beside(errors: Errors) -> dict[str, Any]:
    """Return the Bernoulli CUSUM beside the bets, with its run length under the estimated baseline and one and two
    standard errors worse: what a reference of this size makes of a nominal figure."""
    found = {}
    for kind, state in errors.kinds.items():
        share, n, bound = errors.shares[kind], errors.sizes[kind], errors.bounds[kind]
        worse, base = min(0.95, 2 * max(bound, 0.02)), max(share, 0.5 / n)
        error = max(1e-9, math.sqrt(base * (1 - base) / n), (bound - MARGIN - share) / Z95)
        height = math.log(errors.threshold)
        lengths = [run_length(min(0.94, base + k * error), bound, worse, height) for k in (0, 1, 2)]
        found[kind] = {
            "cusum": state["cusum"], "height": height,
            "labels_between_false_alarms": [round(min(length, 1e12)) for length in lengths],
            "statistic": float(sum(state["capital"])), "threshold": errors.threshold,
            "bound": bound, "labels": state["labels"], "wrong": state["wrong"],
        }  # fmt: skip
    return found


def _start() -> dict[str, Any]:
    return {
        "capital": [0.0] * _ABOVE.size, "cusum": 0.0, "since": "", "since_row": 0, "run": [0, 0.0], "labels": 0,
        "wrong": 0.0, "designed": 0, "heaviest": 0.0,
    }  # fmt: skip
