"""The stored pixels of a radiograph for the viewer, which windows them in the browser at full depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ImageError
from pneumoscope.images import dicom_errors, display_window, open_dicom, render, stored_pixels, voi_table

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

    Grey images keep all stored values, spread over 0..65535; with a VOI LUT or in colour they are as `read_image`
    shows them. The window is the header's. Source: DICOM PS3.3, C.11.1 and C.11.2.

    Raises:
        ImageError: it has no pixels, they cannot be decoded, or it has several frames or is too large.
    """
    from pydicom.pixels.processing import apply_modality_lut

    dataset = open_dicom(path)
    with dicom_errors(path, "pixels cannot be decoded", "export it uncompressed"):
        photometric = str(dataset.get("PhotometricInterpretation", ""))
        if not photometric.startswith("MONOCHROME") or voi_table(dataset) is not None:
            return _whole(np.rint(render(dataset).pixels * _TOP).astype(np.uint16))
        values = np.asarray(apply_modality_lut(stored_pixels(dataset), dataset), np.float64)
        center, width, _ = display_window(dataset, values)
        low, high = float(values.min()), float(values.max())
        inverse = str(dataset.get("PresentationLUTShape", "")).upper() == "INVERSE"
    if not np.isfinite((low, high)).all() or high <= low:
        raise ImageError("all pixels are alike", path=path, remedy="send the image again")
    first, last = (high, low) if photometric == "MONOCHROME1" or inverse else (low, high)
    scale = _TOP / (last - first)
    spread = np.rint((values - first) * scale).astype(np.uint16)
    return Rendition(spread, (center - first) * scale, max(1.0, width * abs(scale)), first, last)


def _whole(values: NDArray[np.uint16]) -> Rendition:
    return Rendition(values, _TOP / 2, float(_TOP), 0.0, float(_TOP))
