"""Does the map lie on the finding? Scores against a mask, beside those of the usual location.

Pneumonia lies where it mostly lies, so a map that is the same for every image already hits many boxes. Its scores
belong beside those of a method (`usual_location`).
"""

from __future__ import annotations

import numpy as np

from pneumoscope.records import Bools, FloatArray


def pointing_game(heat: FloatArray, mask: Bools) -> float:
    """Return the share of the map's strongest places that lie in the mask: 1 or 0 where there is one strongest place.

    `heat`: [S, S]; `mask`: bool [S, S]. A blank map, which points nowhere, scores 0.
    Source: Zhang et al. 2016 (arXiv:1608.00507).
    """
    if not heat.max() > 0:
        return 0.0
    return float(mask[heat >= heat.max()].mean())


def iou(heat: FloatArray, mask: Bools) -> float:
    """Return the intersection over union of the mask and the strongest places, as many as the mask has.

    So no threshold needs to be chosen. Places that tie with the last one belong too; those at zero never do.
    """
    count = int(mask.sum())
    if count == 0:
        return 0.0
    least = np.partition(heat.ravel(), heat.size - count)[heat.size - count]
    chosen = (heat >= least) & (heat > 0)
    return float((chosen & mask).sum() / (chosen | mask).sum())


def usual_location(masks: Bools) -> FloatArray:
    """Return for each image the mean mask of all the others, float32 [n, S, S], from bool [n, S, S], n at least 2."""
    total = masks.sum(axis=0, dtype=np.float32)
    return np.asarray((total - masks) / np.float32(len(masks) - 1), np.float32)
