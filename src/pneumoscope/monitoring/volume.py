"""How many images came on which day, how many had no answer, and where there were none: data gaps."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from pneumoscope.monitoring.detector import stamp
from pneumoscope.monitoring.stream import Rows

GAP_DAYS = 3.0  # a week-end is no gap
KEPT_DAYS = 800


class Volume:
    """Counts by day."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        stored: Mapping[str, Any] = state or {"after": 0, "days": {}, "last": "", "gaps": []}
        self.after = int(stored["after"])
        self.days: dict[str, list[int]] = {day: list(counts) for day, counts in stored["days"].items()}
        self.last = str(stored["last"])
        self.gaps: list[dict[str, Any]] = list(stored["gaps"])

    def step(self, rows: Rows) -> None:
        """Take rows of any bundle; those it has seen are ignored."""
        rows = rows.take(rows.row > self.after)
        if not len(rows):
            return
        self.after = int(rows.row[-1])
        days = rows.at.astype("datetime64[D]").astype(str)
        called = np.nan_to_num(rows.number["probability"], nan=-1.0) >= rows.number["threshold"]
        for day in np.unique(days):
            mine = days == day
            counts = self.days.setdefault(str(day), [0, 0, 0])
            for place, number in enumerate((mine.sum(), (mine & rows.abstained).sum(), (mine & called).sum())):
                counts[place] += int(number)
        times = np.sort(rows.at)
        if self.last:
            times = np.concatenate([[np.datetime64(self.last.rstrip("Z"), "ms")], times])
        for before, after in pairwise(times):
            days_between = (after - before) / np.timedelta64(1, "D")
            if days_between >= GAP_DAYS:
                self.gaps.append({"from": stamp(before), "to": stamp(after), "days": round(float(days_between), 1)})
        self.last = max(self.last, stamp(times[-1]))
        self.days = dict(sorted(self.days.items())[-KEPT_DAYS:])

    def state(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"after": self.after, "days": self.days, "last": self.last, "gaps": self.gaps}

    def called_by_month(self) -> dict[str, float]:
        """Return the share of answered images that were called pneumonia, by month."""
        months: dict[str, list[int]] = {}
        for day, (images, silent, called) in self.days.items():
            counts = months.setdefault(day[:7], [0, 0])
            counts[0] += images - silent
            counts[1] += called
        return {month: called / images for month, (images, called) in months.items() if images}
