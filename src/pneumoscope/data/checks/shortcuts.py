"""How far the label can be predicted without the lungs: from size, brightness and the table's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumoscope.data.scan import Scan
from pneumoscope.records import PNEUMONIA, Estimate

LIMIT = 0.60  # flagged where the whole interval lies above it, or below one minus it
MIN_PATIENTS = 10  # per class
RESAMPLES = 1000
FOLDS = 5
MAX_LEVELS = 20
Z95 = 1.959964

Floats = NDArray[np.float64]
_CHUNK = 50


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
    return [_record(feature, y, groups, seed) for feature in features]


def _record(feature: Feature, y: NDArray[np.bool_], groups: NDArray[np.int64], seed: int) -> dict[str, Any]:
    fitted = feature.columns.shape[1] > 1
    scores = out_of_fold(feature.columns, y, groups, seed=seed) if fitted else feature.columns[:, 0]
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


def _table_features(scan: Scan, rows: NDArray[np.int64]) -> list[Feature]:
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


def out_of_fold(
    columns: Floats, y: NDArray[np.bool_], groups: NDArray[np.int64], *, seed: int, folds: int = FOLDS
) -> Floats:
    """Return float64 [N], log-odds of pneumonia from a logistic regression fitted without the own patient."""
    scores = np.zeros(len(y))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(columns, y, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        scores[test] = model.fit(columns[train], y[train]).decision_function(columns[test])
    return scores


def auroc_interval(
    y: NDArray[np.bool_], scores: Floats, groups: NDArray[np.int64], *, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Return the AUROC with the wider of two 95 % intervals: bootstrap over patients, and Newcombe's.

    A bootstrap collapses to a point where the classes separate fully, and Newcombe's interval (with the
    number of patients as its sample size) does not; it cannot see that images of a patient are alike.

    Args:
        y: bool [N], true for pneumonia.
        scores: float64 [N], finite.
        groups: int [N] in 0..G-1, the patient of each image.
        seed: of the bootstrap.
        resamples: how many times the patients are drawn.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(groups.max()) + 1
    values: list[Floats] = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=size)
        values.append(weighted_auroc(y, scores, drawn[:, groups].astype(np.float64)))
    low, high = np.nanpercentile(np.concatenate(values), (2.5, 97.5))
    value = float(weighted_auroc(y, scores, np.ones((1, len(y))))[0])
    by_score = newcombe_interval(value, len(np.unique(groups[y])), len(np.unique(groups[~y])))
    return Estimate(
        value,
        min(float(low), by_score[0]),
        max(float(high), by_score[1]),
        f"wider of Newcombe's interval and a bootstrap over patients ({resamples} resamples)",
    )


def newcombe_interval(auroc: float, n_positive: int, n_negative: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % score interval of an AUROC, of positive width at 0 and 1 too.

    The ends solve |A - auroc| = 1.96 sqrt(V(A)) with Hanley and McNeil's variance (Radiology 1982) at the
    mean of the two sample sizes: method 5 of Newcombe, Statistics in Medicine 2006;25:559-573.
    """
    n = (n_positive + n_negative) / 2

    def excess(area: float) -> float:
        spread = 1 + (n - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        variance = area * (1 - area) * spread / (n_positive * n_negative)
        return (area - auroc) ** 2 - Z95**2 * variance

    tiny = 1e-9  # at 0 and 1 the point itself is the other, trivial root
    low = 0.0 if auroc <= 0 else float(brentq(excess, 0.0, min(auroc, 1 - tiny)))
    high = 1.0 if auroc >= 1 else float(brentq(excess, max(auroc, tiny), 1.0))
    return low, high


def weighted_auroc(y: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Return float64 [B], the AUROC under B sets of weights [B, N]; NaN where a class has no weight.

    The Mann-Whitney form: the share of (pneumonia, normal) pairs in which pneumonia scores higher, ties
    counting half.
    """
    order = np.argsort(scores, kind="stable")
    tied = rankdata(scores[order], method="dense").astype(np.int64) - 1
    starts = np.flatnonzero(np.diff(tied, prepend=-1))
    positive = np.add.reduceat(weights[:, order] * y[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * ~y[order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    result: Floats = np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
    return result
