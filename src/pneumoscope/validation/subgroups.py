"""Does it hold for everyone: every group and pair of groups against the rest, and what prevalence explains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from pneumoscope.records import Bools, Estimate, Floats, Ints
from pneumoscope.statistics.auc import ranking, weighted_areas
from pneumoscope.statistics.bootstrap import Statistic, interval, replicate
from pneumoscope.statistics.cohort import Cohort, cohort
from pneumoscope.statistics.comparison import holm
from pneumoscope.statistics.proportions import Z95, proportion
from pneumoscope.validation.study import AGE, Study, counts, figures

LEAST = 50  # images with pneumonia under which a cell is not shown
LIMIT = 0.05  # a gap beyond this, with its whole interval, is flagged
ALPHA = 0.05  # of all gaps together, by Holm
GAPS = ("recall", "specificity", "auroc", "mean_error", "prevalence")
MATCHED = GAPS[:4]
_NEEDS = {"recall": (True,), "specificity": (False,), "auroc": (True, False)}

Cell = tuple[tuple[str, str], ...]


def subgroups(study: Study, names: Sequence[str], *, seed: int, resamples: int = 1000) -> dict[str, Any]:
    """Return figures of every cell, and its gaps to the rest with patient-bootstrap intervals and Holm's p.

    `names`: columns of the study; cells are their levels and those of each two columns. A gap is the cell's figure
    less the rest's: sensitivity, specificity, AUROC, mean error (stated less observed) and prevalence, at the
    frozen threshold. `matched`: the rest weighted to the cell's shares of pneumonia and age bands. A cell or
    rest with fewer than `LEAST` images with pneumonia is suppressed, a figure that needs normal ones likewise.
    Of a column with two values one is compared. Flagged: the whole interval beyond `LIMIT` and p after Holm under
    `ALPHA`; `explained_by` names the column of a pair that is flagged for the same figure alone.
    """
    cells, gaps, left_out = [], [], []
    c = cohort(study.y, study.p, study.patients)
    for cell in _cells(study, names):
        mask = _mask(study, cell)
        inside = study.take(mask)
        entry = {"group": dict(cell), **counts(inside)}
        if reason := _too_few(study, mask):
            left_out.append({**entry, "suppressed": reason})
            continue
        cells.append({**entry, "metrics": figures(inside, seed=seed, resamples=resamples)["metrics"]})
        if not _mirrored(study, cell):
            gaps += _gaps(study, c, cell, mask, seed, resamples)
    for gap, p in zip(gaps, holm([gap["p"] for gap in gaps]) if gaps else [], strict=True):
        gap["p_holm"] = float(p)
        low, high = gap["gap"]["ci95"]
        gap["flagged"] = bool(max(low, -high) > LIMIT and p < ALPHA)
    for gap in gaps:
        gap["explained_by"] = _explained_by(gap, gaps)
    unusable = {
        name: "not recorded" if not study.levels(name) else f"one value only: {study.levels(name)[0]}"
        for name in names
        if len(study.levels(name)) < 2
    }
    return {
        "columns": list(names),
        "unusable": unusable,
        "not_recorded": {name: int((study.columns[name] == "").sum()) for name in names},
        "cells": cells,
        "suppressed": left_out,
        "gaps": gaps,
        "rules": {"least_positives": LEAST, "limit": LIMIT, "alpha": ALPHA, "tests": len(gaps)},
    }


def _cells(study: Study, names: Sequence[str]) -> Iterator[Cell]:
    usable = [name for name in names if len(study.levels(name)) > 1]
    for name in usable:
        yield from (((name, level),) for level in study.levels(name))
    for a, b in combinations(usable, 2):
        for x in study.levels(a):
            for y in study.levels(b):
                cell = ((a, x), (b, y))
                if _mask(study, cell).any():
                    yield cell


def _mask(study: Study, cell: Cell) -> Bools:
    mask = np.ones(study.n, dtype=bool)
    for name, level in cell:
        mask &= study.columns[name] == level
    return mask


def _mirrored(study: Study, cell: Cell) -> bool:
    """Say whether the cell is the second of two that hold all images: its gaps are those of the first, reversed."""
    (name, level), *more = cell
    levels = study.levels(name)
    return not more and len(levels) == 2 and level == levels[1] and bool((study.columns[name] != "").all())


def _explained_by(gap: dict[str, Any], gaps: list[dict[str, Any]]) -> str | None:
    """Return the single column of a pair in which the same figure is flagged already, None where there is none."""
    if len(gap["group"]) < 2:
        return None
    alone = {
        next(iter(g["group"])) for g in gaps if len(g["group"]) == 1 and g["flagged"] and g["figure"] == gap["figure"]
    }
    return next((name for name in gap["group"] if name in alone), None)


def _too_few(study: Study, mask: Bools) -> str:
    inside, outside = int((study.y & mask).sum()), int((study.y & ~mask).sum())
    if inside < LEAST:
        return f"{inside} images with pneumonia, {LEAST} are needed"
    if outside < LEAST:
        return f"the rest has {outside} images with pneumonia, {LEAST} are needed to compare with"
    return ""


def _gaps(study: Study, c: Cohort, cell: Cell, mask: Bools, seed: int, resamples: int) -> list[dict[str, Any]]:
    weights = _matching(study, mask, [name for name, _ in cell])
    plain = _statistic(c, study.threshold, mask, np.ones(study.n))
    level = _statistic(c, study.threshold, mask, weights)
    once = np.ones((1, c.n_patients), dtype=np.int64)
    values, matched = plain(once)[0].reshape(2, -1), level(once)[0].reshape(2, -1)
    draws = replicate(plain, c, seed=seed, resamples=resamples).reshape(resamples, 2, -1)
    again = replicate(level, c, seed=seed, resamples=resamples).reshape(resamples, 2, -1)
    gaps = []
    for i, name in enumerate(GAPS):
        if any(
            min((mask & (study.y == k)).sum(), (~mask & (study.y == k)).sum()) < LEAST for k in _NEEDS.get(name, ())
        ):
            continue
        gap = interval(float(values[0, i] - values[1, i]), draws[:, 0, i] - draws[:, 1, i])
        gap = _as_wide_as_newcombe(study, c, mask, name, gap)
        # The side towards no gap: near 0 and 1 the interval is lopsided, and the short side is no evidence.
        error = (gap.value - gap.low if gap.value > 0 else gap.high - gap.value) / Z95
        entry = {
            "group": dict(cell),
            "figure": name,
            "here": float(values[0, i]),
            "rest": float(values[1, i]),
            "gap": gap.as_json(),
            "p": float(2 * stats.norm.sf(abs(gap.value) / error)) if error > 0 else float("nan"),
        }
        if name in MATCHED:
            difference = interval(float(matched[0, i] - matched[1, i]), again[:, 0, i] - again[:, 1, i])
            entry["matched"] = difference.as_json()
        gaps.append(entry)
    return gaps


def _matching(study: Study, mask: Bools, own: Sequence[str]) -> Floats:
    """Return weights [n] that give the rest the cell's shares of label and age band; 0 where the cell has none."""
    bands = study.columns.get(AGE)
    key = study.y.astype(int).astype(str)
    if bands is not None and AGE not in own:
        key = np.char.add(np.char.add(key, "|"), bands)
    _, stratum = np.unique(key, return_inverse=True)
    inside = np.bincount(stratum[mask], minlength=stratum.max() + 1) / mask.sum()
    outside = np.bincount(stratum[~mask], minlength=stratum.max() + 1) / max(1, (~mask).sum())
    ratio = np.divide(inside, outside, out=np.zeros_like(inside), where=outside > 0)
    # Strata that the rest lacks are left out of the cell too.
    return np.asarray(np.where(mask, (outside > 0)[stratum], ratio[stratum]), dtype=np.float64)


def _statistic(c: Cohort, threshold: float, mask: Bools, weights: Floats) -> Statistic:
    """Return the function from patient weights [b, k] to the figures `GAPS` of the cell and of the rest [b, 10]."""
    called = c.score >= threshold
    sides = []
    for side in (mask, ~mask):
        rows = np.flatnonzero(side)
        y, w = c.y[rows], weights[rows]
        columns = [w * y, w * ~y, w * (y & called[rows]), w * (~y & ~called[rows]), w * (c.score[rows] - y)]
        sums = np.stack([np.bincount(c.codes[rows], column, c.n_patients) for column in columns], axis=1)
        sides.append((rows, ranking(c.score[rows]), y, w, sums))

    def statistic(by_patient: Ints) -> Floats:
        estimates = []
        for rows, rank, y, w, sums in sides:
            positives, negatives, hits, spared, error = (by_patient.astype(np.float64) @ sums).T
            area, _ = weighted_areas(rank, y, by_patient[:, c.codes[rows]] * w)
            n = positives + negatives
            with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is the NaN that is dropped
                estimates += [hits / positives, spared / negatives, area, error / n, positives / n]
        return np.stack(estimates, axis=1)

    return statistic


def _as_wide_as_newcombe(study: Study, c: Cohort, mask: Bools, name: str, gap: Estimate) -> Estimate:
    """Return the gap of two proportions at least as wide as the hybrid score interval (Newcombe, Stat Med 1998)."""
    right = (c.score >= study.threshold) == c.y
    among = {"recall": (right, c.y), "specificity": (right, ~c.y), "prevalence": (c.y, np.ones(c.n, dtype=bool))}
    if name not in among:
        return gap
    success, rows = among[name]
    a, b = (proportion(success[rows & side], c.codes[rows & side]) for side in (mask, ~mask))
    low = gap.value - float(np.hypot(a.value - a.low, b.high - b.value))
    high = gap.value + float(np.hypot(a.high - a.value, b.value - b.low))
    method = f"{gap.method}; Newcombe's where wider"
    return Estimate(gap.value, float(np.fmin(low, gap.low)), float(np.fmax(high, gap.high)), method)
