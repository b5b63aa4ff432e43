"""Windows against the reference: all streams at once, patients permuted, alpha spent over the calendar.

Finds what is small or slow, because the reference stays as it is; the bets beside it find at once what is abrupt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from pneumoscope.monitoring.detector import Budget, Detection, stamp
from pneumoscope.monitoring.permutation import MaxT, permuted, sums_of
from pneumoscope.monitoring.reference import LARGEST_SHARE, Reference
from pneumoscope.monitoring.stream import Rows, joined
from pneumoscope.monitoring.streams import ACQUISITION, values_of

WEEK = np.timedelta64(7, "D")
YEAR = np.timedelta64(365, "D")
LEAST = 50  # images of a window that a week closes
KEPT = 520  # windows of which the figures are kept


class Windows:
    """Consecutive windows of `Budget.window` images, or of a week with at least 50."""

    name = "windows"

    def __init__(self, reference: Reference, budget: Budget, state: Mapping[str, Any] | None = None) -> None:
        self.reference, self.budget = reference, budget
        stored: Mapping[str, Any] = state or {"after": 0, "history": []}
        self._after = int(stored["after"])
        self.history: list[dict[str, Any]] = [dict(window) for window in stored["history"]]
        self._open: Rows | None = None

    @property
    def after(self) -> int:
        """The last row of the last closed window: an open one is read again."""
        return self._after

    def state(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"after": self._after, "history": self.history}

    def step(self, rows: Rows) -> list[Detection]:
        """Take rows, and judge the windows that they close."""
        seen = self._after if self._open is None or not len(self._open) else int(self._open.row[-1])
        new = rows.take(rows.row > seen)
        waiting = new if self._open is None else joined([self._open, new])
        found = []
        while (end := self._end(waiting)) is not None:
            by = int(waiting.row[min(end, len(waiting) - 1) if end < self.budget.window else end - 1])
            window, waiting = waiting.take(slice(0, end)), waiting.take(slice(end, None))
            found += self._judge(window, by)
            self._after = int(window.row[-1])
        self._open = waiting
        return found

    @property
    def waiting(self) -> int:
        """Images of the open window."""
        return 0 if self._open is None else len(self._open)

    def _end(self, rows: Rows) -> int | None:
        """Return how many rows the next window has, None where it is still open."""
        size = self.budget.window
        late = np.flatnonzero(rows.at[: size + 1] - rows.at[0] >= WEEK) if len(rows) else np.array([], int)
        late = late[late >= LEAST]
        ends = [*([size] if len(rows) >= size else []), *late[:1].tolist()]
        return min(ends, default=None)

    @cached_property
    def _margins(self) -> Any:
        return np.array([column.margin for column in self.reference.columns])

    @cached_property
    def _sums(self) -> Any:
        return self.reference.sums

    def _judge(self, rows: Rows, by: int) -> list[Detection]:
        """Judge a window; `by`: the row that closed it."""
        columns = self.reference.columns
        first, last = stamp(rows.at.min()), stamp(rows.at.max())
        values, patients = values_of(rows, columns), rows.patients
        sizes = np.bincount(patients)
        record: dict[str, Any] = {
            "first": first, "last": last, "first_row": int(rows.row[0]), "last_row": int(rows.row[-1]),
            "images": len(rows), "patients": int(sizes.size),
        }  # fmt: skip
        self.history = [*self.history[-KEPT + 1 :], record]
        if sizes.max() >= LARGEST_SHARE * len(rows):
            record["refused"] = f"one patient has {sizes.max():,} of {len(rows):,} images: chance is counted by patient"
            return []
        alpha = self.budget.alpha(self._closed(rows.at.max()))
        rng = np.random.default_rng([self.budget.seed, 1, int(rows.row[0])])
        test = permuted(self._sums, sums_of(values, patients), self._margins, alpha, rng)
        record |= {"p": test.p, "alpha": alpha, **self._figures(test)}
        if test.p > alpha:
            return []
        order = np.argsort(-np.nan_to_num(test.t, nan=-1.0), kind="stable")
        moved = [int(place) for place in order if test.adjusted[place] <= alpha]
        record["moved"] = [columns[place].name for place in moved]
        evidence = {"p": test.p, "alpha": alpha, "images": len(rows), "permutations": test.permutations}
        family = self._family(moved)
        first_row = int(rows.row[0])
        return [Detection(self.name, family, record["moved"], by, first_row, last, first, evidence)]

    def _closed(self, now: np.datetime64) -> int:
        """Return how many windows closed in the year before, this one included."""
        ends = np.array([window["last"].rstrip("Z") for window in self.history], "datetime64[ms]")
        return int((ends > now - YEAR).sum())

    def _figures(self, test: MaxT) -> dict[str, Any]:
        """Return the means of the named columns, and the largest t over the axes of the embedding."""
        named = {
            column.name: {"now": _round(test.window[place]), "t": _round(test.t[place])}
            for place, column in enumerate(self.reference.columns)
            if not column.name.startswith("axis_")
        }
        axes = [test.t[place] for place, column in enumerate(self.reference.columns) if column.name.startswith("axis_")]
        return {"streams": named, "axes_t": _round(np.nanmax(axes)) if np.isfinite(axes).any() else None}

    def _family(self, moved: list[int]) -> str:
        """Return the family of the clearest column that has a name; axes alone say that pictures look otherwise."""
        named = [place for place in moved if not self.reference.columns[place].name.startswith("axis_")]
        return self.reference.columns[named[0]].family if named else ACQUISITION


def _round(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
