"""How radiographs were framed, exposed and processed: numbers that know nothing of disease, and machines told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from sklearn.cluster import KMeans
from sklearn.preprocessing import StandardScaler

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, ImageError
from pneumoscope.images import read_image
from pneumoscope.images.burned import text_in
from pneumoscope.images.picture import BLACK, sharpness
from pneumoscope.images.preparation import Pixels, to_canvas
from pneumoscope.images.style import style_of
from pneumoscope.records import Floats, Ints, Progress, Sample

SIDE = 224  # to which images are squashed, as networks see them
BANDS = 12  # of the power spectrum
_FINE = 20  # radius from which on the spectrum shows texture more than anatomy
_EDGE = 0.06  # of the side
CLUSTERS = 6

Boxes = Callable[[Pixels], Floats]  # uint8 [n, S, S] to the lungs' top, bottom, left, right, float64 [n, 4] in 0..1


def read_squashed(samples: Sequence[Sample], progress: Progress | None = None) -> tuple[Pixels, list[int]]:
    """Return the readable images, uint8 [n, 224, 224], and their indices among the samples.

    Raises:
        DataError: not one can be read.
    """
    images, indices = [], []
    for index, sample in enumerate(samples):
        try:
            images.append(to_canvas(read_image(sample.path, at_least=2 * SIDE).pixels, SIDE, "squash"))
        except ImageError:
            continue
        indices.append(index)
        if progress:
            progress(index + 1, len(samples))
    if not images:
        raise DataError("not one image could be read", remedy="see `pneumoscope data check`")
    return np.stack(images), indices


def framing(boxes: Floats) -> dict[str, Floats]:
    """Return where the lungs lie, float64 [n] each in fractions of the side, from their boxes float64 [n, 4]."""
    top, bottom, left, right = boxes.T
    height, width = bottom - top, right - left
    return {
        "above the lungs": top,
        "below the lungs": 1 - bottom,
        "left of the lungs": left,
        "right of the lungs": 1 - right,
        "height of the lungs": height,
        "width of the lungs": width,
        "lungs, width : height": width / height,
        "area of the lungs' box": width * height,
    }


def exposure(images: Pixels) -> dict[str, Floats]:
    """Return statistics of grey and sharpness, float64 [n] each, from images uint8 [n, S, S]."""
    rows = []
    for image in images:
        grey = image.astype(np.float64)
        rows.append([grey.mean(), grey.std(), *np.percentile(grey, (5, 95)), sharpness(np.asarray(image))])
    names = ("mean grey", "contrast", "grey, 5 % point", "grey, 95 % point", "sharpness")
    return dict(zip(names, np.array(rows).T, strict=True))


def texture(images: Pixels) -> Floats:
    """Return the fine part of each image's power spectrum, float64 [n, 12]: log power by band, less its mean.

    What is left is shape alone, whatever the contrast: grain, noise, sharpening, compression.
    """
    rows = []
    for image in images:
        spectrum = style_of(np.asarray(image)).spectrum[_FINE:]
        rows.append([band.mean() for band in np.array_split(spectrum.astype(np.float64), BANDS)])
    values = np.array(rows)
    return np.asarray(values - values.mean(axis=1, keepdims=True))


def overlays(images: Pixels) -> dict[str, Floats]:
    """Return how much of each image is burned-in text, and how much of its edge is black, float64 [n] each."""
    edge = np.zeros((SIDE, SIDE), np.bool_)
    width = round(_EDGE * SIDE)
    edge[:width] = edge[-width:] = edge[:, :width] = edge[:, -width:] = True
    return {
        "burned-in text": np.array([text_in(np.asarray(image)).mean() for image in images]),
        "black edge": np.array([(image[edge] < BLACK).mean() for image in images]),
    }


def machines(texture: Floats, overlays: Mapping[str, Floats], *, seed: int = 0, clusters: int = CLUSTERS) -> Ints:
    """Return the cluster of each image, int64 [n], the largest first: images alike in texture and overlays.

    Unsupervised, so it stands for machine and processing where no header names them. Anatomy is nearly left out; age
    and disease, which change texture as well, are not.
    """
    values = StandardScaler().fit_transform(np.column_stack([texture, *overlays.values()]))
    if len(values) < clusters:
        raise DataError(f"{clusters} clusters need as many images", remedy="give more images")
    label = KMeans(clusters, n_init=10, random_state=seed).fit_predict(values)
    order = np.argsort(-np.bincount(label, minlength=clusters), kind="stable")
    return np.asarray(np.argsort(order)[label], np.int64)


def with_machines(manifest: Manifest, *, seed: int = 0, progress: Progress | None = None) -> Manifest:
    """Return the readable images of a manifest, each with its machine's cluster as its site: `cluster 1`, the largest.

    Raises:
        DataError: fewer images than clusters can be read.
    """
    images, indices = read_squashed(manifest.samples, progress)
    labels = machines(texture(images), overlays(images), seed=seed)
    samples = [
        replace(manifest.samples[index], site=f"cluster {label + 1}")
        for index, label in zip(indices, labels, strict=True)
    ]
    return replace(manifest, samples=tuple(samples))
