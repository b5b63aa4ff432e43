"""LIME and KernelSHAP: a linear model of the answers with segments removed, fitted near the image.

Both decide first which segments are absent in which image, have the network answer in batches, and solve one
weighted least-squares problem. They differ in what is drawn and how it is weighted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np

from pneumoscope.errors import ConfigError
from pneumoscope.explanation.method import DEFAULTS, INPUT, Options, finish
from pneumoscope.explanation.perturbation import FILLS, Masks, answers, network_input
from pneumoscope.explanation.segments import Labels, cut
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import Floats, Heatmap

SAMPLES = 300
LEAST_R2 = 0.5
_WIDTH = 0.25  # of LIME's kernel, in cosine distance


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A fitted linear model: `contributions` float64 [K] in log-odds; `r2`, at most 1, of images left out in turn."""

    contributions: Floats
    r2: float


def lime(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return LIME: the weights of segments in a linear model of the log-odds of pneumonia.

    Half of the segments are present in each of `options.samples` (300) images, drawn in pairs of opposites, and
    nearer images weigh more. The map is hidden where the model predicts less than half of the variance.
    Source: Ribeiro et al. 2016 (arXiv:1602.04938).

    Args:
        classifier: any network.
        canvas: uint8 [canvas, canvas].
        options: seed, samples, segments, fill.

    Raises:
        ConfigError: there are too few samples for the segments.
    """
    started = time.perf_counter()
    image = network_input(classifier, canvas)
    segments = cut(image, options.segments)
    samples = options.samples or SAMPLES
    masks = lime_masks(_count(segments, samples), samples, np.random.default_rng(options.seed))
    scores = answers(classifier, image, FILLS[options.fill](image), segments, masks)
    return _drawn("lime", fit_lime(masks, scores), segments, started, options.seed, samples, len(masks))


def shap(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return KernelSHAP: estimated Shapley values of the segments for the log-odds of pneumonia.

    They add up to the difference of the log-odds of the image and of the fill. Sizes of coalitions are taken whole
    from the outside in as long as `options.samples` (300) allow, the others are drawn, in pairs of opposites. The
    map is hidden where the model predicts less than half of the variance. Arguments and errors as in `lime`.
    Source: Lundberg and Lee 2017 (arXiv:1705.07874); pairs: Covert and Lee 2021 (arXiv:2012.01536).
    """
    started = time.perf_counter()
    image = network_input(classifier, canvas)
    segments = cut(image, options.segments)
    samples = options.samples or SAMPLES
    masks, weights = shap_masks(_count(segments, samples), samples, np.random.default_rng(options.seed))
    scores = answers(classifier, image, FILLS[options.fill](image), segments, masks)
    return _drawn("shap", fit_shap(masks, scores, weights), segments, started, options.seed, samples, len(masks))


def _count(segments: Labels, samples: int) -> int:
    """Return the number of segments; raises `ConfigError` where the samples are too few for them."""
    count = int(segments.max()) + 1
    if samples < count + 2 and samples < 2**count:
        raise ConfigError(
            f"{samples} samples are too few for {count} segments", remedy=f"give {4 * count} samples or more"
        )
    return count


def _drawn(
    method: str, fitted: Surrogate, segments: Labels, started: float, seed: int, samples: int, evaluations: int
) -> Heatmap:
    signed = fitted.contributions[segments].astype(np.float32)
    hidden = fitted.r2 < LEAST_R2
    drawn = finish(
        signed, started, positive=np.zeros_like(signed) if hidden else None, method=method, layer=INPUT,
        seed=seed, samples=samples, evaluations=evaluations, r2=fitted.r2, segments=segments,
        contributions=fitted.contributions,
    )  # fmt: skip
    if not hidden:
        return drawn
    reason = f"a linear model of the segments explains {fitted.r2:.2f} of the answers' variance, less than {LEAST_R2}"
    return replace(drawn, reason=reason)


def lime_masks(count: int, samples: int, rng: np.random.Generator) -> Masks:
    """Return bool [samples, count]: the whole image, then random halves, each followed by its opposite."""
    half = rng.random((samples // 2, count)) < 0.5
    pairs = np.stack([half, ~half], axis=1).reshape(-1, count)
    return np.concatenate([np.ones((1, count), bool), pairs])[:samples]


def fit_lime(masks: Masks, scores: Floats) -> Surrogate:
    """Fit `scores` float64 [n] to `masks` bool [n, K], weighted by cosine distance to the whole image."""
    distance = 1 - np.sqrt(masks.mean(axis=1))
    weights = np.exp(-((distance / _WIDTH) ** 2))
    design = np.column_stack([masks, np.ones(len(masks))]).astype(np.float64)
    fitted, r2 = least_squares(design, scores, weights)
    return Surrogate(fitted[:-1], r2)


def shap_masks(count: int, samples: int, rng: np.random.Generator) -> tuple[Masks, Floats]:
    """Return which segments are present, bool [n, count], and the weight of each row, float64 [n].

    n is at most `samples`. The first two rows are the whole and the empty image, whose weight, infinite in the
    paper, is given as 0: `fit_shap` meets them exactly.
    """
    sizes = np.arange(1, count // 2 + 1)
    kernel = (count - 1) / (sizes * (count - sizes)) * np.where(2 * sizes == count, 1, 2)
    kernel = kernel / kernel.sum()
    rows: list[Masks] = [np.array([[True], [False]]).repeat(count, axis=1)]
    weights: list[Floats] = [np.zeros(2)]
    left, taken = samples - 2, 0
    for size, weight in zip(sizes.tolist(), kernel, strict=True):
        both = 1 if 2 * size == count else 2
        subsets = comb(count, size) * both
        # Drawing this size would repeat its coalitions: take each once.
        if subsets > left * weight / kernel[taken:].sum() + 1e-9:
            break
        coalitions = np.array([np.isin(np.arange(count), chosen) for chosen in combinations(range(count), size)])
        rows.append(coalitions if both == 1 else np.concatenate([coalitions, ~coalitions]))
        weights.append(np.full(subsets, weight / subsets))
        left, taken = left - subsets, taken + 1
    if taken < sizes.size and left > 1:
        drawn = rng.choice(sizes[taken:], left // 2, p=kernel[taken:] / kernel[taken:].sum())
        order = rng.random((left // 2, count)).argsort(axis=1).argsort(axis=1)
        half = order < drawn[:, None]
        rows.append(np.concatenate([half, ~half]))
        weights.append(np.full(2 * (left // 2), kernel[taken:].sum() / (2 * (left // 2))))
    return np.concatenate(rows), np.concatenate(weights)


def fit_shap(masks: Masks, scores: Floats, weights: Floats) -> Surrogate:
    """Return Shapley values from the answers about coalitions, as `shap_masks` gives them."""
    whole, empty = scores[:2]
    present, gain = masks[2:].astype(np.float64), scores[2:] - empty
    # The last value is what is left of the sum, which is known.
    design = present[:, :-1] - present[:, -1:]
    fitted, r2 = least_squares(design, gain - present[:, -1] * (whole - empty), weights[2:], about=gain)
    return Surrogate(np.append(fitted, whole - empty - fitted.sum()), r2)


def least_squares(
    design: Floats, target: Floats, weights: Floats, *, about: Floats | None = None
) -> tuple[Floats, float]:
    """Return the weighted solution [m] and R² with each row predicted by the fit to all others.

    `design` [n, m], `target` [n], `weights` [n]; the variance is that of `about`, `target` by default. R² is 0 where
    nothing varies. Rows without which the fit would be undetermined count by their own residual.
    """
    root = np.sqrt(weights)
    u, s, vt = np.linalg.svd(design * root[:, None], full_matrices=False)
    keep = s > s[0] * 1e-10
    u, s, vt = u[:, keep], s[keep], vt[keep]
    fitted = vt.T @ ((u.T @ (target * root)) / s)
    leverage = (u**2).sum(axis=1)
    residual = (target - design @ fitted) / np.where(leverage < 1 - 1e-9, 1 - leverage, 1)
    values = target if about is None else about
    spread = weights @ (values - weights @ values / weights.sum()) ** 2
    if spread <= 1e-18 * weights.sum():
        return fitted, 0.0
    return fitted, float(1 - weights @ residual**2 / spread)
