"""Is a changed bundle better here, on images it was not fitted to, and not worse where it came from?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from sklearn.model_selection import StratifiedGroupKFold

from pneumoscope.adaptation.labelled import Labelled
from pneumoscope.adaptation.methods import METHODS, Basis, Change, method_fault
from pneumoscope.records import Bools, Floats, Ints
from pneumoscope.statistics.auc import auroc_estimate, paired_auroc
from pneumoscope.statistics.bootstrap import RESAMPLES, interval, replicate, without_false_certainty
from pneumoscope.statistics.cohort import Cohort, cohort
from pneumoscope.statistics.margins import auroc_margin
from pneumoscope.statistics.proportions import Z95
from pneumoscope.statistics.rates import confusion_by_patient, counted

FOLDS = 5
LEAST = 10  # patients of each class among the images that measure
GAINS = ("log_loss", "balanced_accuracy", "auroc")
_FIGURES = ("log_loss", "brier", "balanced_accuracy", "recall", "specificity")
_EDGE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A candidate's answers on images it was not fitted to: probabilities float64 [n] and calls bool [n]."""

    p: Floats
    called: Bools


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """`parts`: pairs of positions, fitted to and measured on, patients apart; `final`: what the bundle is fitted to."""

    parts: tuple[tuple[Ints, Ints], ...]
    final: Ints
    says: str

    @property
    def measured(self) -> Ints:
        """Positions of the images that measure, ascending."""
        return np.sort(np.concatenate([part for _, part in self.parts]))


def plan(images: Labelled, labels: int | None, *, seed: int) -> Plan:
    """Return which images fit and which measure.

    With `labels` > 0, whole patients are drawn until there are so many images; they fit, the others measure. None or
    0: five parts that keep patients whole, each measured by a fit to the other four, and all of them in the end.
    """
    everything = np.arange(images.n)
    if labels:
        chosen = draw_patients(images.patients, labels, np.random.default_rng(seed))
        fitted = np.flatnonzero(chosen)
        rest = np.flatnonzero(~chosen)
        return Plan(((fitted, rest),), fitted, "patients apart from those that fitted")
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    parts = tuple((fit, part) for fit, part in splitter.split(everything, images.y.astype(int), images.patients))
    return Plan(parts, everything, f"cross-fitted in {FOLDS} parts that keep patients whole; refitted to all")


def draw_patients(patients: NDArray[np.str_], count: int, rng: np.random.Generator) -> Bools:
    """Return a mask [n] of whole patients in random order, up to the one with whom there are `count` images."""
    _, codes = np.unique(patients, return_inverse=True)
    order = rng.permutation(codes.max() + 1)
    enough = int(np.searchsorted(np.cumsum(np.bincount(codes)[order]), count)) + 1
    return np.asarray(np.isin(codes, order[:enough]))


def too_few(images: Labelled) -> str | None:
    """Return why images cannot measure anything, None where they can."""
    kinds = (("pneumonia", True), ("normal", False))
    each = {name: np.unique(images.patients[images.y == kind]).size for name, kind in kinds}
    few = [f"{count} patients with {name} images" for name, count in each.items() if count < LEAST]
    return f"only {' and '.join(few)} are left to measure on, {LEAST} are needed" if few else None


def answers(
    basis: Basis, images: Labelled, planned: Plan, names: Sequence[str], *, labels: bool
) -> Iterator[tuple[str, Answer | None, str | None]]:
    """Yield each method's name, its answers on the images that measure (in their order), or why there are none."""
    for name in names:
        method = METHODS[name]
        reasons = (method_fault(name, basis, images.take(fit), labels) for fit, _ in planned.parts)
        reason = next(filter(None, reasons), None)
        if reason:
            yield name, None, reason
            continue
        p, called = np.full(images.n, np.nan), np.zeros(images.n, dtype=bool)
        for fit, part in planned.parts:
            change = method.fit(basis, images.take(fit))
            p[part] = change.probability(basis.bundle, images.take(part))
            called[part] = p[part] >= change.threshold(basis)
        yield name, Answer(p[planned.measured], called[planned.measured]), None


def measured(
    y: Bools,
    patients: NDArray[np.str_],
    mine: Answer,
    base: Answer,
    *,
    tests: int,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return the figures of a candidate and its gains over the bundle as it is.

    `y`: bool [n]; `patients`: [n]. Gains are positive where the candidate is better; `low` is the bound that counts:
    one-sided 2.5 % divided by `tests` (Bonferroni), because the best of several candidates flatters.
    """  # fmt: skip
    c, other = cohort(y, mine.p, patients), cohort(y, base.p, patients)
    losses, before = _losses(c), _losses(other)
    sums = _by_patient(c, np.concatenate([losses, before], axis=1))
    sizes = np.bincount(c.codes, minlength=c.n_patients)
    cells, cells_before = confusion_by_patient(c, mine.called), confusion_by_patient(c, base.called)

    def statistic(weights: Ints) -> Floats:
        w = weights.astype(np.float64)
        mean = (w @ sums) / (w @ sizes)[:, None]
        now, then = counted(*(w @ cells).T), counted(*(w @ cells_before).T)
        figures = [mean[:, 0], mean[:, 1], *(now[name] for name in _FIGURES[2:])]
        gains = [mean[:, 2] - mean[:, 0], now["balanced_accuracy"] - then["balanced_accuracy"]]
        return np.stack([*figures, *gains], axis=1)

    values = statistic(np.ones((1, c.n_patients), dtype=np.int64))[0]
    draws = replicate(statistic, c, seed=seed, resamples=resamples)
    estimates = [without_false_certainty(interval(float(v), column)) for v, column in zip(values, draws.T, strict=True)]
    area = paired_auroc(c, other).difference
    level = 0.025 / tests
    half = -float(ndtri(level)) * (area.high - area.low) / (2 * Z95)
    gains = {
        "log_loss": {**estimates[5].as_json(), "low": _bound(draws[:, 5], level)},
        "balanced_accuracy": {**estimates[6].as_json(), "low": _bound(draws[:, 6], level)},
        "auroc": {**area.as_json(), "low": area.value - half},
    }
    shown = {name: e.as_json() for name, e in zip(_FIGURES, estimates[:5], strict=True)}
    return {"metrics": {**shown, "auroc": auroc_estimate(c).as_json()}, "gains": gains}


def refusal(name: str, figures: Mapping[str, Any]) -> str | None:
    """Return why a candidate is not better here, None where it is shown to be; `figures` as `measured` gives them.

    Better: the bound of the gain in log loss, or in AUROC without loss of log loss, is above 0; for `thresholds`,
    which change no probability, that in balanced accuracy. And AUROC is shown to exceed .5: scores without
    information gain by giving everybody the share of pneumonia, which helps nobody.
    """
    gains = figures["gains"]
    if name == "as it is":
        return "it is the original"
    if not figures["metrics"]["auroc"]["ci95"][0] > 0.5:
        return "its AUROC was not shown to exceed .5"
    if name == "thresholds":
        return None if gains["balanced_accuracy"]["low"] > 0 else "a gain in balanced accuracy was not shown"
    if gains["log_loss"]["low"] > 0 or (gains["auroc"]["low"] > 0 and gains["log_loss"]["value"] >= 0):
        return None
    return "a gain in log loss or AUROC was not shown"


def on_original(basis: Basis, original: Labelled, change: Change, margin: float) -> dict[str, Any]:
    """Return the figures of a change on the original population; `not_worse`: AUROC shown to fall under `margin`."""
    patients: Sequence[str] = original.patients.tolist()
    before = METHODS["as it is"].fit(basis, original).probability(basis.bundle, original)
    after = change.probability(basis.bundle, original)
    tested = auroc_margin(original.y, after, before, patients, margin)
    alike = tested.difference.value == tested.difference.low == 0
    new, old = cohort(original.y, after, patients), cohort(original.y, before, patients)
    return {
        **original.counts(),
        **tested.as_json(),
        "not_worse": bool(tested.noninferior or alike),
        "auroc": {"before": auroc_estimate(old).as_json(), "after": auroc_estimate(new).as_json()},
        "log_loss": {"before": float(_losses(old)[:, 0].mean()), "after": float(_losses(new)[:, 0].mean())},
    }


def _losses(c: Cohort) -> Floats:
    """Return log loss (nats) and Brier score of each image, [n, 2]."""
    inside = np.clip(c.score, _EDGE, 1 - _EDGE)
    return np.stack([-np.log(np.where(c.y, inside, 1 - inside)), (c.y - c.score) ** 2], axis=1)


def _by_patient(c: Cohort, columns: Floats) -> Floats:
    return np.stack([np.bincount(c.codes, column, c.n_patients) for column in columns.T], axis=1)


def _bound(draws: Floats, level: float) -> float:
    defined = draws[~np.isnan(draws)]
    return float(np.quantile(defined, level)) if defined.size >= 0.95 * draws.size else float("nan")
