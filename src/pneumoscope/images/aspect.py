"""Pixels that are not square are made so: a chest must not look wider or taller than it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.images.decoded import MAX_PIXELS

_EVEN, _MOST = 1.01, 8.0  # ratios below are rounding, and above are no image's


def squared(pixels: NDArray[Any], ratio: float, notes: list[str]) -> NDArray[Any]:
    """Return [H, W] with square pixels, float32 where it was resampled, always enlarged: nothing is lost.

    `ratio`: height of a pixel by its width; one that is not credible is left out, with a note.
    """
    if 1 / _EVEN <= ratio <= _EVEN:
        return pixels
    height, width = pixels.shape
    size = (width, round(height * ratio)) if ratio > 1 else (round(width / ratio), height)
    if not 1 / _MOST <= ratio <= _MOST or size[0] * size[1] > 2 * MAX_PIXELS:
        notes.append(f"a pixel aspect ratio of {ratio:g} is not credible, and was left out")
        return pixels
    notes.append(f"pixels are not square (height {ratio:.4g} of the width): resampled to {size[0]}x{size[1]}")
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
