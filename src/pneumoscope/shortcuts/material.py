"""The images that are audited, with their lungs: read once, drawn by seed where there are too many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, ImageError
from pneumoscope.images import read_image
from pneumoscope.images.preparation import Pixels
from pneumoscope.lungs import mask_fault
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, FloatArray, Sample
from pneumoscope.shortcuts.conditions import Chest, chest_of, mean_fill, with_region
from pneumoscope.shortcuts.verdict import MIN_PATIENTS

Masks = Callable[[Pixels], FloatArray]  # uint8 [n, S, S] to the probability of lung, float32 [n, S, S]
_BATCH = 64


@dataclass(frozen=True)
class Material:
    """What is audited, of `n` images: lungs were found in all of them.

    `canvases`: uint8 [n, S, S]. `sizes`: stored width and height [n, 2]. `labels`: bool [n], true for pneumonia, or
    None where some have none. `codes`: int [n], the patient of each. `fill`: uint8 [S, S], what stands where parts are
    removed. `unread`, `without_lungs`: images left out, by reason.
    """

    samples: tuple[Sample, ...]
    canvases: Pixels
    sizes: NDArray[np.int64]
    chests: tuple[Chest, ...]
    labels: NDArray[np.bool_] | None
    codes: NDArray[np.int64]
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
    def lungs(self) -> NDArray[np.bool_]:
        """Where the lungs are, bool [n, S, S]."""
        return np.stack([chest.lungs for chest in self.chests])

    def why_no_auroc(self) -> str | None:
        """Return why no AUROC can be told, or None where it can."""
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
) -> Material:
    """Read images as the network sees them, and find their lungs.

    Args:
        classifier: whose preparation counts.
        manifest: the images; where it has more than `most`, so many are drawn, each class by its share.
        masks: finds lungs, such as `LungSegmenter.masks`.
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

    kept: list[tuple[Sample, Pixels, tuple[int, int], Chest]] = []
    unread = 0
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            good = [(s, found) for s, found in zip(part, pool.map(read, part), strict=True) if found is not None]
            unread += len(part) - len(good)
            if good:
                found_masks = masks(np.stack([found[0] for _, found in good]))
                for (sample, (canvas, *size)), mask in zip(good, found_masks, strict=True):
                    if mask_fault(mask) is None:
                        kept.append((sample, canvas, (size[0], size[1]), chest_of(canvas, mask)))
            if progress is not None:
                progress(min(start + _BATCH, len(samples)), len(samples))
    if not kept:
        what = "not one image could be read" if unread == len(samples) else "no image shows two lungs"
        raise DataError(what, path=manifest.source, remedy="give frontal radiographs of the chest")
    canvases = np.stack([canvas for _, canvas, _, _ in kept])
    known = [sample.label for sample, *_ in kept]
    labels = None if None in known else np.array([label == PNEUMONIA for label in known])
    return Material(
        samples=tuple(sample for sample, *_ in kept),
        canvases=canvases,
        sizes=np.array([size for _, _, size, _ in kept], np.int64),
        chests=tuple(with_region([chest for *_, chest in kept])),
        labels=labels,
        codes=np.unique([sample.patient_id for sample, *_ in kept], return_inverse=True)[1].astype(np.int64),
        fill=mean_fill(canvases, labels),
        unread=unread,
        without_lungs=len(samples) - unread - len(kept),
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
    # Each label's images are spread evenly over 0..1, so that every beginning of the list has the shares of the whole.
    places = {index: (rank + 0.5) / len(of) for of in by_label.values() for rank, index in enumerate(of)}
    return [samples[index] for index in sorted(sorted(places, key=lambda index: places[index])[:most])]
