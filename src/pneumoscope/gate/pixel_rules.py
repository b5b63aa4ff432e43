"""Which images are refused by their pixels, after the header was judged.

Which check refused is certain. What is wrong with the image is a guess: from the turn that would fit best, and from the
lungs.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import numpy as np

from pneumoscope.errors import ConfigError
from pneumoscope.gate.refusal import Refusal
from pneumoscope.gate.scores import CHECKS, Gate, greys
from pneumoscope.images import Radiograph
from pneumoscope.images.preparation import Pixels
from pneumoscope.lungs import LungSegmenter, mask_fault
from pneumoscope.records import FloatArray, Floats

_FAR = 2.25  # times the limit of `unlike`: in a trial beyond it lay most photographs, and hardly a chest
_CUT = 0.25  # of a side of the image along which lung meets the border
_LUNG = 0.5  # probability


def by_size(gate: Gate, radiograph: Radiograph) -> Refusal | None:
    """Return a refusal where the shorter side of the stored image has fewer pixels than the gate asks for."""
    side, least = min(radiograph.width, radiograph.height), gate.facts["smallest_side"]
    return Refusal("too small", f"its shorter side has {side} pixels, {least} are needed") if side < least else None


class LungMasks:
    """Finds lungs with a segmenter, loaded at first need; None where it cannot compute."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._segmenter: LungSegmenter | None = None
        self._missing = False

    def __call__(self, canvas: Pixels) -> FloatArray | None:
        """Return probabilities float32 [S, S] from a canvas uint8 [S, S]; raises `BundleError` where it is damaged."""
        with self._lock:
            if self._segmenter is None and not self._missing:
                try:
                    self._segmenter = LungSegmenter.load(threads=1)
                except ConfigError:  # OpenVINO is not installed: the refusal stands, its reason stays general
                    self._missing = True
        return None if self._segmenter is None else self._segmenter.masks(canvas[None])[0]


def by_pixels(
    gate: Gate, scores: Floats, canvas: Pixels, lungs: Callable[[Pixels], FloatArray | None]
) -> Refusal | None:
    """Return a refusal where one of the scores float64 [3] (order of `CHECKS`) is above 1, with its likeliest cause."""
    over = {name: float(score) > 1 for name, score in zip(CHECKS, scores, strict=True)}
    if not any(over.values()):
        return None
    turn = gate.best_turn(canvas) if over["turned"] else None
    if turn is not None:
        inverted = turn == "inverted"
        return Refusal("inverted", "its greys look inverted") if inverted else Refusal("rotated", f"it looks {turn}")
    mask = lungs(canvas)
    fault = None if mask is None else mask_fault(mask)
    one_lung = fault is not None and fault.key == "one region"
    if over["unlike"] and (scores[CHECKS.index("unlike")] > _FAR or (fault is not None and not one_lung)):
        return Refusal("not a chest", "it looks like no chest radiograph")
    if over["exposure"]:
        return Refusal("exposure", f"it is {_exposure(gate, canvas)} than the images it learned from")
    if mask is not None and _cut_by_border(mask):
        return Refusal("cropped", "it looks cropped: a lung is cut by the border")
    lateral = Refusal("lateral", "it looks like a lateral view, or cropped: one lung is seen")
    return lateral if one_lung else Refusal("unlike", "it is unlike the images it learned from")


def _exposure(gate: Gate, canvas: Pixels) -> str:
    """Say what is most unusual about the greys: their level, or their contrast."""
    usual, levels = gate.densities["greys"].mean, greys(canvas[None])[0]
    level, contrast = float(levels.mean() - usual.mean()), float(np.ptp(levels) - np.ptp(usual))
    if abs(level) >= abs(contrast) / 2:  # a dark or bright image is flatter as well
        return "brighter" if level > 0 else "darker"
    return "richer in contrast" if contrast > 0 else "flatter"


def _cut_by_border(mask: FloatArray) -> bool:
    lung = mask >= _LUNG
    return max(float(edge.any(axis=axis).mean()) for edge, axis in (
        (lung[:2], 0), (lung[-2:], 0), (lung[:, :2], 1), (lung[:, -2:], 1),
    )) > _CUT  # fmt: skip
