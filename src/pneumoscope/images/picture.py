"""Facts of one picture that tell a detector, its processing and its collimation, and know nothing of disease."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.preparation import Pixels
from pneumoscope.records import Floats

BLACK = 8  # grey level, of 255, below which nothing is shown
_LINES = 256  # of a side that are enough to see its border
_OF_A_LINE = 0.98  # of a row or column that is empty; a letter may stand in it


def sharpness(image: Pixels) -> float:
    """Return the mean absolute Laplacian of uint8 [H, W], in standard deviations of its grey; 0 of a constant image."""
    grey = image.astype(np.float64)
    spread = grey.std()
    return float(np.abs(_laplacian(np.pad(grey, 1, mode="edge"))).mean() / spread) if spread else 0.0


def noise(image: Pixels) -> float:
    """Return the standard deviation of white noise in uint8 [H, W], in grey levels of 255; at least 3 pixels a side.

    Immerkær, Fast noise variance estimation, CVIU 64 (1996): what a mask leaves that ignores edges and slopes. Fine
    structures count as noise.
    """
    grey = image.astype(np.float64)
    rows = grey[:-2] - 2 * grey[1:-1] + grey[2:]
    left = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.abs(left).mean() * math.sqrt(math.pi / 2) / 6)


def collimated(image: Pixels | NDArray[np.float32]) -> float:
    """Return the share 0..1 of a frame, uint8 or float32 in 0..1 [H, W], outside of the exposed rectangle.

    Rows and columns count from each side as long as nearly all of them is black, or nearly all white. A rotated
    rectangle, or a round one, is underestimated.
    """
    step = max(1, min(image.shape) // _LINES)
    image = image[::step, ::step]
    top, low = (255, BLACK) if image.dtype == np.uint8 else (1.0, BLACK / 255)
    inside = 1.0
    for empty in (image < low, image > top - low):
        inside = min(inside, _inside(empty.mean(axis=0)) * _inside(empty.mean(axis=1)))
    return 1 - inside


def _inside(empty: Floats) -> float:
    """Return the share of lines between the first and the last that are not empty, from how empty each is."""
    shown = np.flatnonzero(empty < _OF_A_LINE)
    return float((shown[-1] - shown[0] + 1) / len(empty)) if len(shown) else 0.0


def _laplacian(padded: Floats) -> Floats:
    """Return float64 [H, W] of an image padded by one pixel."""
    inner = padded[1:-1, 1:-1]
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return np.asarray(around - 4 * inner)
