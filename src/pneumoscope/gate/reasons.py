"""Why an image is not analysed: every check, its words, and the order in which they are asked.

What the file says of itself comes first, then what the pixels show. Which check refused is certain; what is wrong
with the image is a guess, made from the way it would fit best and from where lungs are found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np

from pneumoscope.cohort import Floats
from pneumoscope.errors import ConfigError
from pneumoscope.gate.scores import CHECKS, Gate, greys
from pneumoscope.images import PLAIN, Radiograph
from pneumoscope.images.preparation import Pixels
from pneumoscope.lungs import LungSegmenter, mask_fault
from pneumoscope.records import FloatArray

REASONS: Mapping[str, str] = {
    "modality": "its modality is {found}: no plain radiograph",
    "flat": "the image is nearly constant and shows nothing",
    "too small": "its shorter side has {found} pixels, {limit} are needed",
    "body part": "its header says {found}: no chest",
    "view": "its header says {found}: no frontal view",
    "age": "it is outside the intended population: the patient is {found} years old, it is meant for {limit}",
    "inverted": "its greys look inverted",
    "rotated": "it looks {found}",
    "not a chest": "it looks like no chest radiograph",
    "exposure": "it is {found} than the images it learned from",
    "cropped": "it looks cropped: a lung is cut by the border",
    "lateral": "it looks like a lateral view, or cropped: one lung is seen",
    "unlike": "it is unlike the images it learned from",
}
_LATERAL = frozenset({"LL", "RL", "LLO", "RLO", "LLD", "RLD", "LAT", "LATERAL"})  # DICOM CID 4010, and words in use
_CHEST = ("CHEST", "THORAX", "LUNG")
_FAR = 2.25  # times the limit of `unlike`: in a trial beyond it lay most photographs, and hardly a chest
_CUT = 0.25  # of a side of the image along which lung meets the border
_LUNG = 0.5  # probability


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why: a key of `REASONS`, and what was found and allowed, in words."""

    check: str
    found: str = ""
    limit: str = ""

    def __str__(self) -> str:
        return "not analysed, because " + REASONS[self.check].format(found=self.found, limit=self.limit)


# --- what the file says of itself -------------------------------------------------------------------------


def by_modality(modality: str | None) -> Refusal | None:
    """Return a refusal where the header names a modality (DICOM 0008,0060) that is no plain radiograph."""
    return Refusal("modality", modality) if modality is not None and modality not in PLAIN else None


def by_facts(gate: Gate, radiograph: Radiograph) -> Refusal | None:
    """Return a refusal by size, body part (0018,0015), view position (0018,5101) or age (0010,1010), or None.

    What is not said refuses nothing. An age is one of completed years.
    """
    side = min(radiograph.width, radiograph.height)
    if side < gate.facts["smallest_side"]:
        return Refusal("too small", str(side), str(gate.facts["smallest_side"]))
    part = (radiograph.body_part or "").upper()
    if part and not any(name in part for name in _CHEST):
        return Refusal("body part", part)
    view = (radiograph.view or "").upper()
    if view in _LATERAL:
        return Refusal("view", view)
    ages, age = gate.facts["ages"], radiograph.age_years
    if ages is not None and age is not None and not ages[0] <= age < int(ages[1]) + 1:
        return Refusal("age", f"{age:.3g}", f"{ages[0]:g} to {ages[1]:g}")
    return None


# --- what the pixels show ---------------------------------------------------------------------------------


class LungMasks:
    """Finds lungs, with a segmenter that is loaded when it is first needed; None where it cannot compute."""

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
        return Refusal("inverted") if turn == "inverted" else Refusal("rotated", turn)
    mask = lungs(canvas)
    why = None if mask is None else mask_fault(mask)
    one = why is not None and "one region" in why
    if over["unlike"] and (scores[CHECKS.index("unlike")] > _FAR or (why is not None and not one)):
        return Refusal("not a chest")
    if over["exposure"]:
        return Refusal("exposure", _exposure(gate, canvas))
    if mask is not None and _cut_by_border(mask):
        return Refusal("cropped")
    return Refusal("lateral") if one else Refusal("unlike")


def _exposure(gate: Gate, canvas: Pixels) -> str:
    """Return what is most unusual about the greys: their level, or their contrast."""
    mean, now = gate.densities["greys"].mean, greys(canvas[None])[0]
    level, contrast = float(now.mean() - mean.mean()), float(np.ptp(now) - np.ptp(mean))
    if abs(level) >= abs(contrast) / 2:  # a dark or bright image is flatter as well
        return "brighter" if level > 0 else "darker"
    return "richer in contrast" if contrast > 0 else "flatter"


def _cut_by_border(mask: FloatArray) -> bool:
    lung = mask >= _LUNG
    return max(float(edge.any(axis=axis).mean()) for edge, axis in (
        (lung[:2], 0), (lung[-2:], 0), (lung[:, :2], 1), (lung[:, -2:], 1),
    )) > _CUT  # fmt: skip
