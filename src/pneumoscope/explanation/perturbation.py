"""Images with parts removed, and the network's answers about them, in batches through the fast runtime.

All perturbation methods work this way: the removed parts are decided first, as rows of a table, and the runtime of
predictions answers in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pneumoscope.bundle.calibration import pneumonia_logit
from pneumoscope.explanation.segments import Labels
from pneumoscope.images.preparation import Pixels, to_input
from pneumoscope.predict import Classifier
from pneumoscope.records import Floats

Masks = NDArray[np.bool_]
BATCH = 32


def shuffled(image: Pixels) -> Pixels:
    """Return the image's own pixels in a random order that is always the same: its greys without its shapes."""
    order = np.random.default_rng(0).permutation(image.size)
    return image.ravel()[order].reshape(image.shape)


def mean_grey(image: Pixels) -> Pixels:
    """Return the image's mean grey everywhere."""
    return np.full_like(image, round(float(image.mean())))


def blurred(image: Pixels) -> Pixels:
    """Return the image blurred until ribs and vessels are gone: a Gaussian of a sixteenth of its side."""
    return np.asarray(gaussian_filter(image.astype(np.float32), image.shape[0] / 16, mode="nearest"), np.uint8)


def black(image: Pixels) -> Pixels:
    """Return black."""
    return np.zeros_like(image)


def typical(image: Pixels) -> Pixels:
    """Return a typical normal chest with the image's mean and standard deviation of grey.

    The median of eleven normal radiographs of children (Kermany et al. 2018, CC BY 4.0), nobody's own; made by
    `benchmarks/explanation/normal_chest.py`.
    """
    chest = _chest(image.shape[0])
    spread = float(image.std()) / float(chest.std())
    return np.asarray(np.clip((chest - chest.mean()) * spread + image.mean(), 0, 255), np.uint8)


@cache
def _chest(side: int) -> NDArray[np.float32]:
    with (files("pneumoscope.explanation") / "normal.png").open("rb") as file, Image.open(file) as picture:
        return np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BILINEAR), np.float32)


# Each uint8 [S, S] from the same. A fill should carry no evidence of pneumonia. An even or blurred patch looks like an
# opacity to many networks, the shipped one among them, so measure it: `faithfulness.kept`.
FILLS: Mapping[str, Callable[[Pixels], Pixels]] = MappingProxyType(
    {"normal": typical, "shuffle": shuffled, "mean": mean_grey, "blur": blurred, "black": black}
)


def network_input(classifier: Classifier, canvas: Pixels) -> Pixels:
    """Return the network's input, uint8 [S, S], from an image uint8 [canvas, canvas]."""
    inputs = to_input(np.asarray(canvas)[None], classifier.bundle.preparation)
    return np.asarray(inputs[0], np.uint8)


def log_odds(classifier: Classifier, images: Pixels) -> Floats:
    """Return the log-odds of pneumonia, float64 [n], from network input, uint8 [n, S, S]."""
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    logits = [classifier.runtime.logits(np.ascontiguousarray(part)) for part in parts]
    return pneumonia_logit(np.concatenate(logits))


def remove(image: Pixels, fill: Pixels, segments: Labels, masks: Masks) -> Pixels:
    """Return uint8 [n, S, S]: the image [S, S] where a segment is present in bool [n, K], else the fill [S, S]."""
    return np.asarray(np.where(masks[:, segments], image, fill), np.uint8)


def answers(classifier: Classifier, image: Pixels, fill: Pixels, segments: Labels, masks: Masks) -> Floats:
    """Return the log-odds of pneumonia, float64 [n], with the segments removed where `masks`, bool [n, K], is false."""
    parts = [masks[start : start + BATCH] for start in range(0, len(masks), BATCH)]
    return np.concatenate([log_odds(classifier, remove(image, fill, segments, part)) for part in parts])
