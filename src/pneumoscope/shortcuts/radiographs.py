"""The images of the card, with their lungs: read once, drawn by seed where there are too many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, ImageError
from pneumoscope.images import read_image
from pneumoscope.images.preparation import Pixels
from pneumoscope.lungs import mask_fault
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, Bools, FloatArray, Ints, Sample
from pneumoscope.shortcuts.conditions import Chest, chest_of, mean_fill, with_region
from pneumoscope.shortcuts.verdict import MIN_PATIENTS

Masks = Callable[[Pixels], FloatArray]  # uint8 [n, S, S] to the probability of lung, float32 [n, S, S]
_BATCH = 64


@dataclass(frozen=True)
class Radiographs:
    """The `n` images of the card; all of them show two lungs.

    `canvases`: uint8 [n, S, S]. `sizes`: stored width and height [n, 2]. `labels`: bool [n], true for pneumonia, or
    None where some have none. `codes`: int [n], the patient of each. `fill`: uint8 [S, S], of removed parts.
    `unread`, `without_lungs`: images left out, by reason.
    """

    samples: tuple[Sample, ...]
    canvases: Pixels
    sizes: Ints
    chests: tuple[Chest, ...]
    labels: Bools | None
    codes: Ints
    fill: Pixels
    unread: int
    without_lungs: int

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.samples)

    @property
    def patients(self) -> list[str]:
        """The patient of each image."""
        return [sample.patient_id for sample in self.samples]

    @property
    def lungs(self) -> Bools:
        """Where the lungs are, bool [n, S, S]."""
        return np.stack([chest.lungs for chest in self.chests])

    def auroc_fault(self) -> str | None:
        """Return why no AUROC can be estimated, or None where it can."""
        if self.labels is None:
            return "not all images have a label"
        counts = [len(np.unique(self.codes[self.labels == positive])) for positive in (False, True)]
        if min(counts) < MIN_PATIENTS:
            return f"{counts[0]} patients are normal and {counts[1]} have pneumonia, at least {MIN_PATIENTS} are needed"
        return None


def gather(
    classifier: Classifier,
    manifest: Manifest,
    masks: Masks,
    *,
    most: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Radiographs:
    """Read images as input of the network, and segment their lungs.

    Args:
        classifier: whose preparation counts.
        manifest: the images; where it has more than `most`, so many are drawn, each class by its share.
        masks: segments lungs, such as `LungSegmenter.masks`.
        most: images at most.
        seed: of the draw.
        progress: called with (images done, images in all).

    Raises:
        DataError: not one image could be read, or none shows lungs.
    """
    samples = drawn(manifest.samples, most, seed)
    side = classifier.bundle.preparation.canvas

    def read(sample: Sample) -> tuple[Pixels, int, int] | None:
        try:
            radiograph = read_image(sample.path, at_least=2 * side)
        except ImageError:
            return None
        return classifier.canvas(radiograph), radiograph.width, radiograph.height

    usable: list[tuple[Sample, Pixels, tuple[int, int], Chest]] = []
    unread = 0
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            good = [(s, decoded) for s, decoded in zip(part, pool.map(read, part), strict=True) if decoded is not None]
            unread += len(part) - len(good)
            if good:
                lungs = masks(np.stack([decoded[0] for _, decoded in good]))
                for (sample, (canvas, *size)), mask in zip(good, lungs, strict=True):
                    if mask_fault(mask) is None:
                        usable.append((sample, canvas, (size[0], size[1]), chest_of(canvas, mask)))
            if progress is not None:
                progress(min(start + _BATCH, len(samples)), len(samples))
    if not usable:
        what = "not one image could be read" if unread == len(samples) else "no image shows two lungs"
        raise DataError(what, path=manifest.source, remedy="give frontal radiographs of the chest")
    canvases = np.stack([canvas for _, canvas, _, _ in usable])
    names = [sample.label for sample, *_ in usable]
    labels = None if None in names else np.array([label == PNEUMONIA for label in names])
    return Radiographs(
        samples=tuple(sample for sample, *_ in usable),
        canvases=canvases,
        sizes=np.array([size for _, _, size, _ in usable], np.int64),
        chests=tuple(with_region([chest for *_, chest in usable])),
        labels=labels,
        codes=np.unique([sample.patient_id for sample, *_ in usable], return_inverse=True)[1].astype(np.int64),
        fill=mean_fill(canvases, labels),
        unread=unread,
        without_lungs=len(samples) - unread - len(usable),
    )


def drawn(samples: Sequence[Sample], most: int, seed: int) -> list[Sample]:
    """Return `most` of the samples, by seed, each label by its share, in their order; all where there are no more."""
    if len(samples) <= most:
        return list(samples)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(samples))
    by_label: dict[str, list[int]] = {}
    for index in order.tolist():
        by_label.setdefault(samples[index].label or "", []).append(index)
    # Each label's images are spread evenly over 0..1, so any first part of the list has the shares of the whole.
    position = {index: (rank + 0.5) / len(of) for of in by_label.values() for rank, index in enumerate(of)}
    return [samples[index] for index in sorted(sorted(position, key=lambda index: position[index])[:most])]
