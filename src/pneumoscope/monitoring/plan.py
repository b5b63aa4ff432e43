"""How soon would a change be noticed here? Simulated on the reference, with its images, margins and budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pneumoscope.monitoring.detector import Budget
from pneumoscope.monitoring.errors import Errors, bets
from pneumoscope.monitoring.permutation import permuted, sums_of
from pneumoscope.monitoring.reference import Reference
from pneumoscope.monitoring.sequential import BETS, binned, grown, quick_places, ranked, starting_bag
from pneumoscope.monitoring.streams import POINTS
from pneumoscope.records import Floats

MOST_WINDOWS = 20
DRAWS = 20
MOST_LABELS = 6_000

Shift = Callable[[Reference, np.random.Generator, int], Floats | None]


def plan(
    reference: Reference, budget: Budget, *, labels_a_day: float = 0.0, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Return, for a table of changes, days until an alarm: `median` and `p90`, None beyond `horizon_days`.

    Args:
        reference: whose images are drawn again, by patient, and changed.
        budget: images a year, window and false alarms.
        labels_a_day: unbiased labels; 0 leaves those rows out.
        draws: simulated beginnings of each change.
        seed: of all of them.
    """
    a_day = budget.images_a_year / 365.25
    horizon = MOST_WINDOWS * budget.window / a_day
    rows: list[dict[str, Any]] = []
    for name, shift in SHIFTS.items():
        rng = np.random.default_rng([seed, 21, len(rows)])
        days = [_days(reference, budget, shift, rng) for _ in range(draws)]
        rows += _row(name, "images", days, horizon)
    for flips in (0.05, 0.10, 0.20) if labels_a_day > 0 else ():
        rng = np.random.default_rng([seed, 22, round(100 * flips)])
        needed = [_labels(reference, budget, flips, rng) for _ in range(5 * draws)]
        days = [None if count is None else count / labels_a_day for count in needed]
        rows += _row(f"{100 * flips:.0f} % of the truth turned round", "labels", days, MOST_LABELS / labels_a_day)
    return {
        "images_a_day": a_day, "labels_a_day": labels_a_day, "window": budget.window,
        "alarms_per_year": budget.alarms_per_year, "draws": draws, "rows": rows,
    }  # fmt: skip


def _row(change: str, by: str, days: Sequence[float | None], horizon: float) -> list[dict[str, Any]]:
    """Return the row of a change, none where the reference cannot show it."""
    known = [day for day in days if day is not None]
    if len(known) < len(days):
        return []
    ends = {"median": float(np.median(known)), "p90": float(np.quantile(known, 0.9, method="higher"))}
    found = {name: round(day, 1) if np.isfinite(day) else None for name, day in ends.items()}
    return [{"change": change, "by": by, **found, "horizon_days": round(horizon, 1)}]


def _days(reference: Reference, budget: Budget, shift: Shift, rng: np.random.Generator) -> float | None:
    """Return days from the change to the first alarm, infinite where the horizon ends; None where it cannot be made."""
    size, a_day = budget.window, budget.images_a_year / 365.25
    begun = int(rng.integers(0, size))  # where in a window it begins
    changed = shift(reference, rng, MOST_WINDOWS * size - begun)
    if changed is None:
        return None
    before = reference.values[rng.integers(0, len(reference.values), begun)]
    values = np.concatenate([before, changed])
    ends = [_windows(reference, budget, values, rng), _bets(reference, budget, values, rng)]
    return max(1.0, min(ends) - begun) / a_day if np.isfinite(min(ends)) else np.inf


def _windows(reference: Reference, budget: Budget, values: Floats, rng: np.random.Generator) -> float:
    margins = np.array([column.margin for column in reference.columns])
    sums, size, alpha = reference.sums, budget.window, budget.alpha(0)
    for end in range(size, len(values) + 1, size):
        window = sums_of(values[end - size : end], np.arange(size))
        if permuted(sums, window, margins, alpha, rng).p <= alpha:
            return float(end)
    return np.inf


def _bets(reference: Reference, budget: Budget, values: Floats, rng: np.random.Generator) -> float:
    places = quick_places(reference)
    if not places:
        return np.inf
    p = ranked(starting_bag(reference, places), binned(values[:, places]), rng.random((len(values), len(places))))
    capital, threshold = np.zeros((len(places), BETS.size)), budget.sequential(len(places))
    for index, row in enumerate(p):
        present = np.isfinite(row)
        capital = grown(capital, 1 + BETS * (np.where(present, row, 0.5)[:, None] - 0.5), present)
        if capital.sum(axis=1).max() >= threshold:
            return float(index + 1)
    return np.inf


def _labels(reference: Reference, budget: Budget, flips: float, rng: np.random.Generator) -> float | None:
    """Return labels until an alarm on missed or false calls, where a share of the truth is turned round."""
    errors = Errors(reference, budget)
    if set(errors.bounds) != {"missed", "false"}:
        return None
    share = float((reference.truth[reference.truth >= 0] == 1).mean()) if (reference.truth >= 0).any() else 0.5
    ill = rng.random(MOST_LABELS) < share
    wrong_now = {kind: errors.shares[kind] * (1 - flips) + (1 - errors.shares[kind]) * flips for kind in errors.shares}
    first = np.inf
    for kind, mask in (("missed", ill), ("false", ~ill)):
        capital = np.zeros(12)
        for place in np.flatnonzero(mask):
            capital = (capital + 1 / 12) * bets(float(rng.random() < wrong_now[kind]), errors.bounds[kind])
            if capital.sum() >= budget.errors:
                first = min(first, float(place + 1))
                break
    return first


# --- changes ----------------------------------------------------------------------------------------------


def _drawn(reference: Reference, rng: np.random.Generator, n: int) -> Floats:
    return np.array(reference.values[rng.integers(0, len(reference.values), n)])


def _moved(name: str, by: float, part: float = 1.0) -> Shift:
    """A column moves: a number by standard deviations, a share by points; or `part` of the images do."""

    def shift(reference: Reference, rng: np.random.Generator, n: int) -> Floats | None:
        place = reference.position(name)
        if place is None:
            return None
        values = _drawn(reference, rng, n)
        if reference.columns[place].unit == POINTS:
            values[rng.random(n) < by, place] = 1.0
        else:
            values[rng.random(n) < part, place] += by
        return values

    return shift


def _prevalence(by: float) -> Shift:
    """The share of pneumonia moves, by labels, or by what the scores say where there are none."""

    def shift(reference: Reference, rng: np.random.Generator, n: int) -> Floats | None:
        known = reference.truth >= 0
        ill = np.where(known, reference.truth, np.nan_to_num(reference.probability, nan=0.5))
        share = float(ill.mean())
        target = share + by
        if not 0.01 < target < 0.99:
            return None
        weights = ill * target / share + (1 - ill) * (1 - target) / (1 - share)
        return np.array(reference.values[rng.choice(len(weights), n, p=weights / weights.sum())])

    return shift


SHIFTS: Mapping[str, Shift] = {
    "brightness by half a standard deviation": _moved("mean", 0.5),
    "brightness by one standard deviation": _moved("mean", 1.0),
    "noise by half a standard deviation": _moved("noise", 0.5),
    "5 % of images turned or inverted": _moved("turned_tail", 0.05),
    "5 % more images without an answer": _moved("abstained", 0.05),
    "scores by half a standard deviation": _moved("logit", 0.5),
    "ten points less pneumonia": _prevalence(-0.10),
    "ten points more pneumonia": _prevalence(0.10),
    "twenty points less pneumonia": _prevalence(-0.20),
}
