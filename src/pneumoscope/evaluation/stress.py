"""A bundle's figures on images in the style of the other class: what is left where the machine speaks against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pneumoscope.bundle.calibration import probabilities
from pneumoscope.errors import DataError, ImageError
from pneumoscope.evaluation.metrics import evaluate_predictions
from pneumoscope.images import read_image
from pneumoscope.images.preparation import Pixels
from pneumoscope.images.style import donors, restyled, style_of
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, Bools, FloatArray, Floats, Progress, Sample

STRESSES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"spectrum": (1.0, 0.0), "greys": (0.0, 1.0), "both": (1.0, 1.0)}
)
FIGURES = ("auroc", "recall", "specificity", "balanced_accuracy", "ece")
_BATCH = 32


def stressed(
    canvases: Pixels,
    positive: Bools,
    others: Pixels,
    others_positive: Bools,
    rng: np.random.Generator,
    stress: str = "both",
) -> Pixels:
    """Return images uint8 [n, S, S], each in the style of one of `others` [m, S, S] that is of the other class.

    `positive`, `others_positive`: bool [n] and [m], which are of pneumonia. `stress`: a key of `STRESSES`.
    """
    spectrum, greys = STRESSES[stress]
    chosen = donors(positive, others_positive, rng)
    changed = [
        restyled(np.asarray(canvas), style_of(np.asarray(others[donor])), spectrum=spectrum, greys=greys)
        for canvas, donor in zip(canvases, chosen, strict=True)
    ]
    return np.stack(changed)


def evaluate_stressed(
    classifier: Classifier,
    samples: Sequence[Sample],
    *,
    draws: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return `FIGURES` at the bundle's threshold, with intervals by patient, under each of `STRESSES` and under none.

    Every image is measured `draws` times, in the style of another of these images that is of the other class. Images
    that cannot be read are left out; the gate is not asked.

    Raises:
        DataError: the readable images are all of one class.
    """
    canvases, positive, patients = _read(classifier, samples, progress)
    if positive.all() or not positive.any():
        raise DataError("a stressed evaluation needs images of both classes", remedy="give labelled images of both")
    result: dict[str, Any] = {"draws": draws, "n": len(positive)}
    result["none"] = _figures(classifier, [_logits(classifier, canvases)], positive, patients, seed)
    for number, name in enumerate(STRESSES):
        rng = np.random.default_rng([seed, number])
        logits = [
            _logits(classifier, stressed(canvases, positive, canvases, positive, rng, name)) for _ in range(draws)
        ]
        result[name] = _figures(classifier, logits, positive, patients, seed)
    return result


def _read(
    classifier: Classifier, samples: Sequence[Sample], progress: Progress | None
) -> tuple[Pixels, Bools, list[str]]:
    canvases, positive, patients = [], [], []
    for number, sample in enumerate(samples, start=1):
        try:
            radiograph = read_image(sample.path, at_least=2 * classifier.bundle.preparation.canvas)
        except ImageError:
            continue
        canvases.append(classifier.canvas(radiograph))
        positive.append(sample.label == PNEUMONIA)
        patients.append(sample.patient_id)
        if progress:
            progress(number, len(samples))
    if not canvases:
        raise DataError("not one image could be read", remedy="check the images")
    return np.stack(canvases), np.array(positive), patients


def _logits(classifier: Classifier, canvases: Pixels) -> FloatArray:
    parts = [classifier.logits(canvases[start : start + _BATCH]) for start in range(0, len(canvases), _BATCH)]
    return np.concatenate(parts)


def _figures(
    classifier: Classifier, logits: Sequence[FloatArray], positive: Bools, patients: Sequence[str], seed: int
) -> dict[str, Any]:
    draws = len(logits)
    probability: Floats = probabilities(np.concatenate(logits), *classifier.calibration)[0]
    found = evaluate_predictions(
        np.tile(positive, draws), probability, [*patients] * draws, classifier.threshold, seed=seed
    )
    return {name: found[name].as_json() for name in FIGURES}
