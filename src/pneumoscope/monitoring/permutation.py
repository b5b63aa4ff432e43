"""The max-T permutation test of whole patients between a reference and a window, with margins.

Under the null that patients of both are exchangeable the p value is exact, whatever the correlation of columns and of
the images of a patient (Pitman 1937; Westfall and Young 1993). The statistic is (|difference| - margin) over its
standard error, by patient, as the reference's side alone has it: a few wild images of a window do not hide behind the
spread that they make themselves. A true difference within the margin exceeds it no oftener than chance exceeds the
whole. A patient of both, whom pseudonyms would tell, counts as two, which makes the test milder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.records import Floats, Ints

FIRST = 199  # permutations after which a window that is far from an alarm is let go
_LET_GO = 0.1
_RARE = (
    0.5  # images, so that no spread is 0; 3 would make p exact where events are rare, and finds 5 % turned less often
)
_MOST = 20_000
_BLOCK = 4_000_000  # numbers of a block of permutations


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Over patients: `total`, `count`: float32 [P, m], the sum of each column and how many images have it."""

    total: NDArray[np.float32]
    count: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class MaxT:
    """`p`: of any column. Per column [m]: `t`, `adjusted` p, the means `reference` and `window`, NaN where absent."""

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
    both = _Both(reference, window)
    then, now, t = (row[0] for row in both.compared(both.as_they_are, margins))
    result = _judged(then, now, t, both.draws(FIRST, rng))
    needed = min(_MOST, max(999, int(np.ceil(20 / alpha))))
    if result.p > _LET_GO or needed <= FIRST:
        return result
    return _judged(then, now, t, both.draws(needed, rng))


def _judged(then: Floats, now: Floats, t: Floats, largest: Floats) -> MaxT:
    """Return the result; `largest`: of each permutation, the largest |t| over columns."""
    largest.sort()
    at_least = largest.size - np.searchsorted(largest, t - 1e-6)
    adjusted = np.where(t > 0, (1 + at_least) / (1 + largest.size), 1.0)
    return MaxT(float(adjusted.min(initial=1.0)), t, adjusted, then, now, largest.size)


class _Both:
    """The patients of both sides, and the sums that permutations divide anew."""

    def __init__(self, reference: Sums, window: Sums) -> None:
        total = np.concatenate([reference.total, window.total])
        every = np.concatenate([reference.count, window.count])
        self.n_reference, self.n_window = len(reference.total), len(window.total)
        self.m = total.shape[1]
        self.products = np.concatenate([total, total * every, total**2], axis=1)
        # Columns that the same images have share their counts.
        first: dict[bytes, int] = {}
        self.pattern = np.array([first.setdefault(column.tobytes(), len(first)) for column in every.T], np.int64)
        distinct = every[:, np.unique(self.pattern, return_index=True)[1]]
        self.counts = np.concatenate([distinct, distinct**2], axis=1)
        self.all_products = self.products.sum(axis=0, dtype=np.float64)
        self.all_counts = self.counts.sum(axis=0, dtype=np.float64)

    @property
    def as_they_are(self) -> NDArray[np.float32]:
        """The division that was observed, float32 [1, patients], 1 for those of the window."""
        return (np.arange(self.n_reference + self.n_window) >= self.n_reference).astype(np.float32)[None]

    def draws(self, times: int, rng: np.random.Generator) -> Floats:
        """Return the largest |t| over columns of so many permutations of patients."""
        patients, blocks = self.n_reference + self.n_window, []
        step = max(1, _BLOCK // (patients + 3 * self.m))
        nothing = np.zeros(self.m)
        for start in range(0, times, step):
            size = min(step, times - start)
            keys = rng.random((size, patients), np.float32)
            edge = np.partition(keys, self.n_window - 1, axis=1)[:, self.n_window - 1 : self.n_window]
            blocks.append(self.compared((keys <= edge).astype(np.float32), nothing)[2].max(axis=1, initial=0.0))
        return np.concatenate(blocks)

    def compared(self, chosen: NDArray[np.float32], margins: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the means of the others and of the chosen patients, and t, float64 [b, m].

        Means are NaN where nobody has the column, and t is 0 there.
        """
        inside, among = (chosen @ self.products).astype(np.float64), (chosen @ self.counts).astype(np.float64)
        total, weighted, square = np.split(self.all_products - inside, 3, axis=1)
        count, count_square = np.split(self.all_counts - among, 2, axis=1)
        count, count_square = count[:, self.pattern], count_square[:, self.pattern]
        in_window = among[:, : among.shape[1] // 2][:, self.pattern]
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is the NaN that is promised
            then, now = total / count, inside[:, : self.m] / in_window
            # By patient: the sum of (S - N mean) squared, and some images more: of rare events few divisions show any.
            residual = np.maximum(square - 2 * then * weighted + then**2 * count_square, 0.0) + _RARE
            error = np.sqrt(residual / count**2 * (1 + count / in_window))
            t = np.maximum(np.abs(now - then) - margins, 0.0) / error
        return then, now, np.nan_to_num(t, nan=0.0, posinf=0.0)
