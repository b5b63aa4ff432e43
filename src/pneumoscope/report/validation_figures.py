"""Figures of a validation, from its JSON: pure functions to a matplotlib `Figure` with its text alternative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pneumoscope.palette import BLUE, INK, MUTED, RULE, VERMILION
from pneumoscope.report.axes import new_figure, plain_legend, quiet_axes

Estimates = Sequence[tuple[str, Mapping[str, Any]]]


def roc(curve: Mapping[str, Sequence[float]], sensitivity: float | None, specificity: float | None) -> Figure:
    """Draw the ROC curve with the frozen operating point."""
    figure, axes = _square("ROC curve")
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=1)
    axes.plot(curve["false_alarms"], curve["sensitivity"], color=BLUE, linewidth=1.8)
    if sensitivity is not None and specificity is not None:
        axes.plot([1 - specificity], [sensitivity], "o", color=VERMILION, markersize=8, clip_on=False)
    axes.set(xlabel="1 − specificity (false alarms)", ylabel="sensitivity (pneumonia found)")
    return figure


def reliability(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw stated against observed frequency, with intervals by patient."""
    figure, axes = _square("Reliability diagram")
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=1)
    for cell in bins:
        low, high = cell["observed"]["ci95"]
        if low is not None:
            axes.plot([cell["stated"]] * 2, [low, high], color=BLUE, linewidth=1.4)
        axes.plot([cell["stated"]], [cell["observed"]["value"]], "o", color=BLUE, markersize=5)
    axes.set(xlabel="stated probability", ylabel="share that has pneumonia")
    return figure


def decision(curve: Mapping[str, Any]) -> Figure:
    """Draw net benefit against threshold probability, with the band of the model and the two reflexes."""
    figure = new_figure(4.9, 4.4, "Decision curve")
    axes = quiet_axes(figure)
    t = np.asarray(curve["thresholds"], dtype=float)
    axes.fill_between(t, np.asarray(curve["low"], float), np.asarray(curve["high"], float), color=BLUE, alpha=0.18)
    axes.plot(t, curve["model"], color=BLUE, linewidth=1.8, label="by the score")
    axes.plot(t, curve["treat_all"], color=MUTED, linestyle=(0, (6, 2)), label="treat all")
    axes.axhline(0, color=INK, linewidth=1, label="treat none")
    top = max(0.05, *curve["model"], curve["treat_all"][0])
    axes.set(xlim=(0, 1), ylim=(-0.25 * top - 0.05, 1.1 * top), xlabel="threshold probability", ylabel="net benefit")
    plain_legend(axes)
    return figure


def forest(rows: Estimates, label: str, reference: float | None = None) -> Figure:
    """Draw one interval per row; `reference` is a dashed line (all images together, or no gap)."""
    figure = new_figure(7.2, 0.9 + 0.3 * len(rows), label)
    axes = quiet_axes(figure)
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
    for row, (_, estimate) in enumerate(rows):
        low, high = estimate["ci95"]
        if low is not None and high is not None:
            axes.plot([low, high], [row, row], color=BLUE, linewidth=2.2, solid_capstyle="butt")
        if estimate["value"] is not None:
            axes.plot([estimate["value"]], [row], "o", color=BLUE, markersize=5)
    axes.set_yticks(range(len(rows)), [name.replace("$", r"\$") for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{label}, with 95 % interval")
    axes.tick_params(axis="y", length=0)
    return figure


def transfer(curve: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw sensitivity and specificity of a local threshold by the labels that chose it; bars hold 95 % of draws."""
    figure = new_figure(4.9, 4.4, "Local threshold by number of labels")
    axes = quiet_axes(figure)
    known = [step for step in curve if step["rules"]]
    for shift, (what, colour) in enumerate((("sensitivity", VERMILION), ("specificity", BLUE))):
        x = [step["k"] * (0.97 + 0.06 * shift) for step in known]
        spread = [step["rules"]["balanced"][what] for step in known]
        for place, one in zip(x, spread, strict=True):
            axes.plot([place] * 2, [one["low"], one["high"]], color=colour, linewidth=1.4)
        axes.plot(x, [one["median"] for one in spread], "o-", color=colour, markersize=5, label=what)
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="labelled local images", ylabel="on the other patients")
    axes.set_xticks([step["k"] for step in known], [str(step["k"]) for step in known])
    axes.minorticks_off()
    plain_legend(axes)
    return figure


def _square(label: str) -> tuple[Figure, Axes]:
    figure = new_figure(4.4, 4.4, label)
    axes = quiet_axes(figure)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    return figure, axes
