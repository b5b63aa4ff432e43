"""Which stored values are black and white: the rules for files and arrays that do not say so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.records import FloatArray

GUESSED = "how deep the pixels are is not stated"  # begins the note of every guess; `data check` looks for it
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def scaled(values: NDArray[Any], notes: list[str], *, white: float | None = None, black: float = 0.0) -> FloatArray:
    """Return float32 in 0..1 of the same shape; what was guessed is added to `notes`.

    `white`, `black`: the values that are stated. Without them: Boolean 0 and 1; uint8 0 to 255; other whole numbers 0
    to 2**n - 1, n the fewest bits, from 8 to 16, that hold the largest; fractions 0 to 1 or, where the largest is
    above 1, 0 to 255. Numbers below 0 or above these are scaled by their own range.

    Raises:
        ValueError: a value is not finite.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("pixel values are not finite")
    low, high = float(values.min()), float(values.max())
    if white is None or low < black or high > white:
        black, white = _range(values.dtype, low, high, notes)
    span = np.float64(white) - black
    return np.asarray((values.astype(np.float64) - black) / (span or 1.0), np.float32)


def _range(dtype: np.dtype[Any], low: float, high: float, notes: list[str]) -> tuple[float, float]:
    if dtype.kind == "b":
        return 0.0, 1.0
    if dtype == np.uint8:
        return 0.0, 255.0
    whole = dtype.kind in "ui"
    if low < 0 or high > (65535 if whole else 255):
        notes.append(f"{GUESSED}: scaled by their own range, {low:g} to {high:g}")
        return low, high
    if not whole:
        return 0.0, 1.0 if high <= 1 else 255.0
    bits = max(8, int(high).bit_length())
    if bits < 16:
        notes.append(f"{GUESSED}: the largest is {high:.0f}, so {2**bits - 1} is taken as white ({bits} bits)")
    return 0.0, float(2**bits - 1)


def luma(colours: FloatArray) -> FloatArray:
    """Return the grey of colours in 0..1, float32 [H, W] from [H, W, 3]."""
    return np.asarray(np.clip(colours[..., :3] @ LUMA, 0, 1), np.float32)
