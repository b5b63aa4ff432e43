"""Explanations for print: one PDF for each image, original beside its overlays, with what must be known below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from pneumoscope.errors import storage_errors
from pneumoscope.files import atomic_path
from pneumoscope.palette import INK, MUTED
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.report import explanation_words as words
from pneumoscope.report import html
from pneumoscope.report.explanation_page import beside, read_context, read_image_facts

_DPI = 300
_WIDTH = 7.2  # inches: the text of a page
_COLUMNS = 3


def write(folder: Path) -> list[Path]:
    """Write `N-STEM.pdf` for each image of a folder that `explain` wrote and that has a map, and return them.

    Raises:
        DataError: the folder was not written by `explain`.
        StorageError: a file is missing, or the folder cannot be written.
    """
    context = read_context(folder)
    written = []
    for name in context["images"]:
        image, maps = read_image_facts(folder, str(name))
        shown = [entry for entry in maps if entry.get("verdict") != "blank"]
        if not shown:
            continue
        path = folder / f"{Path(str(name)).stem}.pdf"
        # Fonts as outlines-with-text (type 42): journals refuse type 3. No date, so that equal input gives equal bytes.
        with atomic_path(path) as temporary, mpl.rc_context({"pdf.fonttype": 42}):
            drawn = figure(folder, context, image, shown)
            drawn.savefig(temporary, format="pdf", dpi=_DPI, metadata={"CreationDate": None, "Producer": None})
        written.append(path)
    return written


def figure(folder: Path, context: Mapping[str, Any], image: Mapping[str, Any], maps: list[Mapping[str, Any]]) -> Figure:
    """Draw original and overlays in rows of three, a colour bar, and a caption with score, threshold and verdicts."""
    original = _pixels(beside(folder, image["image"]))
    panels = [("original", original)]
    panels += [(_heading(entry), _pixels(beside(folder, entry["overlay"]))) for entry in maps]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    wide = _WIDTH / columns
    caption = textwrap.wrap(_caption(context, image), 104)
    tall = wide * original.shape[0] / original.shape[1] + 0.3
    height = rows * tall + 0.35 + 0.16 * len(caption)
    drawn = Figure(figsize=(_WIDTH, height), facecolor="white")
    drawn.set_label(f"{Path(str(image['path'])).name}: original and {len(maps)} overlays")
    top, foot = 1 - 0.02 / height, (0.4 + 0.16 * len(caption)) / height
    grid = np.atleast_1d(drawn.subplots(rows, columns)).ravel()
    drawn.subplots_adjust(left=0.005, right=0.995, top=top - 0.2 / height, bottom=foot, wspace=0.03, hspace=0.14)
    for axes, (title, pixels) in zip(grid, panels, strict=False):
        _show(axes, title, pixels)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    _bar(drawn, context, foot - 0.13 / height, 0.08 / height)
    drawn.text(0.005, foot - 0.32 / height, "\n".join(caption), va="top", fontsize=7.5, color=INK, parse_math=False)
    return drawn


def _show(axes: Axes, title: str, pixels: Any) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="none")
    axes.set_title(title, fontsize=8, color=INK, loc="left", pad=3, parse_math=False)
    axes.set_axis_off()


def _bar(drawn: Figure, context: Mapping[str, Any], bottom: float, height: float) -> None:
    colours = ListedColormap([str(colour) for _, colour in context.get("scale") or [(0, "#000000"), (1, "#ffffff")]])
    axes = drawn.add_axes((0.62, bottom, 0.2, height))
    bar = drawn.colorbar(ScalarMappable(Normalize(0, 1), colours), cax=axes, orientation="horizontal", ticks=[])
    bar.outline.set_visible(False)
    middle = bottom + height / 2
    drawn.text(0.61, middle, "weak", ha="right", va="center", fontsize=7, color=MUTED)
    drawn.text(0.83, middle, "strongest for pneumonia", va="center", fontsize=7, color=MUTED)


def _heading(entry: Mapping[str, Any]) -> str:
    return f"{words.method_name(str(entry.get('method')))}: {entry.get('verdict')}"


def _caption(context: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    bundle = context.get("bundle") or {}
    return (
        f"{Path(str(image['path'])).name}. Score {words.score(image.get('probability'))}, threshold "
        f"{html.number(context.get('threshold'))} ({context.get('operating_point')}). Network {bundle.get('name')}, "
        f"SHA-256 {str(bundle.get('sha256'))[:12]}. The patient's right is on the left, if the view is frontal. "
        f"A map shows where the answer comes from, not where disease is. {RESEARCH_ONLY}"
    )


def _pixels(file: Path) -> Any:
    with storage_errors(file), Image.open(file) as opened:
        return np.asarray(opened)
