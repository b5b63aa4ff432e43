"""Labelled, scored images and whose they are: the patient, not the image, is the unit of chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from pneumoscope.errors import DataError
from pneumoscope.records import Estimate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Z95 = float(ndtri(0.975))
ONE_CLASS = "undefined: only one class present"
_BLOCK = 2_000_000  # numbers per block of a resampling: 16 MB as float64


@dataclass(frozen=True, slots=True)
class Cohort:
    """Images with a binary truth and a score; build it with `cohort`.

    `y`: bool [n], True for the positive class. `score`: float64 [n], higher is more positive.
    `codes`: int64 [n] in 0..n_patients-1, which patient each image belongs to.
    """

    y: Bools
    score: Floats
    codes: Ints
    n_patients: int

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.y.size)

    @property
    def one_class(self) -> bool:
        """Whether positives or negatives are missing."""
        return bool(self.y.all() or not self.y.any())

    @property
    def clustered(self) -> bool:
        """Whether some patient has more than one image."""
        return self.n_patients < self.n


def cohort(y: ArrayLike, score: ArrayLike, patients: Sequence[Any] | NDArray[Any] | None = None) -> Cohort:
    """Check labels, scores and patients and bind them together.

    `y`: [n] of 0/1 or bool. `score`: [n], no NaN. `patients`: [n] keys, or None where every image is another
    patient. Codes follow the sorted keys, so results do not depend on the order of the images.
    Raises `DataError` where they are empty, differ in length, or hold anything else.
    """
    labels, scores = np.asarray(y), np.asarray(score, dtype=np.float64)
    if labels.ndim != 1 or labels.size == 0:
        raise DataError("there are no labelled images to evaluate", remedy="give at least one label")
    if scores.shape != labels.shape or (patients is not None and len(patients) != labels.size):
        raise DataError("labels, scores and patients differ in length", remedy="give one of each per image")
    if not np.isin(labels, (0, 1)).all():
        raise DataError("labels must be 0 or 1", remedy="leave out images whose label is unknown")
    if np.isnan(scores).any():
        raise DataError("some scores are not numbers", remedy="leave out images that could not be read")
    if patients is None:
        return Cohort(labels.astype(bool), scores, np.arange(labels.size), int(labels.size))
    keys, codes = np.unique(np.asarray(patients), return_inverse=True)
    return Cohort(labels.astype(bool), scores, codes.astype(np.int64), int(keys.size))


def resampled_weights(
    n_patients: int, resamples: int, rng: np.random.Generator, *, width: int | None = None
) -> Iterator[Ints]:
    """Yield blocks int64 [b, n_patients]: how often each patient is drawn in each of `resamples` resamples.

    Every row is a multinomial draw of `n_patients` patients with equal chances (the cluster bootstrap: Field
    and Welsh, J R Stat Soc B 2007). `width` is the row length the caller works at, which bounds the block.
    """
    rows = max(1, _BLOCK // max(n_patients, width or 1))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, n_patients, (size, n_patients))
        drawn += np.arange(size)[:, None] * n_patients
        yield np.bincount(drawn.ravel(), minlength=size * n_patients).reshape(size, n_patients)


def proportion(success: Bools, codes: Ints) -> Estimate:
    """Return a proportion of images with the Wilson interval, its sample size divided by the design effect.

    `success`: bool [n]. `codes`: int [n], the patient of each image. The design effect is that of the ratio
    estimator over patients (Rao and Scott, Biometrics 1992), never under 1. Where the proportion is 0 or 1
    it cannot be measured: patients, not images, are counted then, the worst case.
    """
    n = int(success.size)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, ONE_CLASS)
    share = float(success.mean())
    _, patient = np.unique(codes, return_inverse=True)
    sizes = np.bincount(patient)
    count = sizes.size
    effective = float(count)
    if 0 < share < 1 and count > 1:
        residual = np.bincount(patient, success) - share * sizes
        variance = count / (count - 1) * float(residual @ residual) / n**2
        effective = n / max(1.0, variance * n / (share * (1 - share)))
    low, high = wilson(share, effective)
    return Estimate(share, low, high, "Wilson, design effect by patient" if count < n else "Wilson")


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion among `n` > 0 (Wilson, J Am Stat Assoc 1927)."""
    centre = share + Z95**2 / (2 * n)
    half = Z95 * float(np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
