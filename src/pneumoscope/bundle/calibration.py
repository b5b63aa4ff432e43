"""From logits to probabilities, and from probabilities to decisions: fitted on validation images only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from pneumoscope.errors import DataError
from pneumoscope.records import Bools, Estimate, Floats
from pneumoscope.statistics.bootstrap import resampled_weights
from pneumoscope.statistics.cohort import Cohort, cohort
from pneumoscope.statistics.proportions import proportion

TARGET = 0.95
CARRIED = "threshold carried over"
_LOG_T = (float(np.log(0.05)), float(np.log(20.0)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted temperature and bias, with the mean negative log likelihood (nats per image) before and after.

    `note`: why the data could not determine the temperature, otherwise empty.
    """

    temperature: float
    bias: float
    nll_before: float
    nll_after: float
    n: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold (positive where probability >= threshold) and what it achieved where it was chosen.

    `target`: the sensitivity (`triage`) or specificity (`rule-in`) asked for, None for `balanced`. `n`: how
    many images chose it.
    The figures are of those images, so mildly optimistic: report them anew on other images. `carried`: the threshold
    was chosen on others.
    """

    name: str
    threshold: float
    target: float | None
    sensitivity: Estimate
    specificity: Estimate
    n: int
    note: str = ""
    carried: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return plain values, estimates in the form of `metrics.json`."""
        return {
            "name": self.name,
            "threshold": self.threshold,
            "target": self.target,
            "sensitivity": self.sensitivity.as_json(),
            "specificity": self.specificity.as_json(),
            "n": self.n,
            "note": self.note,
            "carried": self.carried,
        }


def pneumonia_logit(logits: ArrayLike) -> Floats:
    """Return the log-odds of pneumonia, float64 [n], summed over its subtypes.

    `logits`: [n, C], class 0 normal, the others pneumonia: (normal, pneumonia) or (normal, bacterial, viral).
    Raises `DataError` on another shape or a value that is not finite.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        raise DataError(f"logits have the shape {values.shape}", remedy="give [n, 2] or [n, 3]")
    if not np.isfinite(values).all():
        raise DataError("some logits are not finite", remedy="leave out images that could not be read")
    return np.asarray(special.logsumexp(values[:, 1:], axis=1) - values[:, 0], dtype=np.float64)


def probabilities(logits: ArrayLike, temperature: float, bias: float = 0.0) -> tuple[Floats, Floats | None]:
    """Return the probability of pneumonia [n] and of viral given pneumonia [n], None for two classes.

    `logits`: [n, C] as in `pneumonia_logit`, divided by `temperature` > 0; `bias` is added to the log-odds of
    pneumonia. Both results in 0..1, float64.
    Raises `DataError` as `pneumonia_logit` does, and for a temperature that is not positive.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise DataError(f"the temperature is {temperature}", remedy="give a positive number")
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    pneumonia = special.expit(pneumonia_logit(scaled) + bias)
    return pneumonia, special.expit(scaled[:, 2] - scaled[:, 1]) if scaled.shape[1] == 3 else None


def fit_calibration(logits: ArrayLike, targets: ArrayLike, *, even: bool = False) -> Calibration:
    """Fit the temperature and bias that minimise the negative log likelihood of normal against pneumonia.

    `logits`: [n, C] as in `pneumonia_logit`; `targets`: 0 normal, 1 pneumonia of any subtype, [n]. Binary,
    because the subtype of a pneumonia may be unknown. The bias gives back the share of pneumonia that a loss
    with class weights takes away: the mean probability becomes the observed share. The search runs over log T
    in log .05 .. log 20. Where a threshold separates the classes the likelihood grows as T falls to 0, and T
    stays 1. `even`: both classes weigh alike, so that the share is a half whatever it is among these images.
    Raises `DataError` where one class is missing.
    Source: Guo et al., ICML 2017; with bias, Alexandari et al., ICML 2020.
    """
    from scipy import optimize  # slow to load, and only training fits

    values = np.asarray(logits, dtype=np.float64)
    c = cohort(targets, pneumonia_logit(values))
    if c.one_class:
        raise DataError("calibration needs normal and pneumonia images", remedy="enlarge the validation split")
    weights = np.where(c.y, 0.5 / c.y.mean(), 0.5 / (1 - c.y.mean())) if even else np.ones(c.n)

    def loss(log_t: float, bias: float) -> float:
        odds = pneumonia_logit(values / np.exp(log_t)) + bias
        return float(np.average(np.logaddexp(0.0, np.where(c.y, -odds, odds)), weights=weights))

    def best_bias(log_t: float) -> float:
        odds = pneumonia_logit(values / np.exp(log_t))
        far = float(np.abs(odds).max()) + 40.0  # there every probability is 0 or 1

        def gap(bias: float) -> float:
            return float(np.average(special.expit(odds + bias) - c.y, weights=weights))

        return float(optimize.brentq(gap, -far, far, xtol=1e-12))

    before = loss(0.0, 0.0)
    if c.score[c.y].min() > c.score[~c.y].max():
        bias = best_bias(0.0)
        note = "a threshold separates the classes: T cannot be fitted"
        return Calibration(1.0, bias, before, loss(0.0, bias), c.n, note)
    # The loss of three classes need not have one valley: start from the best of a grid.
    grid = np.linspace(*_LOG_T, 61)
    best = int(np.argmin([loss(point, best_bias(point)) for point in grid]))
    bounds = (grid[max(0, best - 1)], grid[min(60, best + 1)])
    solution = optimize.minimize_scalar(
        lambda log_t: loss(log_t, best_bias(log_t)), bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    note = "at the edge of the search: look at the logits" if best in (0, 60) else ""
    return Calibration(float(np.exp(solution.x)), best_bias(float(solution.x)), before, float(solution.fun), c.n, note)


def fit_to(logits: ArrayLike, probability: ArrayLike) -> Calibration:
    """Fit the temperature and bias that repeat another network's probabilities of the same images, without labels.

    `logits`: [n, C] as in `pneumonia_logit`; `probability`: [n] in 0..1, the other network's. Minimises the
    cross-entropy to those probabilities, so that the other's thresholds keep their meaning.
    """
    from scipy import optimize  # slow to load, and only training fits

    values, target = np.asarray(logits, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    if target.shape != values.shape[:1] or not ((target >= 0) & (target <= 1)).all():
        raise DataError("there is not one probability in 0..1 for each image", remedy="give those of the same images")

    def loss(x: Floats) -> float:
        odds = pneumonia_logit(values / np.exp(x[0])) + x[1]
        return float((np.logaddexp(0.0, odds) - target * odds).mean())

    start = np.zeros(2)
    solution = optimize.minimize(loss, start, method="Nelder-Mead", bounds=[_LOG_T, (-40, 40)], options={"xatol": 1e-6})
    temperature, bias = float(np.exp(solution.x[0])), float(solution.x[1])
    return Calibration(temperature, bias, loss(start), float(solution.fun), len(values))


def points_at(
    points: Mapping[str, Mapping[str, Any]], y: ArrayLike, probability: ArrayLike, patients: Sequence[str]
) -> dict[str, OperatingPoint]:
    """Return operating points of a card at their own thresholds, with what they achieve on these images."""
    c = cohort(y, probability, patients)
    measured = {name: _point(name, c, float(p["threshold"]), p.get("target"), CARRIED) for name, p in points.items()}
    return {name: replace(point, carried=True) for name, point in measured.items()}


def calibrate(
    logits: ArrayLike, targets: ArrayLike, patients: Sequence[str], *, seed: int, even: bool = False
) -> tuple[Calibration, dict[str, OperatingPoint]]:
    """Fit the calibration to validation images, and choose the operating points among their probabilities.

    Where both classes weigh alike (`even`), `balanced` is at a half: both are equally likely there. That is Youden's
    point of the fitted model, and steadier than Youden's point of the images.
    """
    fitted = fit_calibration(logits, targets, even=even)
    probability, _ = probabilities(logits, fitted.temperature, fitted.bias)
    return fitted, operating_points(targets, probability, patients, seed=seed, balanced=0.5 if even else None)


def calibration_sections(
    fitted: Calibration, points: Mapping[str, OperatingPoint], *, draws: int = 0
) -> dict[str, Any]:
    """Return the sections of a bundle's card that `calibrate` decides; `draws`: of stressed images, which are even."""
    method = "temperature and bias fitted on the validation split"
    if draws:
        method += f", {draws} times changed in style and framing towards the other class, both classes weighing alike"
    share = {"prevalence": 0.5} if draws else {}
    return {
        "calibration": {"method": method, **share, **asdict(fitted)},
        "operating_points": {name: point.as_json() for name, point in points.items()},
    }


def operating_points(
    y: ArrayLike,
    probability: ArrayLike,
    patients: Sequence[str],
    *,
    target: float = TARGET,
    seed: int = 0,
    resamples: int = 1000,
    balanced: float | None = None,
) -> dict[str, OperatingPoint]:
    """Choose the thresholds `balanced`, `triage` and `rule-in` from validation images.

    `y`: 0/1 [n]; `probability`: [n] in 0..1; `patients`: [n] keys.
    - `balanced`: the threshold given, else the maximiser of sensitivity + specificity (Youden 1950), the middle of the
      interval where several thresholds tie, as the median over patient bootstrap resamples: one image does not decide.
    - `triage`: the largest threshold whose sensitivity's lower 95 % bound reaches `target`; where too few
      images of pneumonia can support that, the largest whose sensitivity itself does, and `note` says so.
    - `rule-in`: the same for specificity, the smallest threshold.
    Where `balanced` reaches a target already, that point is the same threshold: triage is never stricter, rule-in
    never laxer.
    Bounds are those of the two-sided 95 % Wilson interval with the design effect of patients. A threshold is
    put in the middle between the two neighbouring probabilities it separates.
    Raises `DataError` where a class is missing or a probability lies outside 0..1.
    """
    c = cohort(y, probability, patients)
    if c.one_class:
        raise DataError("thresholds need normal and pneumonia images", remedy="enlarge the validation split")
    if c.score.min() < 0 or c.score.max() > 1:
        raise DataError("a probability lies outside 0..1", remedy="give probabilities, not logits")
    cuts = _cuts(c.score)
    triage, triage_note = _reaching(c, cuts[::-1], target, positive=True)
    rule_in, rule_in_note = _reaching(c, cuts, target, positive=False)
    if balanced is None:
        balanced = _youden(c, np.random.default_rng(seed), resamples)
    return {
        "balanced": _point("balanced", c, balanced, None, ""),
        "triage": _point("triage", c, min(triage, balanced), target, triage_note),
        "rule-in": _point("rule-in", c, max(rule_in, balanced), target, rule_in_note),
    }


def threshold_reaching(
    y: ArrayLike, probability: ArrayLike, patients: Sequence[str], target: float
) -> tuple[float, str]:
    """Return the largest threshold whose sensitivity's lower 95 % bound reaches `target` 0..1, and a note.

    Arguments as in `operating_points`, whose `triage` it is unless `balanced` is laxer; the note says where there are
    too few patients for a bound, and the sensitivity itself reaches the target. Raises `DataError` where a class is
    missing.
    """
    c = cohort(y, probability, patients)
    if c.one_class:
        raise DataError("thresholds need normal and pneumonia images", remedy="label more images")
    return _reaching(c, _cuts(c.score)[::-1], target, positive=True)


def at_prevalence(probability: ArrayLike, source: float, target: float) -> Floats:
    """Return the probabilities [n] where the share of pneumonia is `target` instead of `source`, both in 0..1.

    Assumes that the images of each class look the same (Saerens et al., Neural Comput 2002, eq. 2.4).
    """
    if not (0 < source < 1 and 0 < target < 1):
        raise DataError(f"the prevalences are {source} and {target}", remedy="give shares between 0 and 1")
    p = np.asarray(probability, dtype=np.float64)
    positive, negative = p * (target / source), (1 - p) * ((1 - target) / (1 - source))
    return np.asarray(positive / (positive + negative), dtype=np.float64)


def estimate_prevalence(probability: ArrayLike, source: float, *, steps: int = 500) -> float:
    """Return the share of pneumonia among unlabelled images, by expectation maximisation (Saerens et al., eq. 2.9).

    `probability`: calibrated where the share was `source`, float [n]. The estimate inherits every fault of that
    calibration: it counts images that look ill, not patients who are. Stays within 1/(2n) of 0 and 1.
    """
    p = np.asarray(probability, dtype=np.float64)
    if p.ndim != 1 or p.size == 0 or not ((p >= 0) & (p <= 1)).all():
        raise DataError("the probabilities are not a list of values in 0..1", remedy="give at least one image")
    edge = 0.5 / p.size
    share = source
    for _ in range(steps):
        before, share = share, float(np.clip(at_prevalence(p, source, share).mean(), edge, 1 - edge))
        if abs(share - before) < 1e-9:
            break
    return share


def _point(name: str, c: Cohort, threshold: float, target: float | None, note: str) -> OperatingPoint:
    called = c.score >= threshold
    sensitivity = proportion(called[c.y], c.codes[c.y])
    specificity = proportion(~called[~c.y], c.codes[~c.y])
    return OperatingPoint(name, threshold, target, sensitivity, specificity, c.n, note)


def _edges(score: Floats) -> Floats:
    """Return 0, the distinct probabilities in ascending order, 1: thresholds lie in (edge, next edge]."""
    return np.concatenate([[0.0], np.unique(score), [1.0]])


def _middle(low: Floats, high: Floats) -> Floats:
    """Return the middle of (low, high], and high where rounding would bring it down to low."""
    middle = (low + high) / 2
    return np.where(middle > low, middle, high)


def _cuts(score: Floats) -> Floats:
    """Return one threshold per way of splitting the images, ascending, from all positive to none."""
    edges = _edges(score)
    cuts = _middle(edges[:-1], edges[1:])
    return cuts if edges[-2] < 1 else cuts[:-1]


def _reaching(c: Cohort, cuts: Floats, target: float, *, positive: bool) -> tuple[float, str]:
    """Return the first of `cuts`, ordered from strict to lenient on this class, that reaches the target."""
    mask = c.y == positive
    score, codes = c.score[mask], c.codes[mask]
    below = np.searchsorted(np.sort(score), cuts)
    right = score.size - below if positive else below
    steps = np.flatnonzero(np.diff(right, prepend=-1))  # a cut among the other class changes nothing
    feasible = cuts[steps[right[steps] >= target * score.size - 1e-9]]
    for threshold in feasible:
        called: Bools = (score >= threshold) == positive
        if proportion(called, codes).low >= target:
            return float(threshold), ""
    what = "sensitivity" if positive else "specificity"
    few = f"{np.unique(codes).size} patients are too few for a lower bound of {target:g}"
    if feasible.size == 0:  # rule-in where a normal image has probability 1: no threshold excludes it
        return float(cuts[-1]), f"no threshold reaches a {what} of {target:g}"
    return float(feasible[0]), f"{few}: the {what} itself reaches it"


def _youden(c: Cohort, rng: np.random.Generator, resamples: int) -> float:
    """Return the median over patient resamples of the middle of Youden's optimal interval."""
    distinct, rank = np.unique(c.score, return_inverse=True)
    edges = _edges(c.score)
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.diff(rank[order], prepend=-1))
    thresholds = []
    for weights in resampled_weights(c.n_patients, resamples, rng, width=c.n):
        drawn = weights[:, c.codes[order]]
        positive = np.add.reduceat(drawn * c.y[order], starts, axis=1)
        negative = np.add.reduceat(drawn, starts, axis=1) - positive
        missed, cleared = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
        p, n = missed[:, -1:], cleared[:, -1:]
        gain = np.zeros((len(drawn), distinct.size + 1), dtype=np.int64)
        gain[:, 1:] = cleared * p - missed * n  # Youden's J times p n: integers, so ties are exact
        first = gain.argmax(axis=1)
        last = distinct.size - gain[:, ::-1].argmax(axis=1)
        usable = (p > 0).ravel() & (n > 0).ravel()
        thresholds.append(_middle(edges[first], edges[last + 1])[usable])
    return float(np.median(np.concatenate(thresholds)))
