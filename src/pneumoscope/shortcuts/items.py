"""The items of the card: each a figure, its limit and a light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pneumoscope.bundle.calibration import pneumonia_logit, probabilities
from pneumoscope.predict import Classifier
from pneumoscope.records import Bools, Estimate, Floats, Ints, Progress
from pneumoscope.shortcuts import verdict
from pneumoscope.shortcuts.conditions import ADDED, REMOVED, logits, noise_fill, outline, untouched
from pneumoscope.shortcuts.probes import probe
from pneumoscope.shortcuts.radiographs import Radiographs
from pneumoscope.statistics.auc import PairedAuroc, paired_auroc, ranking, weighted_areas
from pneumoscope.statistics.bootstrap import interval, mean_of, replicate
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.proportions import proportion

CLEAN = "untouched"
# Removed with two fills, because the network's answers to one of them may be saturated.
AGAIN = ("lung_region_removed", "lungs_removed")


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the card.

    `key`: its name in `audit.json`. `light`: one of `verdict.LIGHTS`. `measure`: the name of `figure`. `limit`: the
    rule in figures. `reason`: why it was not tested. `facts`: further measurements.
    """

    key: str
    light: str
    measure: str = ""
    figure: Estimate | None = None
    limit: str = ""
    reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        figure = None if self.figure is None else self.figure.as_json()
        return {
            "key": self.key, "light": self.light, "measure": self.measure, "figure": figure, "limit": self.limit,
            "reason": self.reason, "facts": dict(self.facts),
        }  # fmt: skip


def not_tested(key: str, reason: str) -> Item:
    """Return an item without figure, with the reason."""
    return Item(key, verdict.NOT_TESTED, reason=reason)


@dataclass(frozen=True, slots=True)
class Answer:
    """The network's answers under one condition: log-odds float64 [n], calls of pneumonia bool [n]."""

    score: Floats
    called: Bools


def answer_all(classifier: Classifier, radiographs: Radiographs, progress: Progress | None = None) -> dict[str, Answer]:
    """Return the answers to the untouched images, and under every condition; with `:noise` those of the second fill."""
    noise = noise_fill(radiographs.canvases, radiographs.labels)
    conditions = [
        (name, condition, radiographs.fill) for name, condition in {CLEAN: untouched, **REMOVED, **ADDED}.items()
    ]
    conditions += [(f"{name}:noise", REMOVED[name], noise) for name in AGAIN]
    answers: dict[str, Answer] = {}
    for name, condition, fill in conditions:
        raw = logits(classifier, radiographs.chests, condition, fill)
        probability = probabilities(raw, *classifier.calibration)[0]
        answers[name] = Answer(pneumonia_logit(raw), probability >= classifier.threshold)
        if progress is not None:
            progress(len(answers), len(conditions))
    return answers


# --- without the lungs, and with them alone ---------------------------------------------------------------


def kept_share(y: Bools, clean: Floats, changed: Floats, codes: Ints, seed: int) -> Estimate:
    """Return the share of (AUROC - .5) that changed images keep, with an interval by patient (bootstrap).

    `y`: bool [n]; `clean`, `changed`: scores [n]; `codes`: the patient of each. NaN where the clean AUROC is .5.
    """
    c = cohort(y, clean, codes)
    ranks = ranking(clean), ranking(changed)

    def statistic(weights: Ints) -> Floats:
        areas = [weighted_areas(rank, y, weights[:, c.codes])[0] - 0.5 for rank in ranks]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((areas[1] / areas[0])[:, None], np.float64)

    value = float(statistic(np.ones((1, c.n_patients), np.int64))[0, 0])
    return interval(value, replicate(statistic, c, seed=seed)[:, 0])


def removal_items(radiographs: Radiographs, answers: Mapping[str, Answer], seed: int) -> list[Item]:
    """Judge the AUROC that is left without the lungs, and with the lungs alone."""
    keys = ("lung_region_removed", "lungs_removed", "lungs_only")
    if reason := radiographs.auroc_fault():
        return [not_tested(key, reason) for key in keys]
    assert radiographs.labels is not None
    y, codes = radiographs.labels, radiographs.codes
    clean = answers[CLEAN].score
    area = paired_auroc(cohort(y, clean, codes), cohort(y, clean, codes)).auc_a
    if area.low <= 0.5:
        return [not_tested(key, "the network does not separate the classes: nothing can be lost") for key in keys]
    [by_outline] = probe([outline(radiographs.chests)], y, codes, seed)
    items = []
    for key in keys:
        pair = paired_auroc(cohort(y, clean, codes), cohort(y, answers[key].score, codes))
        kept = kept_share(y, clean, answers[key].score, codes, seed)
        facts: dict[str, Any] = {"auroc": pair.auc_b.as_json(), "kept": kept.as_json()}
        if key == "lungs_only":
            light = verdict.never_red(verdict.at_most(_negative(kept), -verdict.LEAST_ALONE))
            limit = f"at least {verdict.LEAST_ALONE:.0%} of (AUROC − .5) left"
        else:
            again = cohort(y, answers[f"{key}:noise"].score, codes)
            facts["auroc_noise"] = paired_auroc(again, again).auc_a.as_json()
            light = verdict.at_most(kept, verdict.MOST_KEPT)
            limit = f"at most {verdict.MOST_KEPT:.0%} of (AUROC − .5) left"
        if key == "lungs_removed":
            facts |= {"outline": by_outline.as_json(), "silhouette": _area(y, answers["silhouette"].score, codes)}
            if light != verdict.GREEN and by_outline.low > verdict.MOST_ALONG:
                facts["void"] = (
                    "the outline of the hole alone predicts pneumonia, so this proves nothing about the network"
                )
                light = verdict.AMBER
        items.append(Item(key, light, "AUROC", pair.auc_b, limit, facts=facts))
    return items


def _negative(estimate: Estimate) -> Estimate:
    return Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.method)


def _area(y: Bools, score: Floats, codes: Ints) -> dict[str, Any]:
    c = cohort(y, score, codes)
    return paired_auroc(c, c).auc_a.as_json()


# --- parts hidden, things added ---------------------------------------------------------------------------


def change_items(radiographs: Radiographs, answers: Mapping[str, Answer], seed: int) -> list[Item]:
    """Judge the effect of borders, corners, an R, a frame, a mirror image or another exposure on ranking and calls."""
    hidden = [_hidden(key, radiographs, answers, seed) for key in ("border_masked", "corners_masked")]
    return hidden + [_change(key, radiographs, answers, seed, one_class=True) for key in ADDED]


def _hidden(key: str, radiographs: Radiographs, answers: Mapping[str, Answer], seed: int) -> Item:
    """Judge a hidden part: a loss is red only where the part contributes to the distance between the classes."""
    item = _change(key, radiographs, answers, seed, one_class=False)
    if radiographs.auroc_fault() or radiographs.labels is None:
        return item
    taken = taken_share(radiographs.labels, answers[CLEAN].score, answers[key].score, radiographs.codes, seed)
    facts = {**item.facts, "taken": taken.as_json()}
    limit = f"{item.limit}; red where more than {verdict.MOST_TAKEN:.0%} of the classes' distance goes as well"
    if item.light == verdict.RED and verdict.at_most(taken, verdict.MOST_TAKEN) != verdict.RED:
        facts["void"] = "what is lost is not shown to be what sets the classes apart"
        return replace(item, light=verdict.AMBER, limit=limit, facts=facts)
    return replace(item, limit=limit, facts=facts)


def taken_share(y: Bools, clean: Floats, changed: Floats, codes: Ints, seed: int) -> Estimate:
    """Return the share of the distance between the classes' means that a change takes, with an interval by patient.

    `y`: bool [n]; `clean`, `changed`: log-odds [n]; `codes`: the patient of each. 0: none, 1: all of it.
    """
    c = cohort(y, clean, codes)

    def statistic(weights: Ints) -> Floats:
        of = weights[:, c.codes].astype(np.float64)
        ill, well = of * y, of * ~y
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = [ill @ s / ill.sum(axis=1) - well @ s / well.sum(axis=1) for s in (clean, changed)]
            return np.asarray((1 - apart[1] / apart[0])[:, None], np.float64)

    value = float(statistic(np.ones((1, c.n_patients), np.int64))[0, 0])
    return interval(value, replicate(statistic, c, seed=seed)[:, 0])


def _change(key: str, radiographs: Radiographs, answers: Mapping[str, Answer], seed: int, *, one_class: bool) -> Item:
    clean, changed = answers[CLEAN], answers[key]
    turned = proportion(clean.called != changed.called, radiographs.codes)
    shift = mean_of(changed.score - clean.score, seed=seed, groups=radiographs.patients)
    facts: dict[str, Any] = {"turned": turned.as_json(), "shift": shift.as_json()}
    limit = f"at most {verdict.MOST_TURNED:.0%} of the calls turned"
    lights = {"turned": verdict.never_red(verdict.at_most(turned, verdict.MOST_TURNED))}
    if not radiographs.auroc_fault() and radiographs.labels is not None:
        y = radiographs.labels
        ways = {"lost": changed.score}
        if one_class:
            ways["lost_on_normal"] = np.where(y, clean.score, changed.score)
            ways["lost_on_pneumonia"] = np.where(y, changed.score, clean.score)
        limit += f"; at most {verdict.MOST_LOST:.2f} of AUROC lost"
        for name, score in ways.items():
            pair = paired_auroc(cohort(y, clean.score, radiographs.codes), cohort(y, score, radiographs.codes))
            lost = _lost(pair)
            facts[name] = lost.as_json()
            lights[name] = verdict.at_most(lost, verdict.MOST_LOST)
        facts["auroc"] = _area(y, changed.score, radiographs.codes)
    facts["lights"] = lights
    light = verdict.worst(lights.values())
    if key in verdict.FOREIGN:
        light = verdict.never_red(light)
    return Item(key, light, "calls turned", turned, limit, facts=facts)


def _lost(pair: PairedAuroc) -> Estimate:
    """Return the difference, its interval from the ends of both where it has no variance of its own."""
    if not np.isnan(pair.difference.low):
        return pair.difference
    low, high = pair.auc_a.low - pair.auc_b.high, pair.auc_a.high - pair.auc_b.low
    return Estimate(pair.difference.value, low, high, "from both intervals: no variance to estimate")
