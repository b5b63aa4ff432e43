"""A bundle's figures on images in the style and framing of the other class, which then speak against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from pneumoscope.bundle.calibration import probabilities
from pneumoscope.data.acquisition import Boxes
from pneumoscope.errors import DataError, ImageError
from pneumoscope.evaluation.adjusted import adjusted
from pneumoscope.evaluation.metrics import evaluate_predictions
from pneumoscope.images import read_image
from pneumoscope.images.preparation import Pixels
from pneumoscope.images.style import donors, restyled, style_of
from pneumoscope.lungs import boxes, framed_as
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, Bools, FloatArray, Floats, Progress, Sample


@dataclass(frozen=True, slots=True)
class Stress:
    """What an image takes from one of the other class; 0..1 how far, and whether the lungs lie as in that one."""

    spectrum: float = 0.0
    greys: float = 0.0
    framing: bool = False


CALIBRATING = ("both", "all")  # in turn
STRESSES: Mapping[str, Stress] = MappingProxyType(
    {
        "spectrum": Stress(spectrum=1.0),
        "greys": Stress(greys=1.0),
        "both": Stress(1.0, 1.0),
        "framing": Stress(framing=True),
        "all": Stress(1.0, 1.0, framing=True),
    }
)
FIGURES = ("auroc", "recall", "specificity", "balanced_accuracy", "ece")
_BATCH = 32


@dataclass(frozen=True)
class Labelled:
    """Images uint8 [n, S, S], bool [n] which are of pneumonia, and for `framing` the boxes of their lungs, [n, 4]."""

    images: Pixels
    positive: Bools
    boxes: Floats | None = None


def stressed(own: Labelled, others: Labelled, rng: np.random.Generator, stress: Stress) -> Pixels:
    """Return the own images uint8 [n, S, S], each changed towards one of the others that is of the other class.

    The framing changes as far as the image goes: what lies outside it cannot be shown.
    """
    chosen = donors(own.positive, others.positive, rng)
    changed = []
    for index, donor in enumerate(chosen):
        image = np.asarray(own.images[index])
        if stress.framing and own.boxes is not None and others.boxes is not None:
            top, left, height, width = (len(image) * v for v in framed_as(own.boxes[index], others.boxes[donor]))
            box = (left, top, left + width, top + height)
            image = np.asarray(Image.fromarray(image).resize(image.shape, Image.Resampling.BILINEAR, box))
        if stress.spectrum or stress.greys:
            style = style_of(np.asarray(others.images[donor]))
            image = restyled(image, style, spectrum=stress.spectrum, greys=stress.greys)
        changed.append(image)
    return np.stack(changed)


def evaluate_stressed(
    classifier: Classifier,
    samples: Sequence[Sample],
    *,
    draws: int,
    seed: int = 0,
    find: Boxes = boxes,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Pixels]:
    """Return `FIGURES` at the bundle's threshold, with intervals by patient, under each of `STRESSES` and under none.

    Every image is measured `draws` times, changed towards another of these images that is of the other class. Beside
    them `adjusted`: figures of the unchanged images that framing and machine cannot lift, where there are enough.
    Images that cannot be read are left out; the gate is not asked. `find`: where the lungs are.

    The second result is a picture uint8: a row for an image of each class, as it is and under each stress.

    Raises:
        DataError: the readable images are all of one class.
    """
    canvases, positive, patients = _read(classifier, samples, progress)
    if positive.all() or not positive.any():
        raise DataError("a stressed evaluation needs images of both classes", remedy="give labelled images of both")
    own = Labelled(canvases, positive, find(canvases))
    plain = _logits(classifier, canvases)
    result: dict[str, Any] = {"draws": draws, "n": len(positive)}
    result["none"] = _figures(classifier, [plain], positive, patients, seed)
    score = probabilities(plain, *classifier.calibration)[0]
    result["adjusted"] = adjusted(own.images, own.boxes, positive, score, patients, classifier.threshold, seed=seed)
    shown = [int(np.flatnonzero(positive == ill)[0]) for ill in (False, True)]
    columns = [canvases[shown]]
    for number, (name, stress) in enumerate(STRESSES.items()):
        rng = np.random.default_rng([seed, number])
        drawn = [stressed(own, own, rng, stress) for _ in range(draws)]
        columns.append(drawn[0][shown])
        logits = [_logits(classifier, images) for images in drawn]
        result[name] = _figures(classifier, logits, positive, patients, seed)
    picture = np.concatenate([np.concatenate(list(column), axis=0) for column in columns], axis=1)
    return result, picture


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
