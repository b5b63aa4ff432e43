"""How far the label can be predicted without the lungs: from size, brightness and the table's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumoscope.data.scan import Scan
from pneumoscope.records import PNEUMONIA, Bools, Estimate, Floats, Ints
from pneumoscope.statistics.auc import auroc_interval

LIMIT = 0.60  # flagged where the whole interval lies above it, or below one minus it
MIN_PATIENTS = 10  # per class
FOLDS = 5
MAX_LEVELS = 20

Folds = Sequence[tuple[Ints, Ints]]


@dataclass(frozen=True, slots=True)
class Feature:
    """One property that is no finding in the lungs; `columns`: float64 [N, k], finite."""

    name: str
    origin: str
    columns: Floats


def shortcuts(scan: Scan, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return the AUROC for pneumonia of every feature, alone and together, over the labelled images.

    One record per feature: `name`, `origin` (`file` or `table`), `auroc` (value, ci95, method), `n`,
    `flagged`. A feature with one column is used as it is, so an AUROC below .5 says that it is lower in
    pneumonia. Several columns go through a logistic regression that never sees the patient it scores.
    Empty where a class has fewer than ten patients.
    """
    table = scan.table
    rows = np.flatnonzero(scan.readable & table["label"].notna().to_numpy(bool))
    y = (table["label"].iloc[rows] == PNEUMONIA).to_numpy(bool)
    patients, groups = np.unique(table["patient_id"].iloc[rows].to_numpy(str), return_inverse=True)
    if min(len(np.unique(groups[y])), len(np.unique(groups[~y]))) < MIN_PATIENTS or len(patients) < 2:
        return []
    features = [*_file_features(table.iloc[rows]), *_table_features(scan, rows)]
    for origin, name in (("file", "all file properties together"), ("table", "all columns together")):
        some = [feature for feature in features if feature.origin == origin]
        if len(some) > 1:
            features.append(Feature(name, origin, np.hstack([feature.columns for feature in some])))
    folds = patient_folds(y, groups, seed)
    return [_record(feature, y, groups, folds, seed) for feature in features]


def _record(feature: Feature, y: Bools, groups: Ints, folds: Folds, seed: int) -> dict[str, Any]:
    fitted = feature.columns.shape[1] > 1
    scores = out_of_fold(feature.columns, y, folds) if fitted else feature.columns[:, 0]
    estimate = auroc_interval(y, scores, groups, seed=seed)
    if fitted:
        method = f"logistic regression, {FOLDS} folds by patient; {estimate.method}"
        estimate = Estimate(estimate.value, estimate.low, estimate.high, method)
    flagged = estimate.low > LIMIT or estimate.high < 1 - LIMIT
    return {
        "name": feature.name,
        "origin": feature.origin,
        "auroc": estimate.as_json(),
        "n": len(y),
        "flagged": bool(flagged),
    }


# --- features ---------------------------------------------------------------------------------------------


def _file_features(table: pd.DataFrame) -> list[Feature]:
    values = {
        "width": np.log(table["width"]),
        "height": np.log(table["height"]),
        "aspect ratio": np.log(table["width"] / table["height"]),
        "file size": np.log(table["bytes"]),
        "mean intensity": table["mean"],
        "stored as colour": table["mode"].map(is_colour).astype(float),
    }
    columns = {name: series.to_numpy(float) for name, series in values.items()}
    return [
        Feature(name, "file", column[:, None])
        for name, column in columns.items()
        if np.isfinite(column).all() and np.ptp(column) > 0
    ]


def is_colour(mode: str) -> bool:
    """Say whether a stored Pillow mode or DICOM photometric interpretation carries colour.

    >>> is_colour("RGB"), is_colour("L"), is_colour("MONOCHROME2")
    (True, False, False)
    """
    return mode in ("RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "P", "PA") or mode.startswith(
        ("YBR", "PALETTE")
    )


def _table_features(scan: Scan, rows: Ints) -> list[Feature]:
    samples = [scan.manifest.samples[row] for row in rows]
    columns: dict[str, list[str]] = {
        "age_years": ["" if sample.age_years is None else str(sample.age_years) for sample in samples],
        "sex": [sample.sex or "" for sample in samples],
        "view": [sample.view or "" for sample in samples],
        "site": [sample.site or "" for sample in samples],
    }
    for name in dict.fromkeys(key for sample in samples for key in sample.covariates):
        columns[name] = [sample.covariates.get(name, "").strip() for sample in samples]
    made = ((name, encode(values)) for name, values in columns.items())
    return [Feature(name, "table", matrix) for name, matrix in made if matrix is not None]


def encode(values: Sequence[str]) -> Floats | None:
    """Turn one column of text into float64 [N, k], or None where it is constant or names single images.

    Numbers stay one column, with a second that marks the missing ones; up to 20 words become one column
    each, "missing" among them, because a missing value can give the label away.
    """
    text = pd.Series(list(values), dtype=object)
    missing = (text == "").to_numpy(bool)
    if len(set(values)) < 2:
        return None
    numbers = pd.to_numeric(text.where(~missing), errors="coerce").to_numpy(float)
    if np.isfinite(numbers[~missing]).all():
        filled = np.where(missing, np.median(numbers[~missing]), numbers)
        parts = [part for part in (filled, missing.astype(float)) if np.ptp(part) > 0]
        return np.stack(parts, axis=1)
    levels = sorted(set(values))
    if len(levels) > MAX_LEVELS:
        return None
    first = 1 if len(levels) == 2 else 0  # two words need one column only
    return np.stack([(text == level).to_numpy(float) for level in levels[first:]], axis=1)


# --- statistics -------------------------------------------------------------------------------------------


def patient_folds(y: Bools, groups: Ints, seed: int) -> Folds:
    """Return `FOLDS` pairs of rows, to fit and to score; no patient is in both. `y`: bool [N]; `groups`: int [N]."""
    return list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(y, y, groups))


def out_of_fold(columns: Floats, y: Bools, folds: Folds) -> Floats:
    """Return float64 [N], log-odds of pneumonia from a logistic regression fitted without the own patient."""
    scores = np.zeros(len(y))
    for train, test in folds:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        scores[test] = model.fit(columns[train], y[train]).decision_function(columns[test])
    return scores
