"""Does the score follow the map? Deletion and insertion, against random maps, with a fill that was validated.

Pure functions of arrays and of one function that scores images, so that any network and any map can be asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import expit
from torch.nn import functional as F

from pneumoscope.explanation.perturbation import BATCH, FILLS, log_odds, network_input
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import Estimate, FloatArray, Floats, Heatmap
from pneumoscope.statistics.bootstrap import mean_of

Score = Callable[[Pixels], Floats]  # scores [n], 0 where nothing is found, from uint8 [n, S, S]
MOST_KEPT = 0.5
STEPS = 20
SQUARES = 50
_QUICK = 10  # steps where one image is checked
_COARSE = 7  # places a side of a random map, as many as a usual CAM has


@dataclass(frozen=True, slots=True)
class Curves:
    """Scores while the places of a map are deleted from, or inserted into the fill, the strongest first.

    `deletion`, `insertion`: float64 [steps + 1], from nothing done to all done, evenly in area.
    """

    deletion: Floats
    insertion: Floats

    @property
    def gain(self) -> float:
        """Area under insertion less area under deletion: above 0 where the map finds what matters first."""
        return area(self.insertion) - area(self.deletion)


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """How much better a map is than random ones, over images.

    `gain`: insertion less deletion; `chance`: the same of random maps; `above`: their difference by image, with its
    interval. All None, and `reason` says why, where the fill cannot decide. `kept`: share of the score that the
    fully removed images keep.
    """

    fill: str
    kept: float
    n: int
    gain: Estimate | None = None
    chance: Estimate | None = None
    above: Estimate | None = None
    reason: str | None = None


def probability(classifier: Classifier) -> Score:
    """Return a function from network input, uint8 [n, S, S], to uncalibrated probabilities [n]."""
    return lambda images: np.asarray(expit(log_odds(classifier, images)), np.float64)


def area(curve: Floats) -> float:
    """Return the area under scores [m] that stand evenly in 0..1, by the trapezoid rule."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def curves(score: Score, image: Pixels, fill: Pixels, heat: FloatArray, *, steps: int = STEPS) -> Curves:
    """Return the deletion and insertion curves of a map (Petsiuk et al. 2018, arXiv:1806.07421).

    Args:
        score: answers in batches.
        image, fill: uint8 [S, S].
        heat: [S, S]; among equal pixels those higher up come first.
        steps: how many equal parts of the area are changed one after the other.
    """
    rank = np.empty(heat.size, np.int64)
    rank[np.argsort(-heat.ravel(), kind="stable")] = np.arange(heat.size)
    step = (rank * steps // heat.size).reshape(heat.shape)
    done = np.arange(steps + 1)[:, None, None]

    def ask(under: Pixels, over: Pixels) -> Floats:
        parts = [done[start : start + BATCH] for start in range(0, steps + 1, BATCH)]
        return np.concatenate([score(np.where(step < part, over, under)) for part in parts])

    return Curves(deletion=ask(image, fill), insertion=ask(fill, image))


def kept(score: Score, images: Pixels, fills: Pixels) -> float:
    """Return the share of the mean score of `images` that their fills keep, both uint8 [n, S, S].

    It is infinite where the images themselves score nothing.
    """
    whole = float(score(images).mean())
    return float(score(fills).mean()) / whole if whole > 0 else float("inf")


def validated(score: Score, images: Pixels) -> Mapping[str, float]:
    """Return for each fill which share of the score it keeps; at most a half is usable. `images`: uint8 [n, S, S]."""
    return {name: kept(score, images, np.stack([fill(image) for image in images])) for name, fill in FILLS.items()}


def random_map(size: int, rng: np.random.Generator) -> FloatArray:
    """Return a smooth random map, float32 [size, size]: noise in 7 x 7 cells, enlarged like a CAM."""
    noise = torch.from_numpy(rng.random((1, 1, _COARSE, _COARSE), dtype=np.float32))
    grown = F.interpolate(noise, (size, size), mode="bilinear", align_corners=False)
    result: FloatArray = grown[0, 0].numpy()
    return result


def faithfulness(
    score: Score,
    images: Pixels,
    maps: Sequence[FloatArray],
    *,
    fill: str,
    seed: int = 0,
    draws: int = 3,
    steps: int = STEPS,
    groups: Sequence[str] | None = None,
) -> Faithfulness:
    """Compare the maps of images with random maps.

    Args:
        score: answers in batches.
        images: uint8 [n, S, S], such as the network calls pneumonia.
        maps: n times [S, S].
        fill: a key of `FILLS`. Where removed images keep more than half of the score, nothing is decided.
        seed: of random maps and of resampling.
        draws: random maps for each image.
        steps: of the curves.
        groups: the patient of each image, so that intervals draw patients; None takes each image alone.
    """
    removed = np.stack([FILLS[fill](image) for image in images])
    share = kept(score, images, removed)
    if share > MOST_KEPT:
        reason = f"removed images keep {share:.0%} of the score with the fill {fill}, more than {MOST_KEPT:.0%}"
        return Faithfulness(fill, share, len(images), reason=reason)
    rng = np.random.default_rng(seed)
    own, chance = np.empty(len(images)), np.empty(len(images))
    for index, (image, under, heat) in enumerate(zip(images, removed, maps, strict=True)):
        own[index] = curves(score, image, under, heat, steps=steps).gain
        drawn = [random_map(image.shape[0], rng) for _ in range(draws)]
        chance[index] = np.mean([curves(score, image, under, other, steps=steps).gain for other in drawn])
    gain, level, above = (mean_of(values, seed=seed, groups=groups) for values in (own, chance, own - chance))
    return Faithfulness(fill, share, len(images), gain, level, above)


def with_faithfulness(
    heatmap: Heatmap, classifier: Classifier, canvas: Pixels, *, fill: str, seed: int = 0, draws: int = 5
) -> Heatmap:
    """Return the map, called `not faithful` where it does no better on its image than random maps do on average.

    One image alone says little: a map that passes keeps its verdict, and so does one whose image cannot decide,
    because with the fill it keeps more than half of its score. `canvas`: uint8 [canvas, canvas].
    """
    if heatmap.verdict == "blank":
        return heatmap
    started = time.perf_counter()
    image, score = network_input(classifier, canvas), probability(classifier)
    result = faithfulness(score, image[None], [heatmap.values], fill=fill, seed=seed, draws=draws, steps=_QUICK)
    evaluations = heatmap.evaluations + 2 + (0 if result.gain is None else 2 * (_QUICK + 1) * (1 + draws))
    heatmap = replace(heatmap, evaluations=evaluations, seconds=heatmap.seconds + time.perf_counter() - started)
    if result.gain is None or result.chance is None:
        reason = "; ".join(part for part in (heatmap.reason, f"faithfulness undecided: {result.reason}") if part)
        return replace(heatmap, reason=reason)
    if result.gain.value > result.chance.value:
        return heatmap
    reason = f"insertion less deletion {result.gain.value:.2f}, of random maps {result.chance.value:.2f}"
    return replace(heatmap, verdict="not faithful", reason=reason)


def infidelity(
    score: Score, image: Pixels, fill: Pixels, signed: FloatArray, *, seed: int = 0, draws: int = SQUARES
) -> float:
    """Return the error of a map in predicting the effect of removing random squares: 0 is best, 1 as bad as no map.

    The map's sum over each square is compared with the fall of the score, by squared error, and divided by the
    error of a map of zeros. The map's unit is free: it is scaled to fit best, but never turned round. It is 0 where
    no square changes the score. Source: Yeh et al. 2019 (arXiv:1901.09392), with removal as the perturbation.

    Args:
        score: answers in batches, additive ones such as log-odds.
        image, fill: uint8 [S, S].
        signed: float [S, S], above zero is evidence for pneumonia.
        seed: of the squares, whose sides are a tenth to a half of the image's.
        draws: how many squares, one in each changed image.
    """
    rng, side = np.random.default_rng(seed), image.shape[0]
    gone = np.zeros((draws, side, side), np.bool_)
    for mask, width in zip(gone, rng.integers(max(1, side // 10), side // 2 + 1, draws).tolist(), strict=True):
        top, left = rng.integers(0, side - width + 1, 2).tolist()
        mask[top : top + width, left : left + width] = True
    fall = float(score(image[None])[0]) - score(np.where(gone, fill, image))
    foretold = (gone * signed.astype(np.float64)).sum(axis=(1, 2))
    worst = float(fall @ fall)
    if worst == 0:
        return 0.0
    scale = max(0.0, float(foretold @ fall) / float(foretold @ foretold)) if foretold.any() else 0.0
    return float(((scale * foretold - fall) ** 2).sum()) / worst


def with_infidelity(heatmap: Heatmap, classifier: Classifier, canvas: Pixels, *, fill: str, seed: int = 0) -> Heatmap:
    """Return the map with its `infidelity` in log-odds, which a blank map has not. `canvas`: uint8 [canvas, canvas]."""
    if heatmap.verdict == "blank":
        return heatmap
    started = time.perf_counter()
    image = network_input(classifier, canvas)
    signed = heatmap.values if heatmap.signed is None else heatmap.signed
    value = infidelity(lambda images: log_odds(classifier, images), image, FILLS[fill](image), signed, seed=seed)
    seconds = heatmap.seconds + time.perf_counter() - started
    return replace(heatmap, infidelity=value, evaluations=heatmap.evaluations + SQUARES + 1, seconds=seconds)
