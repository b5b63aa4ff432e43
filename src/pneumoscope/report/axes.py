"""Empty figures in the look of the pages: no box, quiet axes, a text alternative."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pneumoscope.palette import INK, MUTED


def new_figure(width: float, height: float, label: str) -> Figure:
    """Return a figure in inches; `label` is its text alternative."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_label(label)
    return figure


def quiet_axes(figure: Figure) -> Axes:
    """Return the axes of a figure with one plot."""
    axes = figure.subplots()
    quieten(axes)
    return axes


def quieten(axes: Axes) -> None:
    """Take the box away, and put grids behind what is drawn."""
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=10)
    axes.yaxis.label.set(color=INK, fontsize=10)


def plain_legend(axes: Axes, corner: Literal["best", "lower left", "lower right"] = "best") -> None:
    """Add a legend without a frame."""
    legend = axes.legend(loc=corner, frameon=False, fontsize=9, handlelength=2.8)
    for text in legend.get_texts():
        text.set_color(INK)
