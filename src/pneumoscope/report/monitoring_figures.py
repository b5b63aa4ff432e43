"""Timelines of the monitor, from its JSON: pure functions to a matplotlib `Figure`; a gap in the data is a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pneumoscope.palette import BLUE, MUTED, RULE, VERMILION
from pneumoscope.report.axes import new_figure, plain_legend, quiet_axes

_WIDTH, _HEIGHT = 6.4, 2.6


def volume(counts: Mapping[str, Any]) -> Figure:
    """Draw images a day, those without an answer apart, and the days without any."""
    figure = new_figure(_WIDTH, _HEIGHT, "Images a day")
    axes = quiet_axes(figure)
    days = np.array(list(counts["days"]), "datetime64[D]")
    rows = np.array(list(counts["days"].values()), float)
    axes.bar(days, rows[:, 0], color=BLUE, width=0.8, label="images")
    axes.bar(days, rows[:, 1], color=VERMILION, width=0.8, label="without an answer")
    _gaps(axes, counts["gaps"])
    axes.set(ylabel="images")
    _dated(figure, axes)
    plain_legend(axes)
    return figure


def timeline(
    windows: Sequence[Mapping[str, Any]], column: Mapping[str, Any], gaps: Sequence[Mapping[str, Any]]
) -> Figure:
    """Draw one stream, window by window, with the band of its margin; windows that alarmed by it are filled."""
    share = column["unit"] == "points"
    figure = new_figure(_WIDTH, _HEIGHT, f"{column['words']}, window by window")
    axes = quiet_axes(figure)
    times = np.array([_middle(window) for window in windows], "datetime64[s]")
    values = np.array([_value(window, column["name"]) for window in windows], float)
    usual = column["centre"] if share and "differs" not in column else 0.0
    scale = 100.0 if share else 1.0
    axes.axhspan(
        scale * (usual - column["margin"]), scale * (usual + column["margin"]), color=RULE, alpha=0.45, linewidth=0
    )
    axes.axhline(scale * usual, color=MUTED, linewidth=1)
    for part in _unbroken(times, gaps):
        axes.plot(
            times[part], scale * values[part], "o-", color=BLUE, linewidth=1.2, markersize=3.5, markerfacecolor="none"
        )
    alarmed = np.array([column["name"] in window.get("moved", ()) for window in windows])
    axes.plot(times[alarmed], scale * values[alarmed], "o", color=VERMILION, markersize=5.5)
    _gaps(axes, gaps)
    axes.set(ylabel="% of images" if share else "sd of the reference")
    _dated(figure, axes)
    return figure


def performance(months: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw sensitivity and specificity by month, hollow where the labels are no sample."""
    figure = new_figure(_WIDTH, _HEIGHT, "Sensitivity and specificity by month")
    axes = quiet_axes(figure)
    for shift, (name, colour) in enumerate((("sensitivity", VERMILION), ("specificity", BLUE))):
        for place, month in enumerate(months):
            estimate = month[name]
            if estimate["value"] is None:
                continue
            x = place + 0.12 * (2 * shift - 1)
            axes.plot([x, x], estimate["ci95"], color=colour, linewidth=1.4)
            face = colour if month["design"] else "none"
            axes.plot([x], [estimate["value"]], "o", color=colour, markerfacecolor=face, markersize=5)
        axes.plot([], [], "o", color=colour, label=name)
    axes.set_xticks(range(len(months)), [month["month"] for month in months], rotation=45, ha="right")
    axes.set(ylim=(-0.02, 1.02))
    plain_legend(axes, "lower left")
    return figure


def _middle(window: Mapping[str, Any]) -> Any:
    first, last = np.array([window[end].rstrip("Z") for end in ("first", "last")], "datetime64[s]")
    return first + (last - first) / 2


def _value(window: Mapping[str, Any], name: str) -> float:
    value = window["streams"].get(name, {}).get("now")
    return float("nan") if value is None else float(value)


def _unbroken(times: Any, gaps: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the windows between gaps, as indices."""
    edges = [np.datetime64(gap["from"].rstrip("Z"), "s") for gap in gaps]
    part = np.searchsorted(np.sort(np.array(edges, "datetime64[s]")), times) if edges else np.zeros(len(times), int)
    return [np.flatnonzero(part == number) for number in np.unique(part)]


def _gaps(axes: Axes, gaps: Sequence[Mapping[str, Any]]) -> None:
    for gap in gaps:
        first, last = (np.datetime64(gap[end].rstrip("Z"), "s") for end in ("from", "to"))
        axes.axvspan(first, last, color=MUTED, alpha=0.25, linewidth=0)  # type: ignore[arg-type]


def _dated(figure: Figure, axes: Axes) -> None:
    for label in axes.get_xticklabels():
        label.set(rotation=30, ha="right")
