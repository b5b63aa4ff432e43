"""Would the map be the same with other random numbers, or with a hardly different image?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch.nn import functional as F

from pneumoscope.explanation.method import Method, Options
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import FloatArray, Floats, Heatmap

LEAST_RHO = 0.8
SEEDS = 3
MOST_SAMPLES = 1200
_NOISE = 2.0  # standard deviation of the added noise, in grey levels of 255
_CELLS = 16


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rho of two arrays of equal size, mean ranks for ties; 0 where one of them is constant."""
    x, y = (rankdata(np.asarray(values).ravel()) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else 0.0


def agreement(rows: Sequence[ArrayLike]) -> float:
    """Return the mean of Spearman's rho over all pairs of at least two arrays of equal size."""
    return float(np.mean([rank_correlation(a, b) for a, b in combinations(rows, 2)]))


def pooled(values: FloatArray) -> Floats:
    """Return means over 16 x 16 fields, float64, from float32 [S, S]: what a reader sees, not single pixels."""
    cells = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(values))[None, None], _CELLS)
    return np.asarray(cells[0, 0].numpy(), np.float64)


def ranked(heatmap: Heatmap) -> Floats:
    """Return what is compared of a map: contributions of segments, else the pooled map, signed where it can be."""
    if heatmap.contributions is not None:
        return heatmap.contributions
    return pooled(heatmap.values if heatmap.signed is None else heatmap.signed)


def with_stability(
    method: Method, classifier: Classifier, canvas: Pixels, options: Options, *, seeds: int = SEEDS
) -> Heatmap:
    """Explain an image and test whether the map is stable.

    A method that draws at random is repeated with `seeds` seeds. Where the mean rank correlation of the
    contributions is under 0.8, twice as many samples are taken, up to 1,200; the map is that of `options.seed` and
    the last number of samples. A method that draws nothing is repeated on images with noise of 2 of 255 grey levels.

    Returns:
        The map with `stability`, a verdict `stable` or `unstable` (a `blank` one stays), and the evaluations and
        seconds of all repetitions.
    """
    first = method(classifier, canvas, options)
    if first.verdict == "blank":
        return first
    if first.seed is None:
        rng = np.random.default_rng(options.seed)
        again = [method(classifier, _noisy(canvas, rng), options) for _ in range(seeds - 1)]
        # Segments may be cut otherwise in a noisy image, so maps are compared.
        rho = agreement(
            [pooled(heatmap.values if heatmap.signed is None else heatmap.signed) for heatmap in (first, *again)]
        )
        return _judged(first, rho, [first, *again], f"with noise of {_NOISE:g} grey levels")
    spent: list[Heatmap] = []
    while True:
        runs = [first, *(method(classifier, canvas, replace(options, seed=options.seed + k)) for k in range(1, seeds))]
        spent += runs
        rho = agreement([ranked(heatmap) for heatmap in runs])
        more = 2 * (first.samples or MOST_SAMPLES)
        if rho >= LEAST_RHO or more > MOST_SAMPLES:
            return _judged(first, rho, spent, f"over {seeds} seeds, {first.samples} samples each")
        options = replace(options, samples=more)
        first = method(classifier, canvas, options)


def _judged(heatmap: Heatmap, rho: float, spent: Sequence[Heatmap], how: str) -> Heatmap:
    stable = rho >= LEAST_RHO
    if heatmap.verdict == "blank":  # with more samples the surrogate may explain nothing
        verdict, reason = heatmap.verdict, heatmap.reason
    else:
        verdict = "stable" if stable else "unstable"
        reason = f"rank correlation {rho:.2f} {how}" + ("" if stable else f", less than {LEAST_RHO}")
    return replace(
        heatmap,
        verdict=verdict,
        reason=reason,
        stability=rho,
        evaluations=sum(run.evaluations for run in spent),
        seconds=sum(run.seconds for run in spent),
    )


def _noisy(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    noise = rng.normal(0, _NOISE, canvas.shape)
    return np.clip(np.rint(canvas + noise), 0, 255).astype(np.uint8)
