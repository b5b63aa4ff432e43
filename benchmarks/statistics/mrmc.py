"""Several readers, the same cases, two or more ways of reading: Obuchowski and Rockette's analysis of AUROCs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pneumoscope.errors import DataError
from pneumoscope.records import Bools, Estimate, Floats

MODES = ("random readers and cases", "fixed readers", "fixed cases")


@dataclass(frozen=True, slots=True)
class Components:
    """Mean squares, error variance and covariances of AUROCs [tests, readers].

    `cov1`: same reader, other test; `cov2`: same test, other reader; `cov3`: both differ.
    """

    auroc: Floats
    ms_test: float
    ms_reader: float
    ms_interaction: float
    variance: float
    cov1: float
    cov2: float
    cov3: float


@dataclass(frozen=True, slots=True)
class Mrmc:
    """An analysis: `differences` (i, j) -> mean AUROC of test i minus that of j; `p` of no difference at all.

    `statistic` is F with (`df1`, `df2`), chi-square with `df1` where readers are fixed (`df2` infinite).
    """

    mode: str
    components: Components
    statistic: float
    df1: float
    df2: float
    p: float
    error: float
    differences: dict[tuple[int, int], Estimate]

    def noninferior(self, new: int, old: int, margin: float) -> float:
        """Return the one-sided p of test `new` being worse than `old` by `margin` > 0 or more."""
        if not margin > 0:
            raise DataError(f"the margin is {margin}", remedy="give a positive number")
        means = self.components.auroc.mean(axis=1)
        return float(stats.t.sf((means[new] - means[old] + margin) / self.error, self.df2))

    def as_json(self) -> dict[str, Any]:
        """Return plain values, estimates in the form of `metrics.json`."""
        c = self.components
        return {
            "mode": self.mode,
            "auroc": c.auroc,
            "components": {name: getattr(c, name) for name in c.__slots__ if name != "auroc"},
            "statistic": self.statistic,
            "df1": self.df1,
            "df2": self.df2,
            "p": self.p,
            "differences": [{"tests": pair, **e.as_json()} for pair, e in self.differences.items()],
        }


def obuchowski_rockette(y: ArrayLike, scores: ArrayLike, *, mode: str = MODES[0]) -> Mrmc:
    """Compare the AUROCs of tests read by the same readers on the same cases, one case per patient.

    `y`: 0/1 [n]; `scores`: [tests, readers, n], higher is more positive; `mode`: one of `MODES`, to what one
    generalises. Covariances by jackknife over cases. Degrees of freedom: Hillis, Stat Med 2007; 95 % intervals.
    Raises `DataError` for other shapes, fewer than two tests or readers, or fewer than two cases of a class.
    Source: Obuchowski and Rockette, Commun Stat Simul 1995; Hillis et al., Stat Med 2005.
    """
    if mode not in MODES:
        raise DataError(f"{mode!r} is no analysis", remedy=f"use {', '.join(MODES)}")
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(y)
    if values.ndim != 3 or min(values.shape[:2]) < 2 or truth.shape != values.shape[2:]:
        raise DataError(
            f"scores have the shape {values.shape}", remedy="give [tests, readers, cases], two or more of each"
        )
    if not np.isin(truth, (0, 1)).all() or not np.isfinite(values).all() or min(truth.sum(), (1 - truth).sum()) < 2:
        raise DataError("a score or label is missing, or a class has under two cases", remedy="give complete readings")
    c = _components(truth.astype(bool), values)
    tests, readers = values.shape[:2]
    free = float((tests - 1) * (readers - 1))
    extra = max(c.cov2 - c.cov3, 0.0)
    df1 = float(tests - 1)
    if mode == MODES[1]:
        noise, df2 = c.variance - c.cov1 + (readers - 1) * extra, float("inf")
        statistic = df1 * c.ms_test / noise
        p = float(stats.chi2.sf(statistic, df1))
    else:
        noise = c.ms_interaction + (readers * extra if mode == MODES[0] else 0.0)
        df2 = noise**2 / (c.ms_interaction**2 / free) if c.ms_interaction > 0 else float("inf")
        statistic = c.ms_test / noise
        p = float(stats.f.sf(statistic, df1, df2)) if np.isfinite(df2) else float(stats.chi2.sf(statistic * df1, df1))
    error = float(np.sqrt(2 / readers * noise))
    half = float(stats.t.ppf(0.975, df2)) * error
    means = c.auroc.mean(axis=1)
    differences = {
        (i, j): Estimate(float(d := means[i] - means[j]), float(d - half), float(d + half), f"MRMC, {mode}")
        for i in range(tests)
        for j in range(i + 1, tests)
    }
    return Mrmc(mode, c, float(statistic), df1, float(df2), p, error, differences)


def _components(y: Bools, scores: Floats) -> Components:
    tests, readers, n = scores.shape
    area, without = _leave_one_out(y, scores.reshape(-1, n))
    centred = without - without.mean(axis=1, keepdims=True)
    covariance = ((n - 1) / n * centred @ centred.T).reshape(tests, readers, tests, readers)
    auroc = area.reshape(tests, readers)
    same_test, same_reader = np.eye(tests, dtype=bool), np.eye(readers, dtype=bool)

    def mean(test: Bools, reader: Bools) -> float:
        return float(covariance[test[:, None, :, None] & reader[None, :, None, :]].mean())

    grand, by_test, by_reader = auroc.mean(), auroc.mean(axis=1), auroc.mean(axis=0)
    rest = auroc - by_test[:, None] - by_reader[None] + grand
    return Components(
        auroc,
        readers * float(((by_test - grand) ** 2).sum()) / (tests - 1),
        tests * float(((by_reader - grand) ** 2).sum()) / (readers - 1),
        float((rest**2).sum()) / ((tests - 1) * (readers - 1)),
        mean(same_test, same_reader),
        mean(~same_test, same_reader),
        mean(same_test, ~same_reader),
        mean(~same_test, ~same_reader),
    )


def _leave_one_out(y: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """Return AUROCs [k] of scores [k, n], and [k, n] without each case in turn."""
    m, n = int(y.sum()), int((~y).sum())
    ranks = stats.rankdata(scores, axis=1)
    place = np.empty_like(ranks)
    place[:, y] = (ranks[:, y] - stats.rankdata(scores[:, y], axis=1)) / n
    place[:, ~y] = 1 - (ranks[:, ~y] - stats.rankdata(scores[:, ~y], axis=1)) / m
    area = place[:, y].mean(axis=1)
    count = np.where(y, m, n)
    return area, (count * area[:, None] - place) / (count - 1)
