"""The stored pixels of a radiograph for the viewer, which windows them in the browser at full depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ImageError
from pneumoscope.images import dicom_errors, display_window, greys_of, open_dicom, remedy, render, voi_table
from pneumoscope.images.aspect import squared

_TOP = 65535


@dataclass(frozen=True)
class Rendition:
    """A radiograph with air dark. `values`: uint16 [H, W]; `center`, `width`: the initial window.

    `first`, `last`: the values of the file at 0 and 65535; `first` is the higher one where air was bright.
    """

    values: NDArray[np.uint16]
    center: float
    width: float
    first: float
    last: float


def rendition(path: Path) -> Rendition:
    """Read a radiograph for the viewer.

    Grey images keep all stored values, spread over 0..65535, padding black; with a VOI LUT or in colour they are as
    `read_image` shows them. Pixels are square. The window is the header's. Source: DICOM PS3.3, C.11.1 and C.11.2.

    Raises:
        ImageError: it has no pixels, they cannot be decoded, or it has several frames or is too large.
    """
    dataset = open_dicom(path)
    with dicom_errors(path, "pixels cannot be decoded", remedy(dataset)):
        greys = None if voi_table(dataset) is not None else greys_of(dataset)
        if greys is None:
            return _whole(np.rint(render(dataset).pixels * _TOP).astype(np.uint16))
        center, width, _ = display_window(dataset, greys)
        shown = greys.shown()
        low, high = float(shown.min()), float(shown.max())
    if not np.isfinite((low, high)).all() or high <= low:
        raise ImageError("all pixels are alike", path=path, remedy="send the image again")
    first, last = (low, high) if greys.dark else (high, low)
    scale = _TOP / (last - first)
    spread = (greys.values.astype(np.float64) - first) * scale
    if greys.padding is not None:
        spread = np.where(greys.padding, 0.0, spread)
    spread = np.clip(np.rint(squared(spread, greys.ratio, [])), 0, _TOP).astype(np.uint16)
    return Rendition(spread, (center - first) * scale, max(1.0, width * abs(scale)), first, last)


def _whole(values: NDArray[np.uint16]) -> Rendition:
    return Rendition(values, _TOP / 2, float(_TOP), 0.0, float(_TOP))
