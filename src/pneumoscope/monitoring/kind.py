"""What kind of shift: is it explained by another share of pneumonia, or do the images look otherwise?

The share is estimated among the new images (Saerens et al. 2002; BBSE beside it, Lipton et al. 2018). Each class of
the reference, weighted to that share, foretells the mean of every column. What it leaves unexplained is tested by
max-T. A bootstrap of the patients of both sides carries the errors of the estimate, of the classes and of the images
along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from pneumoscope.bundle.calibration import estimate_prevalence, fit_calibration
from pneumoscope.monitoring.reference import Reference
from pneumoscope.monitoring.stream import Rows
from pneumoscope.monitoring.streams import POINTS, SCORES, said, values_of
from pneumoscope.records import Bools, Floats, Ints
from pneumoscope.statistics.bootstrap import resampled_weights

NONE, PREVALENCE, COVARIATE, MIXED, TRUTH, UNDECIDED = KINDS = (
    "none", "prevalence", "covariate", "mixed", "truth", "undecided",
)  # fmt: skip
RESAMPLES = 400
ALPHA = 0.01  # of the max-T over what is not explained
SURE = 3.0  # standard errors by which the share must have moved
PREVALENCE_MARGIN = 0.05
LEAST = 50  # answered images without which nothing can be said
PULLING = 12


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The kind, and what it rests on; plain values."""

    kind: str
    images: int
    answered: int
    prevalence: dict[str, Any] = field(default_factory=dict)
    unexplained: Sequence[dict[str, Any]] = ()
    unmoved: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """Answered images of one side. `ratio`: likelihood of pneumonia against normal; `weights`: [B, n] of resamples."""

    values: Floats
    ratio: Floats
    weights: Floats
    abstained: Floats  # [B], its share among all images, the first of the sample itself


def diagnose(reference: Reference, rows: Rows, *, seed: int = 0, resamples: int = RESAMPLES) -> Diagnosis:
    """Return the kind of shift between a reference and rows, which should be those since the change.

    `truth` is never returned: it takes labels, which the caller has.
    """
    answered = np.isfinite(rows.number["logit"])
    known = np.isfinite(reference.logit)
    if answered.sum() < LEAST or known.sum() < LEAST:
        note = f"{int(answered.sum())} answered images are too few to tell; {LEAST} are needed"
        return Diagnosis(UNDECIDED, len(rows), int(answered.sum()), note=note)
    ratio_of = _likelihood_ratio(reference)
    rng = np.random.default_rng([seed, 11, int(rows.row[0])])
    then = _side(reference.values, ratio_of(reference.logit), reference.patients, known, resamples, rng)
    values = values_of(rows, reference.columns)
    now = _side(values, ratio_of(rows.number["logit"]), rows.patients, answered, resamples, rng)
    share_then, share_now = _shares(then), _shares(now)
    moved = share_now - share_then
    error = float(moved[1:].std())
    prevalence = {
        "then": float(share_then[0]), "now": float(share_now[0]), "difference": float(moved[0]), "error": error,
        "ci95": [float(end) for end in np.quantile(moved[1:], (0.025, 0.975))],
        "bbse": _bbse(reference, rows.number["probability"][answered]),
    }  # fmt: skip
    residual, spread, critical = _residuals(reference, then, now, share_then[0], share_now)
    margins = np.array([*(column.margin for column in reference.columns), 0.02])
    with np.errstate(invalid="ignore"):
        t = np.maximum(np.abs(residual) - margins, 0) / spread
    beyond = np.flatnonzero(np.nan_to_num(t) > critical)
    order = beyond[np.argsort(-t[beyond])]
    changed = abs(moved[0]) > max(PREVALENCE_MARGIN, SURE * error)
    kind = {(False, False): NONE, (True, False): PREVALENCE, (False, True): COVARIATE, (True, True): MIXED}[
        (bool(changed), order.size > 0)
    ]
    note = ""
    if not _has_pictures(reference) and kind in (PREVALENCE, NONE):
        note = "without an embedding or picture facts a shift of the scores cannot be told from one of the images"
        kind = UNDECIDED if kind == PREVALENCE else kind
    unexplained = [_unexplained(reference, place, residual, t) for place in order]
    names = {column.name for place, column in enumerate(reference.columns) if np.isfinite(t[place])}
    unmoved = sorted(name for name in names - {item["stream"] for item in unexplained} if not name.startswith("axis_"))
    return Diagnosis(kind, len(rows), int(answered.sum()), prevalence, unexplained, unmoved, note)


def pulling(reference: Reference, rows: Rows, streams: Sequence[str]) -> list[int]:
    """Return which rows pull most in the direction in which these streams moved, at most 12, the strongest first."""
    places = [place for name in streams if (place := reference.position(name)) is not None]
    if not places or not len(rows):
        return []
    values = values_of(rows, [reference.columns[place] for place in places])
    usual, spread = np.nanmean(reference.values[:, places], axis=0), np.nanstd(reference.values[:, places], axis=0)
    with np.errstate(invalid="ignore"):
        away = np.where(np.isfinite(values), (values - usual) / np.maximum(spread, 0.05), 0.0)
    pull = away @ np.sign(away.mean(axis=0))
    return [int(index) for index in np.argsort(-pull, kind="stable")[:PULLING]]


def changed_at(values: Floats, usual: float) -> int:
    """Return since which image the mean of values [n], NaN where absent, left the usual one: least squares."""
    away = np.where(np.isfinite(values), values - usual, 0.0)
    tail = away[::-1].cumsum()[::-1]
    length = np.isfinite(values)[::-1].cumsum()[::-1]
    return int(np.argmax(tail**2 / np.maximum(length, 1)))


# --- the parts of the test --------------------------------------------------------------------------------


def _likelihood_ratio(reference: Reference) -> Any:
    """Return a function from logits to how many times likelier they are in pneumonia than in normal images.

    From the reference's labels where it has both classes, else from the bundle's calibration.
    """
    labelled = (reference.truth >= 0) & np.isfinite(reference.logit)
    truth = reference.truth[labelled]
    if np.unique(truth).size == 2:
        logits = np.stack([np.zeros(truth.size), reference.logit[labelled]], axis=1)
        fitted = fit_calibration(logits, truth, even=True)
        slope, bias = 1 / max(fitted.temperature, 0.2), fitted.bias
    else:
        both = np.isfinite(reference.logit) & (np.abs(reference.probability - 0.5) < 0.4999)
        source = float(reference.facts.get("source_prevalence") or 0.5)
        odds = special.logit(np.clip(reference.probability[both], 1e-6, 1 - 1e-6))
        slope, bias = np.polyfit(reference.logit[both], odds, 1) if both.sum() > 2 else (1.0, 0.0)
        bias -= float(special.logit(source))
    return lambda logit: np.exp(np.clip(slope * logit + bias, -30, 30))


def _side(
    values: Floats, ratio: Floats, patients: Ints, answered: Bools, resamples: int, rng: np.random.Generator
) -> _Side:
    codes = np.unique(patients, return_inverse=True)[1]
    count = int(codes.max()) + 1
    drawn = np.concatenate([np.ones((1, count), np.int64), *resampled_weights(count, resamples, rng, width=codes.size)])
    weights = drawn[:, codes].astype(np.float64)
    abstained = 1 - weights[:, answered].sum(axis=1) / weights.sum(axis=1)
    return _Side(values[answered], ratio[answered], weights[:, answered], abstained)


def _shares(side: _Side, steps: int = 200) -> Floats:
    """Return the estimated share of pneumonia in the sample and in each resample, by expectation maximisation [B]."""
    first = estimate_prevalence(side.ratio / (1 + side.ratio), 0.5)
    weights = side.weights / side.weights.sum(axis=1, keepdims=True)
    share = np.full(len(weights), first)
    edge = 0.5 / side.ratio.size
    for _ in range(steps):
        before = share
        likely = share[:, None] * side.ratio
        share = (weights * (likely / (likely + 1 - share[:, None]))).sum(axis=1).clip(edge, 1 - edge)
        if np.abs(share - before).max() < 1e-5:
            break
    return share


def _residuals(
    reference: Reference, then: _Side, now: _Side, share_then: float, share_now: Floats
) -> tuple[Floats, Floats, float]:
    """Return what the mixture leaves unexplained [m + 1], its standard error, and the critical value of max |t|.

    The last entry is the share of images without an answer, which no mixture explains.
    """
    known = np.isfinite(reference.logit)
    truth = reference.truth[known]
    posterior = share_then * then.ratio / (share_then * then.ratio + 1 - share_then)
    ill = np.where(truth >= 0, truth, posterior) if np.unique(truth[truth >= 0]).size == 2 else posterior
    means = {name: _weighted(then.weights * side, then.values) for name, side in (("ill", ill), ("well", 1 - ill))}
    foretold = share_now[:, None] * means["ill"] + (1 - share_now[:, None]) * means["well"]
    left = np.concatenate(
        [_weighted(now.weights, now.values) - foretold, (now.abstained - then.abstained)[:, None]], axis=1
    )
    residual, draws = left[0], left[1:] - left[0]
    spread = draws.std(axis=0)
    usable = np.isfinite(spread) & (spread > 1e-9)
    spread = np.where(usable, spread, np.inf)
    largest = np.abs(draws[:, usable] / spread[usable]).max(axis=1) if usable.any() else np.zeros(1)
    bonferroni = float(-special.ndtri(ALPHA / 2 / max(1, usable.sum())))
    return residual, spread, max(float(np.quantile(largest, 1 - ALPHA)), bonferroni)


def _weighted(weights: Floats, values: Floats) -> Floats:
    """Return means [B, m] of values [n, m], NaN where absent, under weights [B, n]."""
    present = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((weights @ np.where(present, values, 0.0)) / (weights @ present.astype(np.float64)))


def _bbse(reference: Reference, probability: Floats) -> float | None:
    """Return the share of pneumonia by the calls alone: (share called - false) / (found - false), within 0..1."""
    called = reference.probability >= reference.threshold
    answered = np.isfinite(reference.probability)
    ill, well = answered & (reference.truth == 1), answered & (reference.truth == 0)
    if not (ill.any() and well.any()):
        return None
    found, wrong = float(called[ill].mean()), float(called[well].mean())
    if found - wrong < 0.1:
        return None
    return float(np.clip(((probability >= reference.threshold).mean() - wrong) / (found - wrong), 0, 1))


def _has_pictures(reference: Reference) -> bool:
    return any(column.family != SCORES and column.name not in ("abstained", "header") for column in reference.columns)


def _unexplained(reference: Reference, place: int, residual: Floats, t: Floats) -> dict[str, Any]:
    if place == len(reference.columns):
        words = f"images without an answer: {100 * residual[place]:+.1f} points that the share of pneumonia leaves open"
        return {"stream": "abstained", "t": float(t[place]), "words": words, "unit": POINTS}
    column = reference.columns[place]
    words = said(column, 0.0, float(residual[place]))
    if column.unit == POINTS:
        words = f"{column.words}: {100 * residual[place]:+.1f} points that the share of pneumonia leaves open"
    return {"stream": column.name, "t": float(t[place]), "words": words, "unit": column.unit}
