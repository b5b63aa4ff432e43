"""Figures of an evaluation: pure functions from arrays and file contents to a matplotlib `Figure`.

Every figure has its text alternative as its label, uses the colours of `palette`, and touches no global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from pneumoscope.palette import BLUE, CLASSES, DASHES, INK, MUTED, PAPER, RULE, SERIES, VERMILION
from pneumoscope.records import NORMAL, PNEUMONIA, Bools, Floats
from pneumoscope.report.axes import new_figure, plain_legend, quiet_axes, quieten

PROBABILITY = "probability of pneumonia"
LONGEST_NAME = 32  # characters; longer names are cut in the middle, their ends tell runs apart


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """A ROC curve: rates [k] in 0..1, and (sensitivity, specificity) of the operating point in use."""

    name: str
    false_alarms: Sequence[float] | Floats
    sensitivity: Sequence[float] | Floats
    point: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The scores of one network on one set of images.

    `positive`: bool [N], pneumonia by the label. `score`: float64 [N] in 0..1, higher means pneumonia.
    `sensitivity`, `specificity`: of the operating point, as the metrics file states them.
    """

    name: str
    positive: Bools
    score: Floats
    sensitivity: float | None = None
    specificity: float | None = None

    @property
    def both_classes(self) -> bool:
        """Whether a curve can be drawn at all."""
        return bool(self.positive.any() and not self.positive.all())

    def roc(self) -> Roc:
        """Return the ROC curve (Fawcett 2006); raises `ValueError` for images of one class."""
        _need_both(self)
        rate, sensitivity, _ = roc_curve(self.positive, self.score)
        return Roc(self.name, rate, sensitivity, operating_point(self.sensitivity, self.specificity))


def operating_point(sensitivity: float | None, specificity: float | None) -> tuple[float, float] | None:
    """Return both, or None where one is undefined."""
    return None if sensitivity is None or specificity is None else (sensitivity, specificity)


# --- curves -----------------------------------------------------------------------------------------------


def roc(curves: Sequence[Roc]) -> Figure:
    """Draw receiver operating characteristics, each with its operating point, and guessing as a line."""
    figure, axes = _single(4.9, 4.9, "ROC curves of " + ", ".join(curve.name for curve in curves))
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=1)
    for number, curve in enumerate(curves):
        look = _series(number)
        axes.plot(curve.false_alarms, curve.sensitivity, label=_plain(curve.name), **look)
        if curve.point is not None:
            _mark(axes, 1 - curve.point[1], curve.point[0], look["color"])
    _unit_square(axes, "1 − specificity (false alarms among normal)", "sensitivity (pneumonia found)")
    if len(curves) > 1:
        plain_legend(axes, "lower right")
    return figure


def precision_recall(curves: Sequence[Scored]) -> Figure:
    """Draw precision against recall; the thin line is the prevalence, what guessing would reach.

    Raises:
        ValueError: a curve has images of one class only.
    """
    figure, axes = _single(4.9, 4.9, "Precision-recall curves of " + ", ".join(curve.name for curve in curves))
    for number, curve in enumerate(curves):
        _need_both(curve)
        precision, recall, _ = precision_recall_curve(curve.positive, curve.score)
        axes.axhline(float(curve.positive.mean()), color=RULE, linewidth=1)
        axes.step(recall, precision, where="post", label=_plain(curve.name), **_series(number))
    _unit_square(axes, "recall (pneumonia found)", "precision (alarms that are right)")
    if len(curves) > 1:
        plain_legend(axes, "lower left")
    return figure


def _need_both(curve: Scored) -> None:
    if not curve.both_classes:
        raise ValueError(f"{curve.name}: a curve needs images of both classes")


def _series(number: int) -> dict[str, Any]:
    """Return how the lines of one of several runs look."""
    return {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.8}


def _mark(axes: Axes, x: float, y: float, colour: str) -> None:
    axes.plot(
        [x], [y], "o", markersize=8, color=colour, markeredgecolor=PAPER, markeredgewidth=1.5, clip_on=False, zorder=5
    )


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")


# --- calibration ------------------------------------------------------------------------------------------


def reliability(bins: Sequence[Mapping[str, Any]], score_name: str = PROBABILITY) -> Figure:
    """Draw stated against observed frequency with 95 % intervals, by patient as they were written."""
    figure, axes = _single(4.9, 4.9, "Reliability diagram")
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=1)
    for cell in bins:
        low, high = cell["observed"]["ci95"]
        if low is not None and high is not None:
            axes.plot([cell["stated"]] * 2, [low, high], color=BLUE, linewidth=1.4)
        axes.plot([cell["stated"]], [cell["observed"]["value"]], "o", color=BLUE, markersize=5)
    _unit_square(axes, score_name, "share that has pneumonia")
    return figure


def score_histogram(groups: Mapping[str, Floats], threshold: float | None, score_name: str = PROBABILITY) -> Figure:
    """Draw the scores of each group (a class or a subtype) on a row of its own, with the threshold."""
    figure = new_figure(4.9, 0.8 + 1.25 * len(groups), "Histograms of the scores of " + ", ".join(groups))
    rows = np.atleast_1d(figure.subplots(len(groups), 1, sharex=True))
    for axes, (name, scores) in zip(rows, groups.items(), strict=True):
        quieten(axes)
        weights = np.full(len(scores), 1 / max(len(scores), 1))
        axes.hist(scores, bins=np.linspace(0, 1, 41).tolist(), weights=weights, color=CLASSES.get(name, MUTED))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.set_title(_plain(f"{name}, {len(scores):,} images"), loc="left", fontsize=10, color=INK)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    rows[-1].set(xlim=(-0.01, 1.01), xlabel=score_name)
    if threshold is not None:
        rows[0].annotate(
            f"threshold {threshold:.3f}",
            (threshold, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if threshold > 0.5 else 5, -2),
            textcoords="offset points",
            va="top",
            ha="right" if threshold > 0.5 else "left",
            fontsize=9,
            color=INK,
        )
    return figure


def risk_coverage(section: Mapping[str, Any], name: str) -> Figure:
    """Draw accuracy with its 95 % interval against the share of images answered, from `selective` of `metrics.json`."""
    figure, axes = _single(4.9, 3.9, f"Accuracy of {name} where only the most certain images are answered")
    points = [point for point in section["curve"] if point["accuracy"]["value"] is not None]
    shares = [point["coverage"] for point in points]
    ends = [point["accuracy"]["ci95"] for point in points]
    values = [point["accuracy"]["value"] for point in points]
    low, high = (
        [value if end[side] is None else end[side] for value, end in zip(values, ends, strict=True)] for side in (0, 1)
    )
    axes.fill_between(shares, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(shares, values, color=BLUE, linewidth=1.8, marker="o", markersize=4)
    axes.set(xlabel="share of images answered, the most certain first", ylabel="accuracy", ylim=(None, 1.005))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


# --- tables as figures ------------------------------------------------------------------------------------


def confusion_matrix(counts: Mapping[str, int]) -> Figure:
    """Draw `{tn, fp, fn, tp}` with counts and the share of each row."""
    rows = {NORMAL: (counts["tn"], counts["fp"]), PNEUMONIA: (counts["fn"], counts["tp"])}
    cells = "; ".join(f"{name}: {a} called normal, {b} called pneumonia" for name, (a, b) in rows.items())
    figure, axes = _single(4.9, 3.9, f"Confusion matrix. {cells}")
    for y, (name, row) in enumerate(rows.items()):
        for x, count in enumerate(row):
            share = count / sum(row) if sum(row) else 0.0
            colour = BLUE if (name == NORMAL) == (x == 0) else VERMILION
            axes.fill_between(
                [x + 0.02, x + 0.98], y + 0.02, y + 0.98, color=colour, alpha=0.12 + 0.28 * share, linewidth=0
            )
            axes.text(x + 0.5, y + 0.42, f"{count:,}", ha="center", va="center", fontsize=18, color=INK)
            axes.text(x + 0.5, y + 0.68, f"{share:.1%} of row", ha="center", va="center", fontsize=9, color=INK)
    axes.set(xlim=(0, 2), ylim=(2, 0), xlabel="called by the network", ylabel="label of the data set")
    axes.set_xticks([0.5, 1.5], [NORMAL, PNEUMONIA])
    axes.set_yticks([0.5, 1.5], [NORMAL, PNEUMONIA], rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    return figure


def forest(
    rows: Mapping[str, Mapping[str, Any]],
    measures: Mapping[str, str],
    reference: float | None = None,
    colours: Sequence[str] = SERIES,
) -> Figure:
    """Draw the estimates of several runs, sites or groups with their 95 % intervals, one panel for each measure.

    Args:
        rows: name of a row -> its `metrics` of the contract.
        measures: key of a metric -> heading of its panel.
        reference: where a dashed line stands (all images together, or guessing).
        colours: of the rows in turn.
    """
    label = ", ".join(measures.values()) + " with 95 % intervals of " + ", ".join(rows)
    width = 7.2 if len(measures) == 1 else 3.2 * len(measures)
    figure = new_figure(width, 1.0 + 0.36 * max(len(rows), 2), label)
    panels = np.atleast_1d(figure.subplots(1, len(measures), sharey=True))
    for axes, (key, heading) in zip(panels, measures.items(), strict=True):
        quieten(axes)
        if reference is not None:
            axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
        for y, metrics in enumerate(rows.values()):
            _estimate(axes, y, metrics.get(key) or {}, colours[y % len(colours)])
        axes.set_title(heading, loc="left", fontsize=10, color=INK)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.12)
        left, right = axes.get_xlim()
        axes.set_xlim(left, min(right, 1.0))  # these measures end at 1: a tick beyond would mislead
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [_plain(name) for name in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _estimate(axes: Axes, y: int, estimate: Mapping[str, Any], colour: str) -> None:
    if estimate.get("value") is None:
        return
    low, high = estimate.get("ci95") or (None, None)
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="round", clip_on=False)
    axes.plot([estimate["value"]], [y], "o", color=colour, markersize=7, markeredgecolor=PAPER, clip_on=False)


# --- training ---------------------------------------------------------------------------------------------


def training_curves(history: pd.DataFrame, best_epoch: int | None = None) -> Figure:
    """Draw loss and validation measures by epoch from `history.csv`.

    Phases follow one another; a line stands where one begins, a dotted one at `best_epoch`, counted from 1 over all.
    """
    figure = new_figure(9.2, 3.4, "Training curves: loss, and validation AUROC and accuracy, by epoch")
    loss, score = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    _lines(loss, epochs, history, {"train_loss": "training loss", "val_loss": "validation loss"})
    _lines(score, epochs, history, {"val_auroc": "validation AUROC", "val_accuracy": "validation accuracy"})
    phases = history["phase"].astype(str).tolist() if "phase" in history else []
    borders = [i + 0.5 for i in range(1, len(phases)) if phases[i] != phases[i - 1]]
    for axes in (loss, score):
        quieten(axes)
        for border in borders:
            axes.axvline(border, color=RULE, linewidth=1)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=MUTED, linewidth=1, linestyle=":")
        axes.set(xlabel="epoch", xlim=(0.5, max(len(history), 1) + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=RULE, linewidth=0.6)
    return figure


def _lines(axes: Axes, epochs: NDArray[np.int_], history: pd.DataFrame, names: Mapping[str, str]) -> None:
    drawn = [(key, name) for key, name in names.items() if key in history and history[key].notna().any()]
    for number, (key, name) in enumerate(drawn):
        values = history[key].to_numpy(dtype=np.float64)
        axes.plot(epochs, values, label=name, marker="o", markersize=3.5, **_series(number))
    if len(drawn) > 1:
        plain_legend(axes)


# --- the look ---------------------------------------------------------------------------------------------


def _single(width: float, height: float, label: str) -> tuple[Figure, Axes]:
    figure = new_figure(width, height, label)
    return figure, quiet_axes(figure)


def _plain(name: str) -> str:
    """Keep a name literal and short: no `$…$` mathematics, no underscore that hides a legend entry."""
    text = " ".join(name.split())
    if len(text) > LONGEST_NAME:
        text = f"{text[: LONGEST_NAME // 2]}…{text[1 - LONGEST_NAME // 2 :]}"
    text = text.replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text
