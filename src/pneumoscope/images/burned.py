"""Where something was burned into a radiograph: letters, markers, measures; found, not read."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import distance_transform_edt, find_objects, label

from pneumoscope.images.preparation import Pixels
from pneumoscope.records import Bools, FloatArray

_BRIGHT, _ABOVE = 200, 50  # grey levels
_LARGEST, _MARGIN = 0.16, 0.02  # of the side
_SMALL = 112  # side at which text is looked for


def text_in(image: Pixels) -> Bools:
    """Return where something looks like burnt-in text, bool [S, S] from uint8 [S, S]: small and bright against near.

    A bone's edge or an electrode may be masked too; masking too much does less harm here than too little.
    """
    step = max(1, round(image.shape[0] / _SMALL))
    short = -image.shape[0] % step
    whole = np.pad(image, (0, short), mode="edge")
    small = whole.reshape(len(whole) // step, step, -1, step).max(axis=(1, 3))
    bright = small >= _BRIGHT
    bright[bright] = small[bright] - _median_around(small, bright) >= _ABOVE
    parts, _ = label(bright, np.ones((3, 3)))
    most = _LARGEST * small.shape[0]
    text = np.zeros(small.shape, np.bool_)
    for number, box in enumerate(find_objects(parts), start=1):
        if max(box[0].stop - box[0].start, box[1].stop - box[1].start) <= most:
            text[box] |= parts[box] == number
    text = widened(text, _MARGIN)
    return np.kron(text, np.ones((step, step), np.bool_))[: image.shape[0], : image.shape[1]]


def _median_around(image: Pixels, where: Bools) -> FloatArray:
    """Return the median of each chosen pixel's square neighbourhood, float32 [k]; the edge is continued."""
    reach = round(0.06 * image.shape[0])
    near = sliding_window_view(np.pad(image, reach, mode="edge"), (2 * reach + 1, 2 * reach + 1))[where]
    size = (2 * reach + 1) ** 2
    return np.partition(near.reshape(-1, size), size // 2, axis=1)[:, size // 2].astype(np.float32)


def widened(mask: Bools, share: float) -> Bools:
    """Return the mask and what lies within a share of the side of it."""
    if not mask.any():
        return mask
    near: Bools = distance_transform_edt(~mask) <= share * mask.shape[0]
    return near
