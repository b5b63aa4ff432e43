"""Segmentations of an image: plain functions from an image to labels.

A new one is one function `(uint8 [S, S]) -> int32 [S, S]` and one line in `SEGMENTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ConfigError
from pneumoscope.images.preparation import Pixels
from pneumoscope.lungs import LungSegmenter, mask_fault, zones

Labels = NDArray[np.int32]
MOST = 50  # more parts take longer than a reader waits
_SUPERPIXELS, _CELLS = 40, 6


def grid(image: Pixels) -> Labels:
    """Return 36 squares, int32 [S, S], from uint8 [S, S]."""
    side = image.shape[0]
    cell = np.arange(side) * _CELLS // side
    return np.asarray(cell[:, None] * _CELLS + cell, np.int32)


def slic(image: Pixels) -> Labels:
    """Return up to 50 patches of like grey, int32 [S, S], from uint8 [S, S] (SLIC, Achanta et al. 2012)."""
    from skimage.segmentation import slic as superpixels  # slow to load

    smooth = max(1.0, image.shape[0] / 224)
    labels = superpixels(
        image / 255.0, n_segments=_SUPERPIXELS, compactness=0.1, sigma=smooth, channel_axis=None, start_label=0
    )
    return np.asarray(labels, np.int32)


def lung_zones(image: Pixels) -> Labels:
    """Return the upper, middle and lower thirds of both lungs and the surroundings, int32 [S, S], from uint8 [S, S].

    Raises:
        ConfigError: no plausible lungs are found.
    """
    mask = LungSegmenter.load().masks(image[None])[0]
    if reason := mask_fault(mask):
        raise ConfigError(str(reason), remedy="use the segments slic or grid")
    return zones(mask).astype(np.int32)


SEGMENTS: Mapping[str, Callable[[Pixels], Labels]] = MappingProxyType({"slic": slic, "grid": grid, "zones": lung_zones})


def cut(image: Pixels, name: str) -> Labels:
    """Return the parts of an image by a segmentation of `SEGMENTS`, numbered 0..K-1 without gaps, int32 [S, S].

    Raises:
        ConfigError: there are fewer than 2 parts, or more than 50.
    """
    parts = SEGMENTS[name](image)
    kinds, labels = np.unique(parts, return_inverse=True)
    if not 2 <= kinds.size <= MOST:
        raise ConfigError(
            f"{name} cuts this image into {kinds.size} segments, not 2 to {MOST}", remedy="use the segments grid"
        )
    return labels.reshape(parts.shape).astype(np.int32)
