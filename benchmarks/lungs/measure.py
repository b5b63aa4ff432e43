"""How well masks agree with drawn ones: the mean over patients, with an interval by patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.lungs import LungSegmenter, mask_fault
from pneumoscope.statistics.bootstrap import RESAMPLES, interval, resampled_weights


def dice(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return twice the overlap over the sum of both areas, 0..1; 1 where both are empty (Dice, Ecology 1945)."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0


def figures(
    segmenter: LungSegmenter, images: NDArray[np.uint8], masks: NDArray[np.uint8], patients: list[str]
) -> dict[str, Any]:
    """Measure a segmenter on images uint8 [n, S, S] with masks (0 or 1) of the same shape."""
    answers = segmenter.masks(images)
    values = np.array([dice(a >= 0.5, m > 0) for a, m in zip(answers, masks, strict=True)])
    keys, codes = np.unique(patients, return_inverse=True)
    by_patient = np.bincount(codes, values) / np.bincount(codes)
    rng = np.random.default_rng(0)
    drawn = [weights @ by_patient / len(keys) for weights in resampled_weights(len(keys), RESAMPLES, rng)]
    return {
        "images": len(images),
        "patients": len(keys),
        "side": images.shape[1],
        "dice": interval(float(by_patient.mean()), np.concatenate(drawn)).as_json(),
        "dice_over_images": {"mean": values.mean(), "median": np.median(values), "least": values.min()},
        "lungs_found": int(sum(mask_fault(answer) is None for answer in answers)),
    }
