"""Real radiographs as the monitor sees them, under known changes; computed once with a bundle, kept beside the caller.

    python benchmarks/monitoring/images.py --data ../shared/data --cache /tmp/pneumoscope-monitoring --images 1600

Children (kermany224, some of them taught the shipped network) as they are, and with gain, contrast, noise, turned,
upside down and inverted; adults (nih_adult) as another age group. Each condition is one file of arrays.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.bundle.calibration import pneumonia_logit, probabilities
from pneumoscope.data.cache import open_cache
from pneumoscope.data.sources import open_source
from pneumoscope.files import atomic_path
from pneumoscope.gate.pixel_rules import LungMasks, by_pixels
from pneumoscope.images.preparation import to_input
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, Sample

BATCH = 16
Pixels = NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], Pixels]


def gain(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    """Grey levels times 1.2, clipped."""
    return (canvas.astype(np.float64) * 1.2).clip(0, 255).round().astype(np.uint8)


def contrast(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    """Contrast times .8 about the mean."""
    mean = canvas.mean()
    return ((canvas - mean) * 0.8 + mean).clip(0, 255).round().astype(np.uint8)


def noise(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    """Gaussian noise of .04 of the range."""
    return (canvas + 255 * 0.04 * rng.standard_normal(canvas.shape)).clip(0, 255).round().astype(np.uint8)


CHANGES: Mapping[str, Change] = {
    "clean": lambda canvas, rng: canvas,
    "gain": gain,
    "contrast": contrast,
    "noise": noise,
    "inverted": lambda canvas, rng: 255 - canvas,
    "turned": lambda canvas, rng: np.rot90(canvas).copy(),
}


def facts(classifier: Classifier, samples: Sequence[Sample], change: Change) -> dict[str, NDArray[np.generic]]:
    """Return arrays over images: logit, probability, gate scores, embedding, grey facts, refusals, truth, patient."""
    preparation = classifier.bundle.preparation
    cache = open_cache(samples, canvas=preparation.canvas, aspect=preparation.aspect, crop=classifier.crop)
    kept = [(sample, row) for sample, row in zip(samples, cache.rows, strict=True) if row >= 0]
    masks, parts = LungMasks(), []
    assert classifier.gate is not None
    for start in range(0, len(kept), BATCH):
        batch = kept[start : start + BATCH]
        canvases = np.stack(
            [
                change(np.array(cache.pixels[row]), np.random.default_rng([7, start + i]))
                for i, (_, row) in enumerate(batch)
            ]
        )
        logits, features = classifier.runtime.answer(to_input(canvases, preparation))
        scores = classifier.gate.scores(canvases, features)
        refused = [
            by_pixels(classifier.gate, score, canvas, masks) for score, canvas in zip(scores, canvases, strict=True)
        ]
        parts.append(
            {
                "logit": pneumonia_logit(logits),
                "probability": probabilities(logits, *classifier.calibration)[0],
                "gate": scores,
                "embedding": classifier.gate.embedding(features),
                "mean": canvases.mean(axis=(1, 2)) / 255,
                "contrast": canvases.std(axis=(1, 2)) / 255,
                "refused": np.array(["" if refusal is None else str(refusal.key) for refusal in refused], "U32"),
            }
        )
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["truth"] = np.array([sample.label == PNEUMONIA for sample, _ in kept])
    arrays["patient"] = np.unique([sample.patient_id for sample, _ in kept], return_inverse=True)[1]
    return arrays


def conditions(data: Path, cache: Path, images: int) -> dict[str, dict[str, NDArray[np.generic]]]:
    """Return the arrays of every condition, computed where `cache` lacks them."""
    classifier: Classifier | None = None
    result = {}
    for name in (*CHANGES, "adults"):
        file = cache / f"{name}-{images}.npz"
        if not file.is_file():
            classifier = classifier or Classifier.load(threads=1)
            samples = open_source(data / ("nih_adult" if name == "adults" else "kermany224")).labelled().samples
            order = np.random.default_rng(11).permutation(len(samples))[:images]
            chosen = [samples[i] for i in sorted(order)]
            arrays = facts(classifier, chosen, CHANGES.get(name, CHANGES["clean"]))
            with atomic_path(file) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **arrays)
            print(name, len(arrays["truth"]), flush=True)
        with np.load(file, allow_pickle=False) as stored:
            result[name] = dict(stored)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1600)
    arguments = parser.parse_args()
    conditions(arguments.data, arguments.cache, arguments.images)
