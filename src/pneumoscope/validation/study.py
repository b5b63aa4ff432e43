"""The images of a validation with their answers, and the columns that group them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.errors import DataError
from pneumoscope.evaluation.metrics import evaluate_predictions
from pneumoscope.records import PNEUMONIA, Bools, Estimate, Floats, Sample
from pneumoscope.statistics.rates import likelihood_ratios
from pneumoscope.statistics.reliability import calibration_estimates

Words = NDArray[np.str_]

AGE, SITE, DEVICE = "age band", "site", "device"
USUAL = (AGE, "sex", "view", DEVICE, SITE)
AGES = ((1, "under 1"), (5, "1 to 4"), (18, "5 to 17"), (40, "18 to 39"), (65, "40 to 64"), (131, "65 and over"))
MOST_LEVELS = 12  # numbers with more values are cut into quarters
_DEVICE = ("device", "ManufacturerModelName", "Manufacturer")


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """Analysed, labelled images.

    `y`: bool [n], pneumonia; `p`: float64 [n] in 0..1; `patients`: str [n]; `columns`: name -> str [n], "" where not
    recorded; `raw`: what the data say of each image beside the label, name -> str [n], for the metadata alone.
    """

    y: Bools
    p: Floats
    patients: Words
    threshold: float
    columns: Mapping[str, Words]
    raw: Mapping[str, Words]

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.y.size)

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return int(np.unique(self.patients).size)

    def take(self, mask: NDArray[Any]) -> Study:
        """Return the images of a mask, bool [n], or at positions, int [m]."""
        return replace(
            self,
            y=self.y[mask],
            p=self.p[mask],
            patients=self.patients[mask],
            columns={name: values[mask] for name, values in self.columns.items()},
            raw={name: values[mask] for name, values in self.raw.items()},
        )

    def levels(self, name: str) -> list[str]:
        """Return the recorded values of a column, by the number that they begin with, else by name."""

        def rank(level: str) -> tuple[float, str]:
            number = re.match(r"-?[\d.]+", level)
            return (float(number[0]) if number else -np.inf, level)

        return sorted((str(level) for level in np.unique(self.columns[name]) if level != ""), key=rank)


def study_of(
    samples: Sequence[Sample], probability: Sequence[float], threshold: float, groups: Sequence[str], site: str | None
) -> Study:
    """Bind samples [n] to their probabilities [n]; `groups` and `site` name further columns of the table.

    Raises `DataError` where a named column is nowhere recorded.
    """
    columns = {
        AGE: [age_band(sample.age_years) for sample in samples],
        "sex": [sample.sex or "" for sample in samples],
        "view": [sample.view or "" for sample in samples],
        DEVICE: [next((v for key in _DEVICE if (v := sample.covariates.get(key, ""))), "") for sample in samples],
        SITE: recorded(samples, site) if site else [sample.site or "" for sample in samples],
    }
    for name in groups:
        if name not in columns:
            columns[name] = banded(recorded(samples, name))
    raw = {name: recorded(samples, name) for name in ("age_years", "sex", "view")}
    raw[SITE] = columns[SITE]
    for name in dict.fromkeys([*(key for sample in samples for key in sample.covariates), *groups]):
        if name not in columns or name in groups:
            raw.setdefault(name, recorded(samples, name) if name not in columns else columns[name])
    return Study(
        np.array([sample.label == PNEUMONIA for sample in samples]),
        np.asarray(probability, dtype=np.float64),
        np.array([sample.patient_id for sample in samples], dtype=str),
        threshold,
        {name: np.array(values, dtype=str) for name, values in columns.items()},
        {name: np.array(values, dtype=str) for name, values in raw.items() if any(values)},
    )


def recorded(samples: Sequence[Sample], name: str) -> list[str]:
    """Return one column of the table as text [n], "" where not recorded; raises `DataError` for an unknown one."""
    if name in ("site", "sex", "view", "age_years", "subtype", "split"):
        values = [getattr(sample, name) for sample in samples]
        return ["" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    names = sorted({key for sample in samples for key in sample.covariates})
    if name not in names:
        raise DataError(f"no image has the column {name!r}", remedy=f"it has {', '.join(names) or 'no further ones'}")
    return [sample.covariates.get(name, "").strip() for sample in samples]


def age_band(years: float | None) -> str:
    """Return the band of an age, "" where it is unknown.

    >>> age_band(4.9), age_band(18), age_band(None)
    ('1 to 4', '18 to 39', '')
    """
    return "" if years is None else next(name for end, name in AGES if years < end)


def banded(values: Sequence[str]) -> list[str]:
    """Return text as it is, and numbers of more than twelve values cut into quarters of the images."""
    numbers = pd.to_numeric(pd.Series([v or None for v in values], dtype=object), errors="coerce")
    present = np.array([v != "" for v in values])
    if len(set(values)) <= MOST_LEVELS or numbers[present].isna().any():
        return list(values)
    edges = np.unique(np.quantile(numbers[present], (0, 0.25, 0.5, 0.75, 1)))
    band = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, edges.size - 2)
    names = [f"{low:g} to under {high:g}" for low, high in pairwise(edges[:-1])]
    names.append(f"{edges[-2]:g} to {edges[-1]:g}")
    return [names[i] if k else "" for i, k in zip(band, present, strict=True)]


def figures(study: Study, *, seed: int, resamples: int = 1000) -> dict[str, Any]:
    """Return counts and every figure of some images at the study's threshold, in the form of `metrics.json`."""
    patients = study.patients.tolist()
    called = study.p >= study.threshold
    estimates: dict[str, Estimate] = evaluate_predictions(
        study.y, study.p, patients, study.threshold, seed=seed, resamples=resamples
    )
    estimates |= calibration_estimates(study.y, study.p, patients, seed=seed, resamples=resamples)
    estimates |= likelihood_ratios(study.y, called, patients)
    return {**counts(study), "metrics": {name: estimate.as_json() for name, estimate in estimates.items()}}


def counts(study: Study) -> dict[str, Any]:
    """Return how many images, patients, and images with and without pneumonia there are."""
    positives = int(study.y.sum())
    return {
        "n": study.n,
        "n_patients": study.n_patients,
        "positives": positives,
        "negatives": study.n - positives,
        "prevalence": positives / study.n if study.n else float("nan"),
    }
