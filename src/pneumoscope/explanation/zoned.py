"""The lungs of one image: where their zones lie, and what each is worth to the score by LIME and by SHAP.

Seven parts have 128 coalitions, so none is drawn at random: the network answers about each once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import BundleError, ConfigError
from pneumoscope.explanation.perturbation import FILLS, answers
from pneumoscope.explanation.segments import Labels
from pneumoscope.explanation.surrogate import LEAST_R2, Surrogate, fit_lime, fit_shap, shap_masks
from pneumoscope.images.preparation import Pixels, to_input
from pneumoscope.lungs import ZONES, LungSegmenter, mask_fault, zones
from pneumoscope.predict import Classifier


@dataclass(frozen=True)
class Lungs:
    """`zones`: int64 [S, S], an index into `lungs.ZONES`, over what the network sees; None where `reason` says why."""

    zones: NDArray[np.int64] | None
    reason: str | None = None
    segmenter: str = ""

    def parts(self) -> tuple[list[str], Labels]:
        """Return the names of the zones that the image has, and their places, int32 [S, S] in 0..K-1."""
        assert self.zones is not None
        kinds, labels = np.unique(self.zones, return_inverse=True)
        return [ZONES[kind] for kind in kinds], labels.reshape(self.zones.shape).astype(np.int32)


def open_segmenter() -> LungSegmenter | str:
    """Return the shipped segmenter, or why there is none."""
    try:
        return LungSegmenter.load()
    except (BundleError, ConfigError) as error:
        return f"lungs not looked for: {error}"


def find_lungs(classifier: Classifier, canvas: Pixels, segmenter: LungSegmenter | str) -> Lungs:
    """Segment the lungs of uint8 [canvas, canvas]; without two lungs the outcome is the reason."""
    if isinstance(segmenter, str):
        return Lungs(None, segmenter)
    # Equalisation is for the network; the segmenter was trained on greys as they are.
    as_stored = to_input(np.asarray(canvas)[None], replace(classifier.bundle.preparation, tone="as-is"))
    mask = segmenter.masks(np.asarray(as_stored, np.uint8))[0]
    if reason := mask_fault(mask):
        return Lungs(None, str(reason), segmenter.label)
    return Lungs(zones(mask), None, segmenter.label)


def worths(classifier: Classifier, image: Pixels, lungs: Lungs, fill: str) -> dict[str, Any]:
    """Return the contribution of each zone to the log-odds of pneumonia, by LIME and by SHAP over all coalitions.

    Args:
        classifier: any network.
        image: uint8 [S, S], its input.
        lungs: of that image.
        fill: a key of `FILLS`.

    Returns:
        `fill`, `evaluations`, `seconds`, and for `lime` and `shap`: `surrogate_r2`, `contributions` by name of the
        zone in log-odds, and `hidden`: None, or why they are not to be shown, the model predicting less than half of
        the variance.
    """
    started = time.perf_counter()
    names, labels = lungs.parts()
    masks, weights = shap_masks(len(names), 2 ** len(names), np.random.default_rng(0))
    scores = answers(classifier, image, FILLS[fill](image), labels, masks)
    surrogates = {"lime": fit_lime(masks, scores), "shap": fit_shap(masks, scores, weights)}
    return {
        "fill": fill,
        "evaluations": len(masks),
        **{name: _facts(names, fitted) for name, fitted in surrogates.items()},
        "seconds": round(time.perf_counter() - started, 4),
    }


def _facts(names: list[str], fitted: Surrogate) -> dict[str, Any]:
    hidden = None
    if fitted.r2 < LEAST_R2:
        hidden = f"a linear model of the zones explains {fitted.r2:.2f} of the variance, less than {LEAST_R2}"
    return {
        "surrogate_r2": fitted.r2,
        "hidden": hidden,
        "contributions": dict(zip(names, fitted.contributions.tolist(), strict=True)),
    }
