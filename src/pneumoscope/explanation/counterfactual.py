"""What the score would be without a part of the image: each zone of the lungs removed alone.

"Removed" means that a fill stands there, which no X-ray ever made. So a fill serves only where the image that is
nothing but fill loses its score, and what several fills say stands side by side.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from pneumoscope.bundle.calibration import pneumonia_logit, probabilities
from pneumoscope.explanation.faithfulness import MOST_KEPT
from pneumoscope.explanation.perturbation import FILLS, remove
from pneumoscope.explanation.zoned import Lungs
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import Floats

_LUNGS = {"right lung": ("right",), "left lung": ("left",), "both lungs": ("right", "left")}


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Calibrated scores in 0..1: `score` of the whole image; by fill, `empty` of the fill alone, and without each zone.

    `without`: fill -> zone -> score, of the fills that serve; the one asked for comes first where it serves.
    `together`: fill -> `right lung`, `left lung`, `both lungs` -> score without all its zones at once.
    `refused`: fill -> the share of the score before calibration that nothing but the fill keeps, more than a half.
    """

    score: float
    empty: Mapping[str, float]
    without: Mapping[str, Mapping[str, float]]
    together: Mapping[str, Mapping[str, float]]
    refused: Mapping[str, float]
    evaluations: int
    seconds: float

    @property
    def fill(self) -> str | None:
        """The fill to quote, None where none serves."""
        return next(iter(self.without), None)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "fill": self.fill,
            "score": self.score,
            "empty": dict(self.empty),
            "without": {fill: dict(scores) for fill, scores in self.without.items()},
            "together": {fill: dict(scores) for fill, scores in self.together.items()},
            "refused": dict(self.refused),
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 4),
        }


def counterfactual(classifier: Classifier, image: Pixels, lungs: Lungs, fill: str) -> Counterfactual:
    """Remove each zone alone, with every fill that serves this image.

    Args:
        classifier: any network.
        image: uint8 [S, S], what it sees.
        lungs: found on that image.
        fill: a key of `FILLS`, tried first.
    """
    started = time.perf_counter()
    names, labels = lungs.parts()
    order = [fill, *(name for name in FILLS if name != fill)]
    fills = {name: FILLS[name](image) for name in order}
    calibrated, raw = _scores(classifier, np.stack([image, *fills.values()]))
    # As in `faithfulness`, by the score before calibration: where the fill alone scores as pneumonia, filling removes
    # nothing.
    shares = dict(zip(order, (raw[1:] / raw[0]).tolist(), strict=True))
    refused = {name: share for name, share in shares.items() if not share <= MOST_KEPT}
    serving = [name for name in order if name not in refused]
    left_in = np.concatenate([~np.eye(len(names), dtype=bool), [_staying(names, sides) for sides in _LUNGS.values()]])
    without, together = {}, {}
    for name in serving:
        scores = _scores(classifier, remove(image, fills[name], labels, left_in))[0].tolist()
        without[name] = dict(zip(names, scores[: len(names)], strict=True))
        together[name] = dict(zip(_LUNGS, scores[len(names) :], strict=True))
    return Counterfactual(
        score=float(calibrated[0]),
        empty=dict(zip(order, calibrated[1:].tolist(), strict=True)),
        without=without,
        together=together,
        refused=refused,
        evaluations=1 + len(order) + len(left_in) * len(serving),
        seconds=time.perf_counter() - started,
    )


def _staying(names: list[str], sides: tuple[str, ...]) -> list[bool]:
    """Return which zones stay where those of the sides are removed."""
    return [name.partition(" ")[0] not in sides for name in names]


def _scores(classifier: Classifier, images: Pixels) -> tuple[Floats, Floats]:
    """Return probabilities [n] of pneumonia, calibrated and not, from network input, uint8 [n, S, S]."""
    logits = classifier.runtime.logits(np.ascontiguousarray(images))
    return probabilities(logits, *classifier.calibration)[0], np.asarray(expit(pneumonia_logit(logits)), np.float64)
