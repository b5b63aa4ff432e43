"""Labelled, scored images with their patients: the patient, not the image, is the unit of chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import DataError
from pneumoscope.records import Bools, Floats, Ints

ONE_CLASS = "undefined: only one class present"


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
    """Check labels, scores and patients, and return them together.

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


def probabilities_cohort(y: ArrayLike, probability: ArrayLike, patients: Sequence[str]) -> Cohort:
    """Return the checked cohort of probabilities in 0..1; raises `DataError` where one lies outside."""
    c = cohort(y, probability, patients)
    if c.score.min() < 0 or c.score.max() > 1:
        raise DataError("a probability lies outside 0..1", remedy="give calibrated probabilities, not logits")
    return c
