"""How far the label can be predicted without the lungs: from file, table, framing and acquisition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumoscope.data.acquisition import (
    CLUSTERS,
    Boxes,
    exposure,
    framing,
    machines,
    overlays,
    read_squashed,
    texture,
)
from pneumoscope.data.scan import Scan
from pneumoscope.images.preparation import Pixels
from pneumoscope.records import NORMAL, PNEUMONIA, Bools, Estimate, Floats, Ints, Progress
from pneumoscope.statistics.auc import auroc_interval

LIMIT = 0.60  # flagged where the whole interval lies above it, or below one minus it
MIN_PATIENTS = 10  # per class
MIN_PATIENTS_OF_TREES = 50  # per class; boosted trees on fewer say nothing
FOLDS = 5
MAX_LEVELS = 20
MOST_IMAGES = 2000  # that are measured once more, for framing and acquisition

Folds = Sequence[tuple[Ints, Ints]]


@dataclass(frozen=True, slots=True)
class Feature:
    """One property that is no finding in the lungs; `columns`: float64 [N, k], finite; `origin`: file, table, image."""

    name: str
    origin: str
    columns: Floats


def shortcuts(
    scan: Scan, *, seed: int = 0, boxes: Boxes | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Return the AUROC for pneumonia of every feature, alone and together, over the labelled images.

    One record per feature: `name`, `origin` (`file`, `table` or `image`), `auroc` (value, ci95, method), `n`,
    `flagged`, and of one number of the images the `medians` of both classes. A feature with one column is used as
    it is, so an AUROC below .5 says that it is lower in pneumonia. Several columns go through a regression, those of
    images through boosted trees; neither ever sees the patient it scores. Features of images need 50 patients of each
    class and are measured in 2,000 images at most, drawn at random; `boxes` finds the lungs in them. Empty where a
    class has fewer than ten patients.
    """
    table = scan.table
    rows = np.flatnonzero(scan.readable & table["label"].notna().to_numpy(bool))
    if not _enough(table, rows):
        return []
    features = [*_file_features(table.iloc[rows]), *_table_features(scan, rows)]
    for origin, name in (("file", "all file properties together"), ("table", "all columns together")):
        some = [feature for feature in features if feature.origin == origin]
        if len(some) > 1:
            features.append(Feature(name, origin, np.hstack([feature.columns for feature in some])))
    y, groups = _labels(table, rows)
    folds = patient_folds(y, groups, seed)
    records = [_record(feature, y, groups, folds, seed) for feature in features]
    drawn = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_IMAGES])
    if not _enough(table, drawn, MIN_PATIENTS_OF_TREES):
        return records
    images, indices = read_squashed([scan.manifest.samples[row] for row in drawn], progress)
    y, groups = _labels(table, drawn[indices])
    folds = patient_folds(y, groups, seed)
    return records + [_record(feature, y, groups, folds, seed) for feature in image_features(images, boxes, seed)]


def _enough(table: pd.DataFrame, rows: Ints, least: int = MIN_PATIENTS) -> bool:
    """Say whether both classes have enough patients among these rows."""
    patients = table.iloc[rows].groupby("label")["patient_id"].nunique()
    return len(patients) == 2 and int(patients.min()) >= least


def _labels(table: pd.DataFrame, rows: Ints) -> tuple[Bools, Ints]:
    """Return which of these rows are of pneumonia, bool [n], and whose they are, int [n]."""
    y = (table["label"].iloc[rows] == PNEUMONIA).to_numpy(bool)
    return y, np.unique(table["patient_id"].iloc[rows].to_numpy(str), return_inverse=True)[1]


def _record(feature: Feature, y: Bools, groups: Ints, folds: Folds, seed: int) -> dict[str, Any]:
    fitted = feature.columns.shape[1] > 1
    trees = feature.origin == "image"
    scores = out_of_fold(feature.columns, y, folds, trees=trees) if fitted else feature.columns[:, 0]
    estimate = auroc_interval(y, scores, groups, seed=seed)
    if fitted:
        kind = "boosted trees" if trees else "logistic regression"
        method = f"{kind}, {FOLDS} folds by patient; {estimate.method}"
        estimate = Estimate(estimate.value, estimate.low, estimate.high, method)
    flagged = estimate.low > LIMIT or estimate.high < 1 - LIMIT
    record: dict[str, Any] = {
        "name": feature.name,
        "origin": feature.origin,
        "auroc": estimate.as_json(),
        "n": len(y),
        "flagged": bool(flagged),
    }
    if trees and not fitted:
        record["medians"] = {name: float(np.median(scores[y == ill])) for name, ill in ((NORMAL, 0), (PNEUMONIA, 1))}
    return record


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


def image_features(images: Pixels, boxes: Boxes | None, seed: int) -> list[Feature]:
    """Return framing, exposure, texture, overlays and machine of images uint8 [n, 224, 224], alone and together."""
    grain, marks = texture(images), overlays(images)
    cluster = machines(grain, marks, seed=seed) if len(images) >= CLUSTERS else np.zeros(len(images), np.int64)
    groups: dict[str, dict[str, Floats]] = {
        "framing of the lungs": {} if boxes is None else framing(boxes(images)),
        "exposure and sharpness": exposure(images),
        "overlays": marks,
    }
    single = {name: values for group in groups.values() for name, values in group.items()}
    several = {name: np.column_stack([*group.values()]) for name, group in groups.items() if group}
    several["noise spectrum"] = grain
    several["machine cluster"] = np.eye(cluster.max() + 1)[cluster]
    several["framing and acquisition together"] = np.hstack([*several.values()])
    columns = {name: values[:, None] for name, values in single.items()} | several
    return [Feature(name, "image", values) for name, values in columns.items() if np.ptp(values, axis=0).any()]


# --- statistics -------------------------------------------------------------------------------------------


def patient_folds(y: Bools, groups: Ints, seed: int) -> Folds:
    """Return `FOLDS` pairs of rows, to fit and to score; no patient is in both. `y`: bool [N]; `groups`: int [N]."""
    return list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(y, y, groups))


def out_of_fold(columns: Floats, y: Bools, folds: Folds, *, trees: bool = False) -> Floats:
    """Return float64 [N], log-odds of pneumonia from a regression, or boosted trees, fitted without the own patient."""
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    if trees:
        model = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=12, random_state=0)
    scores = np.zeros(len(y))
    for train, test in folds:
        scores[test] = model.fit(columns[train], y[train]).decision_function(columns[test])
    return scores
