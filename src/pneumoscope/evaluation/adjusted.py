"""Figures that framing and machine cannot lift.

Boosted trees that never saw an image's patient estimate how far its framing, exposure, texture and overlays speak for
pneumonia. Weighting each image by the inverse probability of its class given these (Hernan and Robins, Causal
Inference: What If, 2020, chapter 12) makes the classes more alike in them, as far as the trees know. The *conflict
group* are the images of which they say the wrong class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression

from pneumoscope.data.acquisition import SIDE
from pneumoscope.data.checks.shortcuts import MIN_PATIENTS_OF_TREES, image_features, out_of_fold, patient_folds
from pneumoscope.images.preparation import Pixels
from pneumoscope.records import Bools, Estimate, Floats, Ints
from pneumoscope.statistics.auc import auroc_estimate, ranking, weighted_areas
from pneumoscope.statistics.bootstrap import interval, replicate
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.proportions import proportion

_MOST_WEIGHT = 20.0  # times the mean; a few images must not decide alone
_LEAST_CONFLICT = 10  # images of a class, under which nothing is said of them


@dataclass(frozen=True)
class Shortcut:
    """What framing and machine say of each image, float64 [n]: log-odds of pneumonia, and its weight against them.

    `wrong`: bool [n], where they say the wrong class.
    """

    odds: Floats
    weights: Floats
    wrong: Bools


def shortcut_of(
    images: Pixels, boxes: Floats | None, positive: Bools, patients: Sequence[str], *, seed: int = 0
) -> Shortcut | None:
    """Estimate it without ever seeing the own patient.

    `images`: uint8 [n, S, S]; `boxes`: of the lungs, float64 [n, 4] in 0..1; `positive`: bool [n]. None where a class
    has fewer than 50 patients, on whom trees say nothing.
    """
    codes = np.unique(np.asarray(patients), return_inverse=True)[1]
    if min(len(set(codes[positive])), len(set(codes[~positive]))) < MIN_PATIENTS_OF_TREES:
        return None
    find = None if boxes is None else (lambda _: boxes)
    squashed = np.stack([np.asarray(Image.fromarray(image).resize((SIDE, SIDE))) for image in images])
    features = {feature.name: feature.columns for feature in image_features(squashed, find, seed)}
    odds = out_of_fold(
        features["framing and acquisition together"], positive, patient_folds(positive, codes, seed), trees=True
    )
    # Trees are too sure of themselves, which would blow up the weights.
    chance = LogisticRegression().fit(odds[:, None], positive).predict_proba(odds[:, None])[:, 1]
    return Shortcut(odds, _weights(chance, positive), (chance >= 0.5) != positive)


def adjusted(
    images: Pixels,
    boxes: Floats | None,
    positive: Bools,
    score: Floats,
    patients: Sequence[str],
    threshold: float,
    *,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Return the AUROC of framing and machine, the weighted AUROC of the score, and figures of the conflict group.

    `score`: float64 [n]; the rest, and None, as in `shortcut_of`.
    """
    shortcut = shortcut_of(images, boxes, positive, patients, seed=seed)
    if shortcut is None:
        return None
    codes = np.unique(np.asarray(patients), return_inverse=True)[1]
    weights, called = shortcut.weights, score >= threshold
    result: dict[str, Any] = {
        "shortcut_auroc": auroc_estimate(cohort(positive, shortcut.odds, patients)).as_json(),
        "auroc": _weighted(positive, score, weights, patients, seed).as_json(),
        "effective_n": float(weights.sum() ** 2 / np.square(weights).sum()),
    }
    for name, group, right in (("recall", positive, called), ("specificity", ~positive, ~called)):
        chosen = shortcut.wrong & group
        share = proportion(right[chosen], codes[chosen]).as_json() if chosen.sum() >= _LEAST_CONFLICT else None
        result[f"conflict_{name}"] = share
    result["conflict_n"] = int(shortcut.wrong.sum())
    return result


def _weights(chance: Floats, positive: Bools) -> Floats:
    """Return stabilised weights float64 [n], mean 1 in each class, the largest cut."""
    share = np.where(positive, positive.mean(), 1 - positive.mean())
    weights = share / np.clip(np.where(positive, chance, 1 - chance), 1e-3, None)
    for group in (positive, ~positive):
        weights[group] = np.minimum(weights[group] / weights[group].mean(), _MOST_WEIGHT)
    return np.asarray(weights)


def _weighted(positive: Bools, score: Floats, weights: Floats, patients: Sequence[str], seed: int) -> Estimate:
    c, rank = cohort(positive, score, patients), ranking(score)

    def statistic(drawn: Ints) -> Floats:
        return weighted_areas(rank, positive, drawn[:, c.codes] * weights)[0][:, None]

    value = float(statistic(np.ones((1, c.n_patients), np.int64))[0, 0])
    return interval(value, replicate(statistic, c, seed=seed)[:, 0], "weighted percentile")
