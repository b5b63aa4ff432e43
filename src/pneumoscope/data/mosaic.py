"""Figures of a data set: mosaics, mean images, their difference. Nothing is drawn onto anatomy."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.errors import ImageError
from pneumoscope.files import write_bytes
from pneumoscope.images import read_image
from pneumoscope.records import FloatArray

TILE = 160
_GAP = 4
_GROUND = 96  # mid grey: the edge of a letterboxed image stays visible


def write_grey(path: Path, pixels: FloatArray | NDArray[np.float64]) -> None:
    """Write float [H, W] in 0..1 as an 8-bit grey PNG."""
    values = np.clip(pixels * 255, 0, 255).round().astype(np.uint8)
    _write_png(path, Image.fromarray(values))


def write_mosaic(path: Path, images: Sequence[str], *, columns: int, tile: int = TILE) -> None:
    """Write the images in rows, in reading order, each fitted into a square with its aspect ratio kept.

    An unreadable image leaves its tile empty.
    """
    rows = -(-len(images) // columns)
    step = tile + _GAP
    canvas = Image.new("L", (columns * step - _GAP, rows * step - _GAP), _GROUND)
    for position, name in enumerate(images):
        try:
            pixels = read_image(name, at_least=tile).pixels
        except ImageError:
            continue
        image = Image.fromarray((pixels * 255).round().astype(np.uint8))
        scale = tile / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        left = position % columns * step + (tile - size[0]) // 2
        top = position // columns * step + (tile - size[1]) // 2
        canvas.paste(image.resize(size, Image.Resampling.LANCZOS), (left, top))
    _write_png(path, canvas)


def write_difference(path: Path, difference: NDArray[np.float64], *, label: str) -> float:
    """Write a difference of mean images, float64 [H, W], with a symmetric scale; return the scale's end.

    Orange to purple (PuOr) can be distinguished with all common kinds of colour vision; white is no difference.
    """
    limit = max(float(np.abs(difference).max()), 1e-6)
    figure = Figure(figsize=(4.6, 3.7), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots()
    shown = axes.imshow(difference, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="bilinear")
    axes.set_axis_off()
    figure.colorbar(shown, ax=axes, label=label, shrink=0.95)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return limit


def _write_png(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_bytes(path, buffer.getvalue())
