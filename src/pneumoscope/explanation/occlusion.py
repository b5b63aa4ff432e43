"""Occlusion: how far the score falls where a window of the image is removed."""

from __future__ import annotations

import time

import numpy as np

from pneumoscope.explanation.method import DEFAULTS, INPUT, Options, finish
from pneumoscope.explanation.perturbation import BATCH, FILLS, log_odds, network_input
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import Floats, Heatmap

_WINDOWS = 225


def occlusion(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return the loss of log-odds where a window is removed, at each pixel the mean over the windows that cover it.

    About `options.samples` (225) square windows lie on a square grid, each overlapping the next by half.
    Source: Zeiler and Fergus 2014 (arXiv:1311.2901).

    Args:
        classifier: any network.
        canvas: uint8 [canvas, canvas].
        options: samples, fill.
    """
    started = time.perf_counter()
    image = network_input(classifier, canvas)
    fill = FILLS[options.fill](image)
    corners, side = windows(image.shape[0], options.samples or _WINDOWS)
    lost = np.empty(len(corners))
    whole = log_odds(classifier, image[None])[0]
    for start in range(0, len(corners), BATCH):
        part = corners[start : start + BATCH]
        images = np.repeat(image[None], len(part), axis=0)
        for covered, (top, left) in zip(images, part, strict=True):
            covered[top : top + side, left : left + side] = fill[top : top + side, left : left + side]
        lost[start : start + BATCH] = whole - log_odds(classifier, images)
    return finish(
        spread(lost, corners, side, image.shape[0]).astype(np.float32),
        started,
        method="occlusion",
        layer=INPUT,
        samples=len(corners),
        evaluations=len(corners) + 1,
    )


def windows(size: int, count: int) -> tuple[list[tuple[int, int]], int]:
    """Return the corners (top, left) of about `count` windows, and their side in pixels."""
    per_side = min(size, max(2, round(count**0.5)))
    side = min(size, -(-2 * size // (per_side + 1)))
    offsets = [round(step * (size - side) / (per_side - 1)) for step in range(per_side)]
    return [(top, left) for top in offsets for left in offsets], side


def spread(lost: Floats, corners: list[tuple[int, int]], side: int, size: int) -> Floats:
    """Return float64 [size, size]: at each pixel the mean of `lost` over the windows that cover it."""
    total, covered = np.zeros((size, size)), np.zeros((size, size))
    for value, (top, left) in zip(lost, corners, strict=True):
        total[top : top + side, left : left + side] += value
        covered[top : top + side, left : left + side] += 1
    return total / np.maximum(covered, 1)
