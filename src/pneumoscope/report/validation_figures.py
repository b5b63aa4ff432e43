"""Figures that only a validation has, from its JSON: pure functions to a matplotlib `Figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pneumoscope.palette import BLUE, INK, MUTED, VERMILION
from pneumoscope.report.axes import new_figure, plain_legend, quiet_axes


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


def transfer(curve: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw sensitivity and specificity of a local threshold by the labels that chose it; bars hold 95 % of draws."""
    figure = new_figure(4.9, 4.4, "Local threshold by number of labels")
    axes = quiet_axes(figure)
    steps = [step for step in curve if step["rules"]]
    for shift, (figure_name, colour) in enumerate((("sensitivity", VERMILION), ("specificity", BLUE))):
        x = [step["k"] * (0.97 + 0.06 * shift) for step in steps]
        spread = [step["rules"]["balanced"][figure_name] for step in steps]
        for labels, draws in zip(x, spread, strict=True):
            axes.plot([labels] * 2, [draws["low"], draws["high"]], color=colour, linewidth=1.4)
        axes.plot(x, [draws["median"] for draws in spread], "o-", color=colour, markersize=5, label=figure_name)
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="labelled local images", ylabel="on the other patients")
    axes.set_xticks([step["k"] for step in steps], [str(step["k"]) for step in steps])
    axes.minorticks_off()
    plain_legend(axes)
    return figure
