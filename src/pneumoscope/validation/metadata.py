"""How far metadata predict the label, and the AUROC among images alike in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pneumoscope.data.checks.shortcuts import LIMIT, MIN_PATIENTS, Folds, encode, out_of_fold, patient_folds
from pneumoscope.records import Bools, Floats, Ints
from pneumoscope.statistics.auc import auroc_interval, ranking, weighted_areas
from pneumoscope.statistics.bootstrap import Statistic, interval, replicate, without_false_certainty
from pneumoscope.statistics.cohort import Cohort, cohort
from pneumoscope.validation.study import SITE, Study, Words

DROP = 0.03  # an AUROC that falls by more within a stratum is flagged
_NAMES_IT = 0.98
_TENTHS = 10


def metadata(study: Study, *, seed: int, resamples: int = 1000) -> dict[str, Any]:
    """Return the metadata-only and the within-stratum AUROC of every column, and of all columns together.

    Metadata only: a logistic regression that never sees the patient it scores, also within each site; numbers enter
    as they are and cut into tenths, so that curved relations count too. Flagged where the interval lies
    above `LIMIT`, or below 1 - `LIMIT`. Within a stratum: pairs of a pneumonia and a normal image that agree in the
    column; flagged where it differs from the headline by more than `DROP`, with an interval that leaves out 0.
    """
    c = cohort(study.y, study.p, study.patients)
    return {
        "alone": _alone(study, seed),
        "by_site": _by_site(study, seed),
        "within": [
            stratified
            for name in study.columns
            if len(study.levels(name)) > 1 and (stratified := _within(study, c, name, seed, resamples))
        ],
        "rules": {"limit": LIMIT, "drop": DROP},
    }


def _alone(study: Study, seed: int) -> list[dict[str, Any]]:
    _, groups = np.unique(study.patients, return_inverse=True)
    if min(np.unique(groups[study.y]).size, np.unique(groups[~study.y]).size) < MIN_PATIENTS:
        return []
    encoded = {name: m for name, values in study.raw.items() if (m := _columns(values)) is not None}
    folds = patient_folds(study.y, groups, seed)
    entries = [_entry(name, matrix, study.y, groups, folds, seed) for name, matrix in encoded.items()]
    # A column that is the label under another name would hide the others.
    others = [matrix for matrix, entry in zip(encoded.values(), entries, strict=True) if not entry["names_the_label"]]
    if len(others) > 1:
        entries.append(_entry("all together", np.hstack(others), study.y, groups, folds, seed))
    return entries


def _columns(values: Words) -> Floats | None:
    """Return a column as numbers [n, k], None where it is constant or names single images."""
    matrix = encode(values.tolist())
    if matrix is None or np.unique(matrix[:, 0]).size <= _TENTHS:
        return matrix
    tenth = np.searchsorted(np.unique(np.quantile(matrix[:, 0], np.linspace(0, 1, _TENTHS + 1)[1:-1])), matrix[:, 0])
    return np.hstack([matrix, (tenth[:, None] == np.unique(tenth)[1:]).astype(np.float64)])


def _entry(name: str, columns: Floats, y: Bools, groups: Ints, folds: Folds, seed: int) -> dict[str, Any]:
    fitted = columns.shape[1] > 1
    score = out_of_fold(columns, y, folds) if fitted else columns[:, 0]
    estimate = auroc_interval(y, score, groups, seed=seed)
    return {
        "column": name,
        "auroc": estimate.as_json(),
        "flagged": bool(estimate.low > LIMIT or estimate.high < 1 - LIMIT),
        "names_the_label": bool(max(estimate.value, 1 - estimate.value) > _NAMES_IT),
    }


def _by_site(study: Study, seed: int) -> list[dict[str, Any]]:
    if len(study.levels(SITE)) < 2:
        return []
    return [
        {"site": level, **entry}
        for level in study.levels(SITE)
        for entry in _alone(study.take(study.columns[SITE] == level), seed)
    ]


def _within(study: Study, c: Cohort, name: str, seed: int, resamples: int) -> dict[str, Any] | None:
    column = study.columns[name]
    strata = [
        rows for level in study.levels(name) if 0 < study.y[rows := np.flatnonzero(column == level)].sum() < rows.size
    ]
    if not strata:
        return None
    statistic = _statistic(c, strata)
    value, headline = statistic(np.ones((1, c.n_patients), dtype=np.int64))[0]
    draws = replicate(statistic, c, seed=seed, resamples=resamples)
    drop = interval(float(headline - value), draws[:, 1] - draws[:, 0])
    return {
        "column": name,
        "strata": len(strata),
        "n": int(sum(rows.size for rows in strata)),
        "auroc": without_false_certainty(interval(float(value), draws[:, 0])).as_json(),
        "headline": float(headline),
        "drop": drop.as_json(),
        "flagged": bool(abs(drop.value) > DROP and max(drop.low, -drop.high) > 0),
    }


def _statistic(c: Cohort, strata: list[Ints]) -> Statistic:
    """Return the function from patient weights [b, k] to the AUROC within strata and over all their images [b, 2]."""
    everyone = np.concatenate(strata)
    ranks = [ranking(c.score[rows]) for rows in strata]
    whole = ranking(c.score[everyone])

    def statistic(weights: Ints) -> Floats:
        wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for rows, rank in zip(strata, ranks, strict=True):
            y, w = c.y[rows], weights[:, c.codes[rows]]
            n = (w * y).sum(axis=1) * (w * ~y).sum(axis=1)
            wins += np.nan_to_num(weighted_areas(rank, y, w)[0]) * n
            pairs += n
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is the NaN that is dropped
            within = wins / pairs
        return np.stack([within, weighted_areas(whole, c.y[everyone], weights[:, c.codes[everyone]])[0]], axis=1)

    return statistic
