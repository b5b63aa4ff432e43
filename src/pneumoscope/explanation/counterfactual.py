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

from pneumoscope.calibration import probabilities
from pneumoscope.explanation.faithfulness import MOST_KEPT, Score
from pneumoscope.explanation.perturbation import BATCH, FILLS, Floats, remove
from pneumoscope.explanation.zoned import Lungs
from pneumoscope.predict import Classifier
from pneumoscope.preparation import Pixels


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Calibrated scores in 0..1: `score` of the whole image; by fill, `empty` of the fill alone, and without each zone.

    `without`: fill -> zone -> score, of the fills that serve; the one asked for comes first where it serves.
    `refused`: fill -> why it does not serve.
    """

    score: float
    empty: Mapping[str, float]
    without: Mapping[str, Mapping[str, float]]
    refused: Mapping[str, str]
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
            "refused": dict(self.refused),
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 4),
        }


def calibrated(classifier: Classifier) -> Score:
    """Return a function from what the network sees, uint8 [n, S, S], to its calibrated probabilities, float64 [n]."""

    def score(images: Pixels) -> Floats:
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        logits = [classifier.runtime.logits(np.ascontiguousarray(part)) for part in parts]
        return probabilities(np.concatenate(logits), *classifier.calibration)[0]

    return score


def counterfactual(score: Score, image: Pixels, lungs: Lungs, fill: str) -> Counterfactual:
    """Remove each zone alone, with every fill that serves this image.

    Args:
        score: answers in batches, in 0..1.
        image: uint8 [S, S], what the network sees.
        lungs: found on that image.
        fill: a key of `FILLS`, asked first.
    """
    started = time.perf_counter()
    names, labels = lungs.parts()
    order = [fill, *(name for name in FILLS if name != fill)]
    fills = {name: FILLS[name](image) for name in order}
    whole, *removed = score(np.stack([image, *fills.values()])).tolist()
    empty = dict(zip(order, removed, strict=True))
    # As in `faithfulness`: a fill in which the network still sees pneumonia removes nothing.
    refused = {
        name: f"the image that is nothing but fill still scores {value:.2f}, more than half of {whole:.2f}"
        for name, value in empty.items()
        if not value <= MOST_KEPT * whole
    }
    alone = ~np.eye(len(names), dtype=bool)
    serving = [name for name in order if name not in refused]
    without = {
        name: dict(zip(names, score(remove(image, fills[name], labels, alone)).tolist(), strict=True))
        for name in serving
    }
    asked = 1 + len(order) + len(names) * len(serving)
    return Counterfactual(whole, empty, without, refused, asked, time.perf_counter() - started)
