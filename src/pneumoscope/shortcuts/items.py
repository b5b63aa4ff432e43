"""The items of the card: each a figure, its limit and a light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.bundle.calibration import pneumonia_logit, probabilities
from pneumoscope.cohort import cohort, proportion
from pneumoscope.evaluation.auc import PairedAuroc, paired_auroc, ranking, weighted_areas
from pneumoscope.evaluation.bootstrap import interval, replicate
from pneumoscope.explanation.faithfulness import mean_of
from pneumoscope.predict import Classifier
from pneumoscope.records import Estimate
from pneumoscope.shortcuts import verdict
from pneumoscope.shortcuts.conditions import ADDED, REMOVED, logits, noise_fill, outline, untouched
from pneumoscope.shortcuts.material import Material
from pneumoscope.shortcuts.probes import told

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Progress = Callable[[int, int], None]
CLEAN = "untouched"
# Removed in two ways, because the network's answer to one fill may be at its end, where it can no longer tell anything.
AGAIN = ("lung_region_removed", "lungs_removed")


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the card.

    `key`: its name in `audit.json`. `light`: one of `verdict.LIGHTS`. `measure`: what `figure` is. `limit`: the rule in
    figures. `reason`: why it was not tested. `facts`: what else was measured.
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
    """Return an item without figure, and why."""
    return Item(key, verdict.NOT_TESTED, reason=reason)


@dataclass(frozen=True, slots=True)
class Answered:
    """What the network says of all images under one condition: log-odds float64 [n], calls of pneumonia bool [n]."""

    score: Floats
    called: Bools


def answer_all(classifier: Classifier, material: Material, progress: Progress | None = None) -> dict[str, Answered]:
    """Return the answers to the untouched images, and under every condition; with `:noise` those of the second fill."""
    noise = noise_fill(material.canvases, material.labels)
    asked = [(name, condition, material.fill) for name, condition in {CLEAN: untouched, **REMOVED, **ADDED}.items()]
    asked += [(f"{name}:noise", REMOVED[name], noise) for name in AGAIN]
    found: dict[str, Answered] = {}
    for name, condition, fill in asked:
        raw = logits(classifier, material.chests, condition, fill)
        probability = probabilities(raw, *classifier.calibration)[0]
        found[name] = Answered(pneumonia_logit(raw), probability >= classifier.threshold)
        if progress is not None:
            progress(len(found), len(asked))
    return found


# --- without the lungs, and with them alone ---------------------------------------------------------------


def kept_share(y: Bools, clean: Floats, changed: Floats, codes: NDArray[np.int64], seed: int) -> Estimate:
    """Return the share of (AUROC - .5) that changed images keep, with an interval by patient (bootstrap).

    `y`: bool [n]; `clean`, `changed`: scores [n]; `codes`: the patient of each. NaN where the clean AUROC is .5.
    """
    c = cohort(y, clean, codes)
    ranks = ranking(clean), ranking(changed)

    def statistic(weights: NDArray[np.int64]) -> Floats:
        areas = [weighted_areas(rank, y, weights[:, c.codes])[0] - 0.5 for rank in ranks]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((areas[1] / areas[0])[:, None], np.float64)

    value = float(statistic(np.ones((1, c.n_patients), np.int64))[0, 0])
    return interval(value, replicate(statistic, c, seed=seed)[:, 0])


def removal_items(material: Material, found: Mapping[str, Answered], seed: int) -> list[Item]:
    """Judge what is left of the AUROC without the lungs, and with the lungs alone."""
    keys = ("lung_region_removed", "lungs_removed", "lungs_only")
    if reason := material.why_no_auroc():
        return [not_tested(key, reason) for key in keys]
    assert material.labels is not None
    y, codes = material.labels, material.codes
    clean = found[CLEAN].score
    area = paired_auroc(cohort(y, clean, codes), cohort(y, clean, codes)).auc_a
    if area.low <= 0.5:
        return [not_tested(key, "the network does not tell the classes apart: nothing can be lost") for key in keys]
    told_by_outline = told(outline(material.chests), y, codes, seed)
    items = []
    for key in keys:
        pair = paired_auroc(cohort(y, clean, codes), cohort(y, found[key].score, codes))
        kept = kept_share(y, clean, found[key].score, codes, seed)
        facts: dict[str, Any] = {"auroc": pair.auc_b.as_json(), "kept": kept.as_json()}
        if key == "lungs_only":
            light = verdict.never_red(verdict.at_most(_negative(kept), -verdict.LEAST_ALONE))
            limit = f"at least {verdict.LEAST_ALONE:.0%} of (AUROC − .5) left"
        else:
            again = cohort(y, found[f"{key}:noise"].score, codes)
            facts["auroc_noise"] = paired_auroc(again, again).auc_a.as_json()
            light = verdict.at_most(kept, verdict.MOST_KEPT)
            limit = f"at most {verdict.MOST_KEPT:.0%} of (AUROC − .5) left"
        if key == "lungs_removed":
            facts |= {"outline": told_by_outline.as_json(), "silhouette": _area(y, found["silhouette"].score, codes)}
            if light != verdict.GREEN and told_by_outline.low > verdict.MOST_ALONG:
                facts["void"] = (
                    "the outline of the hole alone tells pneumonia, so that this cannot be laid on the network"
                )
                light = verdict.AMBER
        items.append(Item(key, light, "AUROC", pair.auc_b, limit, facts=facts))
    return items


def _negative(estimate: Estimate) -> Estimate:
    return Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.method)


def _area(y: Bools, score: Floats, codes: NDArray[np.int64]) -> dict[str, Any]:
    c = cohort(y, score, codes)
    return paired_auroc(c, c).auc_a.as_json()


# --- parts hidden, things added ---------------------------------------------------------------------------


def change_items(material: Material, found: Mapping[str, Answered], seed: int) -> list[Item]:
    """Judge what borders, corners, an R, a frame, a mirror image or another exposure do to ranking and calls."""
    hidden = [_hidden(key, material, found, seed) for key in ("border_masked", "corners_masked")]
    return hidden + [_change(key, material, found, seed, one_class=True) for key in ADDED]


def _hidden(key: str, material: Material, found: Mapping[str, Answered], seed: int) -> Item:
    """Judge a hidden part: a loss is red only where the part goes into what sets the classes apart."""
    item = _change(key, material, found, seed, one_class=False)
    if material.why_no_auroc() or material.labels is None:
        return item
    taken = taken_share(material.labels, found[CLEAN].score, found[key].score, material.codes, seed)
    facts = {**item.facts, "taken": taken.as_json()}
    limit = f"{item.limit}; red where more than {verdict.MOST_TAKEN:.0%} of the classes' distance goes as well"
    if item.light == verdict.RED and verdict.at_most(taken, verdict.MOST_TAKEN) != verdict.RED:
        facts["void"] = "what is lost is not shown to be what sets the classes apart"
        return replace(item, light=verdict.AMBER, limit=limit, facts=facts)
    return replace(item, limit=limit, facts=facts)


def taken_share(y: Bools, clean: Floats, changed: Floats, codes: NDArray[np.int64], seed: int) -> Estimate:
    """Return the share of the distance between the classes' means that a change takes, with an interval by patient.

    `y`: bool [n]; `clean`, `changed`: log-odds [n]; `codes`: the patient of each. 0: none, 1: all of it.
    """
    c = cohort(y, clean, codes)

    def statistic(weights: NDArray[np.int64]) -> Floats:
        of = weights[:, c.codes].astype(np.float64)
        ill, well = of * y, of * ~y
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = [ill @ s / ill.sum(axis=1) - well @ s / well.sum(axis=1) for s in (clean, changed)]
            return np.asarray((1 - apart[1] / apart[0])[:, None], np.float64)

    value = float(statistic(np.ones((1, c.n_patients), np.int64))[0, 0])
    return interval(value, replicate(statistic, c, seed=seed)[:, 0])


def _change(key: str, material: Material, found: Mapping[str, Answered], seed: int, *, one_class: bool) -> Item:
    clean, changed = found[CLEAN], found[key]
    turned = proportion(clean.called != changed.called, material.codes)
    shift = mean_of(changed.score - clean.score, seed=seed, groups=material.patients)
    facts: dict[str, Any] = {"turned": turned.as_json(), "shift": shift.as_json()}
    limit = f"at most {verdict.MOST_TURNED:.0%} of the calls turned"
    lights = {"turned": verdict.never_red(verdict.at_most(turned, verdict.MOST_TURNED))}
    if not material.why_no_auroc() and material.labels is not None:
        y = material.labels
        ways = {"lost": changed.score}
        if one_class:
            ways["lost_on_normal"] = np.where(y, clean.score, changed.score)
            ways["lost_on_pneumonia"] = np.where(y, changed.score, clean.score)
        limit += f"; at most {verdict.MOST_LOST:.2f} of AUROC lost"
        for name, score in ways.items():
            pair = paired_auroc(cohort(y, clean.score, material.codes), cohort(y, score, material.codes))
            lost = _lost(pair)
            facts[name] = lost.as_json()
            lights[name] = verdict.at_most(lost, verdict.MOST_LOST)
        facts["auroc"] = _area(y, changed.score, material.codes)
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
