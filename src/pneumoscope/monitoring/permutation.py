"""The max-T permutation test of whole patients between a reference and a window, with margins.

Under the null that patients of both are exchangeable the p value is exact, whatever the correlation of columns and of the
images of a patient (Westfall and Young 1993; Pitman 1937). With margins the statistic is (|difference| - margin) over the
standard deviation of the permuted differences: a true difference within the margin exceeds it no oftener than chance
alone exceeds the whole. A patient of both, whom pseudonyms would tell, counts as two: that makes the test milder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.records import Floats, Ints

FIRST = 199  # permutations after which a window that is far from an alarm is let go
_LET_GO = 0.1
_MOST = 20_000
_BLOCK = 4_000_000  # numbers of a block of permutations


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Over patients: `total`, `count`: float32 [P, m], the sum of each column and how many images have it."""

    total: NDArray[np.float32]
    count: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class MaxT:
    """`p`: of any column. Per column [m]: `t`, `adjusted` p, the means `reference` and `window`; NaN where one lacks it."""

    p: float
    t: Floats
    adjusted: Floats
    reference: Floats
    window: Floats
    permutations: int


def sums_of(values: Floats, patients: Ints) -> Sums:
    """Return the sums over patients, in the order of their codes; `values`: [n, m], NaN where absent."""
    codes = np.unique(patients, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    present = np.isfinite(values)
    filled = np.where(present, values, 0.0)
    total = np.add.reduceat(filled[order], starts, axis=0)
    count = np.add.reduceat(present[order].astype(np.float64), starts, axis=0)
    return Sums(total.astype(np.float32), count.astype(np.float32))


def permuted(reference: Sums, window: Sums, margins: Floats, alpha: float, rng: np.random.Generator) -> MaxT:
    """Test whether a window is like the reference, within the margins.

    `alpha`: the level that the caller will compare p with; permutations suffice for it. A window whose first 199
    permutations give p > .1 is let go with that p: this can only lower the false alarms.
    """
    total = np.concatenate([reference.total, window.total])
    count, pattern = np.unique(np.concatenate([reference.count, window.count]), axis=1, return_inverse=True)
    everything = (total.sum(axis=0, dtype=np.float64), count.sum(axis=0, dtype=np.float64))
    n_window = len(window.total)
    seen = np.zeros((1, len(total)), np.float32)
    seen[0, len(reference.total) :] = 1
    now, then = _means(seen, total, count, pattern, everything)
    draws = _draw(FIRST, n_window, total, count, pattern, everything, rng)
    result = _judged(now[0], then[0], draws, margins)
    needed = min(_MOST, max(999, int(np.ceil(20 / alpha))))
    if result.p > _LET_GO or needed <= FIRST:
        return result
    more = _draw(needed, n_window, total, count, pattern, everything, rng)
    return _judged(now[0], then[0], more, margins)


def _judged(now: Floats, then: Floats, draws: Floats, margins: Floats) -> MaxT:
    difference = now - then
    usable = np.isfinite(difference) & np.isfinite(draws).all(axis=0)
    spread = np.full(difference.size, np.nan)
    spread[usable] = np.sqrt((draws[:, usable] ** 2).mean(axis=0))
    usable &= spread > 1e-9
    t = np.full(difference.size, np.nan)
    t[usable] = np.maximum(np.abs(difference[usable]) - margins[usable], 0.0) / spread[usable]
    if not usable.any():
        return MaxT(1.0, t, np.ones(difference.size), then, now, len(draws))
    largest = (np.abs(draws[:, usable]) / spread[usable]).max(axis=1)
    largest.sort()
    adjusted = np.ones(difference.size)
    at_least = largest.size - np.searchsorted(largest, t[usable] - 1e-9)
    adjusted[usable] = np.where(t[usable] > 0, (1 + at_least) / (1 + largest.size), 1.0)
    return MaxT(float(adjusted.min()), t, adjusted, then, now, len(draws))


def _draw(
    times: int,
    n_window: int,
    total: NDArray[np.float32],
    count: NDArray[np.float32],
    pattern: Ints,
    everything: tuple[Floats, Floats],
    rng: np.random.Generator,
) -> Floats:
    """Return the permuted differences, float64 [times, m]."""
    patients, blocks = len(total), []
    step = max(1, _BLOCK // patients)
    for start in range(0, times, step):
        size = min(step, times - start)
        keys = rng.random((size, patients), np.float32)
        edge = np.partition(keys, n_window - 1, axis=1)[:, n_window - 1 : n_window]
        now, then = _means((keys <= edge).astype(np.float32), total, count, pattern, everything)
        blocks.append(now - then)
    return np.concatenate(blocks)


def _means(
    chosen: NDArray[np.float32],
    total: NDArray[np.float32],
    count: NDArray[np.float32],
    pattern: Ints,
    everything: tuple[Floats, Floats],
) -> tuple[Floats, Floats]:
    """Return the means of the chosen patients and of the others, float64 [b, m]; NaN where nobody has the column."""
    inside = (chosen @ total).astype(np.float64)
    among = (chosen @ count).astype(np.float64)
    sums, counts = everything
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is the NaN that is promised
        now = inside / among[:, pattern]
        then = (sums - inside) / (counts - among)[:, pattern]
    return now, then
