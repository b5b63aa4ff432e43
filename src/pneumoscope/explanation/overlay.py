"""A heat map over the radiograph such that the anatomy stays visible."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from pneumoscope.records import FloatArray

COLOURS = "inferno"  # perceptually uniform, readable with colour-vision deficiency and in grey print
STRONGEST = 0.45  # the map never covers more than this share of a pixel


def overlay(pixels: FloatArray, heat: FloatArray) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3]: the radiograph with the map blended in, stronger where the map is.

    `pixels`: float32 [H, W] in 0..1; `heat`: float32 [S, S] in 0..1, stretched to the image. Under a fifth
    of its maximum the map is not drawn.
    """
    height, width = pixels.shape
    grown = tv.resize(torch.from_numpy(np.ascontiguousarray(heat))[None], [height, width], InterpolationMode.BILINEAR)[
        0
    ].numpy()
    strength = STRONGEST * np.clip((grown - 0.2) / 0.8, 0, 1)[..., None]
    colours = matplotlib.colormaps[COLOURS](0.25 + 0.75 * grown)[..., :3]
    grey = np.repeat(pixels[..., None], 3, axis=2)
    return np.asarray(np.clip(grey * (1 - strength) + colours * strength, 0, 1) * 255, dtype=np.uint8)
