"""Figures as text: one way to write a proportion, an interval, a count, a duration and a p value.

What is missing or not finite is `not available`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "not available"
GAP = "\N{NO-BREAK SPACE}"


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure with fixed decimals, `not available` for None and NaN."""
    return MISSING if value is None or not math.isfinite(value) else _fixed(value, digits)


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Write the 95 % interval of an estimate as `0.941–0.964`, `no interval` where the file gives none."""
    low, high = bounds(estimate)
    if low is None or high is None:
        return "no interval"
    dash = "–" if low >= 0 else " to "
    return f"{_fixed(low, digits)}{dash}{_fixed(high, digits)}"


def bounds(estimate: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
    """Return the ends of an estimate's interval, None where the file gives none."""
    ends = (estimate or {}).get("ci95") or (None, None)
    low, high = (None if end is None or not math.isfinite(end) else float(end) for end in ends)
    return low, high


def figure(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Write `{"value", "ci95"}` of the metrics contract as `0.953 (95 % CI 0.941–0.964)`."""
    value = None if estimate is None else estimate.get("value")
    if value is None or not math.isfinite(value):
        return MISSING
    if bounds(estimate) == (None, None):
        return f"{_fixed(value, digits)} (no interval)"
    return f"{_fixed(value, digits)} (95{GAP}%{GAP}CI {interval(estimate, digits)})"


def percent(value: float | None, digits: int = 1) -> str:
    """Write a proportion in 0..1 as `95.3 %`."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}{GAP}%"


def integer(value: float | None) -> str:
    """Write a count as `5,216`."""
    return MISSING if value is None or not math.isfinite(value) else f"{round(value):,}"


def duration(seconds: float | None) -> str:
    """Write seconds as `4.2 s`, `3 min 12 s` or `1 h 04 min`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f}{GAP}s" if seconds < 10 else f"{min(round(seconds), 59)}{GAP}s"
    if seconds < 3600:
        minutes, rest = divmod(min(round(seconds), 3599), 60)
        return f"{minutes}{GAP}min {rest:02d}{GAP}s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours:,}{GAP}h {rest:02d}{GAP}min"


def p_value(value: float | None) -> str:
    """Write a p value as `0.034`, `< 0.001` where it is smaller."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"<{GAP}0.001" if value < 0.001 else f"{value:.3f}"
