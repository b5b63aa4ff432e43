"""From a decoded radiograph to the input of every network; needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pneumoscope.records import FloatArray

Pixels = NDArray[np.uint8]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Preparation:
    """How images become input; part of the bundle, so that use repeats training exactly.

    `canvas`: side in pixels of the square that is cached; `size`: side of the network's input;
    `aspect`: `squash`, or `pad` with black to a square; `mean`, `std`: per RGB channel, for input in 0..1;
    `tone`: `as-is`, or `equalise` the input's histogram, which removes the exposure; `mirror`: logits are the mean
    over the image and its mirror image; `crop`: `none`, or `lungs`: cropped to the lungs and a margin first.
    """

    size: int
    canvas: int
    aspect: str
    mean: Triple
    std: Triple
    mirror: bool = False
    tone: str = "as-is"
    crop: str = "none"


class Crop(Protocol):
    """Cuts a part out of a decoded radiograph: float32 [H, W] to float32 [h, w]."""

    @property
    def name(self) -> str:
        """What it cuts, and how."""

    def __call__(self, pixels: FloatArray) -> FloatArray:
        """Return the part."""


def to_canvas(pixels: FloatArray, canvas: int, aspect: str) -> Pixels:
    """Return uint8 [canvas, canvas] from float32 [H, W] in 0..1: pad if asked, resize with antialiasing, quantise."""
    height, width = pixels.shape
    if aspect == "pad" and height != width:
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        pixels = np.pad(pixels, ((top, side - height - top), (left, side - width - left)))
    if pixels.shape != (canvas, canvas):
        image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
        pixels = np.asarray(image.resize((canvas, canvas), Image.Resampling.BILINEAR))
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def to_input(canvases: Pixels, preparation: Preparation) -> Pixels:
    """Return uint8 [B, size, size] from uint8 [B, canvas, canvas], the input of normalisation and network."""
    size = preparation.size
    if canvases.shape[-1] != size:
        resized = [Image.fromarray(canvas).resize((size, size), Image.Resampling.BILINEAR) for canvas in canvases]
        canvases = np.stack([np.asarray(image) for image in resized])
    return toned(canvases, preparation.tone)


def image_box(shape: tuple[int, ...], preparation: Preparation) -> list[int]:
    """Return top, bottom, left, right (half-open) of the image, without padding, within the network's input."""
    size = preparation.size
    if preparation.aspect != "pad":
        return [0, size, 0, size]
    height, width = shape
    side = max(height, width)
    rows, columns = max(1, round(size * height / side)), max(1, round(size * width / side))
    top, left = (size - rows) // 2, (size - columns) // 2
    return [top, top + rows, left, left + columns]


def toned(images: Pixels, tone: str) -> Pixels:
    """Return uint8 [B, S, S] from the same: untouched, or each with its histogram equalised."""
    if tone == "as-is":
        return images
    return np.stack([np.asarray(ImageOps.equalize(Image.fromarray(image))) for image in images])
