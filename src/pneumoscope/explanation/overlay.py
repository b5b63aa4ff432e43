"""A heat map over the radiograph such that the anatomy stays visible."""

from __future__ import annotations

from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.records import FloatArray

COLOURS = "inferno"  # perceptually uniform, readable with colour-vision deficiency and in grey print
STRONGEST = 0.45  # the map never covers more than this share of a pixel
LAYER_STRONGEST = 0.7  # the same of a layer, which the reader fades
LEAST = 0.2  # weaker than this share of its maximum a map is not drawn


def overlay(pixels: FloatArray, heat: FloatArray) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3]: the radiograph with the map blended in, stronger where the map is.

    `pixels`: float32 [H, W] in 0..1; `heat`: float32 [S, S] in 0..1, stretched to the image. Under a fifth
    of its maximum the map is not drawn.
    """
    height, width = pixels.shape
    grown = stretch(heat, width, height)
    strength = STRONGEST * _drawn(grown)
    grey = np.multiply(np.clip(pixels, 0, 1), 255, dtype=np.float64).astype(np.uint8)
    result = np.repeat(grey[..., None], 3, axis=2)
    covered = strength > 0
    share = strength[covered][:, None]
    blend = pixels[covered][:, None] * (1 - share) + _coloured(grown[covered]) * share
    result[covered] = np.clip(blend, 0, 1) * 255
    return result


def stretch(heat: FloatArray, width: int, height: int) -> FloatArray:
    """Return float32 [height, width]: the map float32 [h, w] over the image, bilinear."""
    grown = Image.fromarray(np.asarray(heat, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(grown, np.float32)


def layer(heat: FloatArray) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 4]: the map alone, to be laid over the radiograph, clear where the map is weak.

    `heat`: float32 [H, W] in 0..1. Even at its strongest place three tenths of the radiograph shine through.
    """
    rgba = np.concatenate([_coloured(heat), LAYER_STRONGEST * _drawn(heat)[..., None]], axis=2)
    return np.asarray(np.clip(rgba, 0, 1) * 255, dtype=np.uint8)


def scale(steps: int) -> list[tuple[float, str]]:
    """Return `steps` values evenly from the weakest that is drawn to 1, each with its colour as `#rrggbb`."""
    values = np.linspace(LEAST, 1, steps)
    colours = [matplotlib.colors.to_hex(colour) for colour in _coloured(values)]
    return list(zip(values.tolist(), colours, strict=True))


def _drawn(heat: FloatArray) -> FloatArray:
    return np.asarray(np.clip((heat - LEAST) / (1 - LEAST), 0, 1), np.float32)


def _coloured(heat: Any) -> Any:
    return matplotlib.colormaps[COLOURS](0.25 + 0.75 * heat)[..., :3]  # the darkest colours would hide, not show
