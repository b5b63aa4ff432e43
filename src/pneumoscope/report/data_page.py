"""The page to read before training: what is in a data source and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pneumoscope.errors import DataError
from pneumoscope.files import read_json, write_text
from pneumoscope.palette import CLASSES, DASHES, INK, MUTED, RULE
from pneumoscope.report.axes import new_figure, plain_legend, quiet_axes
from pneumoscope.report.html import image_uri, render, svg

MOST = 8  # images of one patient from which on the bars are joined
_SIDES = ("above the lungs", "below the lungs", "left of the lungs", "right of the lungs")
_SIZES = (
    ("width", "width, pixels"),
    ("height", "height, pixels"),
    ("aspect_ratio", "aspect ratio, width : height"),
    ("kilobytes", "file size, kB"),
)


def write_page(out: Path) -> Path:
    """Write `out/index.html` from `out/describe.json`, `out/quality.json` or both, and return its path.

    The page holds its figures and fetches nothing.

    Raises:
        DataError: neither file is there, or one is not JSON.
        StorageError: a figure is missing, or the page cannot be written.
    """
    describe, quality = (_read(out / name) for name in ("describe.json", "quality.json"))
    facts = describe or quality
    if facts is None:
        raise DataError(
            "holds neither describe.json nor quality.json",
            path=out,
            remedy="run `pneumoscope data describe` or `data check` first",
        )
    if describe and quality and describe["sha256"] != quality["sha256"]:
        raise DataError(
            "describe.json and quality.json are about different data",
            path=out,
            remedy="run both on the same source, or use two folders",
        )
    page = render(
        "data.html.j2",
        title=f"Data: {_name(Path(facts['source']))}",
        subtitle=f"{facts['n']:,} images. Patients are told apart by: {facts['patient_rule']}.",
        contents=_contents(describe, quality),
        describe=describe,
        quality=quality,
        tally=_tally(quality),
        tallied=_in_words(_tally(quality)),
        uris=_uris(out, describe, quality),
        charts={**_describe_charts(describe), **_quality_charts(quality)},
    )
    target = out / "index.html"
    write_text(target, page)
    return target


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content: dict[str, Any] = read_json(path)
    return content


def _contents(describe: Mapping[str, Any] | None, quality: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    checked = [("problems", "Problems"), ("shortcuts", "Shortcuts"), ("precision", "Precision of the splits")]
    described = [
        ("classes", "Classes and patients"),
        ("differences", "What differs on average"),
        ("mosaics", "Images"),
        ("sizes", "Sizes and files"),
        ("intensity", "Intensities"),
        ("source", "Source"),
    ]
    return [*(checked if quality else []), *(described if describe else [])]


def _tally(quality: Mapping[str, Any] | None) -> dict[str, int]:
    problems = (quality or {}).get("problems", [])
    tally = {name: sum(p["severity"] == name for p in problems) for name in ("error", "warning", "note")}
    return {**tally, "voids": sum(bool(p["voids"]) for p in problems)}


def _in_words(tally: Mapping[str, int]) -> str:
    parts = [(tally[name], name) for name in ("error", "warning", "note") if tally[name]]
    return ", ".join(f"{n} {name}" if n == 1 else f"{n} {name}s" for n, name in parts)


def _name(source: Path) -> str:
    """Name a folder by its last part, a file with the folder that it is in."""
    return f"{source.parent.name}/{source.name}" if source.suffix else source.name


def _uris(out: Path, describe: Mapping[str, Any] | None, quality: Mapping[str, Any] | None) -> dict[str, str]:
    figures = (describe or {}).get("figures", {})
    records = [
        *figures.get("mosaics", []),
        *figures.get("means", {}).values(),
        *([figures["difference"]] if figures.get("difference") else []),
        *(quality or {}).get("figures", {}).values(),
    ]
    return {record["file"]: image_uri(out / record["file"]) for record in records}


# --- charts -----------------------------------------------------------------------------------------------


def _describe_charts(describe: Mapping[str, Any] | None) -> dict[str, Any]:
    if describe is None:
        return {"sizes": [], "intensity": None, "patients": None}
    shown = describe["intensity"]["histogram"]
    return {
        "sizes": [
            svg(size_chart(describe["images"][key], name), key=key)
            for key, name in _SIZES
            if _varies(describe["images"].get(key, {}))
        ],
        "intensity": svg(intensity_chart(shown)) if shown else None,
        "patients": svg(patient_chart(describe["patients"]["images_per_patient"])),
    }


def _quality_charts(quality: Mapping[str, Any] | None) -> dict[str, Any]:
    if quality is None or not quality["shortcuts"]["features"]:
        return {"shortcuts": None, "framing": None}
    features = quality["shortcuts"]["features"]
    medians = {feature["name"]: feature["medians"] for feature in features if feature.get("medians")}
    return {
        "shortcuts": svg(shortcut_chart(features, quality["shortcuts"]["limit"])),
        "framing": svg(framing_chart(medians)) if set(_SIDES) <= set(medians) else None,
    }


def _varies(groups: Mapping[str, Any]) -> bool:
    spreads = [points for points in groups.values() if points]
    return bool(spreads) and min(p["min"] for p in spreads) < max(p["max"] for p in spreads)


def size_chart(groups: Mapping[str, Mapping[str, float] | None], name: str) -> Figure:
    """Draw one box per class: median, quartiles, and whiskers at the 5 and 95 % points."""
    drawable = {label: points for label, points in groups.items() if points}
    figure = new_figure(5.0, 0.75 + 0.42 * len(drawable), f"Box plots of {name} by class")
    axes = quiet_axes(figure)
    boxes = [
        {
            **boxplot_stats([points["median"]])[0],
            "q1": points["p25"],
            "q3": points["p75"],
            "whislo": points["p05"],
            "whishi": points["p95"],
            "label": label,
        }
        for label, points in drawable.items()
    ]
    drawn = axes.bxp(boxes, orientation="horizontal", showfliers=False, patch_artist=True, widths=0.55)
    for label, box, median in zip(drawable, drawn["boxes"], drawn["medians"], strict=True):
        box.set(facecolor=_colour(label), edgecolor=_colour(label), alpha=0.85)
        median.set(color=INK, linewidth=2)
    for line in (*drawn["whiskers"], *drawn["caps"]):
        line.set_color(MUTED)
    axes.invert_yaxis()
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="y", length=0)
    return figure


def intensity_chart(histograms: Mapping[str, list[float]]) -> Figure:
    """Draw the mean histogram of pixel values for each class, the first and last bin among them."""
    figure = new_figure(7.2, 3.0, "Mean histogram of pixel values by class")
    axes = quiet_axes(figure)
    for number, (label, shares) in enumerate(histograms.items()):
        edges = np.linspace(0, 1, len(shares) + 1)
        axes.stairs(shares, edges, color=_colour(label), linewidth=1.8, linestyle=DASHES[number], label=label)
    # Black borders fill the first bin; cut there, the rest can be read.
    inner = max(max(shares[1:-1]) for shares in histograms.values())
    axes.set(xlim=(0, 1), ylim=(0, 1.15 * inner), xlabel="pixel value (0 black, 1 white)", ylabel="of the pixels")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    plain_legend(axes)
    return figure


def patient_chart(groups: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw how many patients have one, two, … images."""
    figure = new_figure(7.2, 2.8, "Images per patient by class")
    axes = quiet_axes(figure)
    width = 0.8 / max(len(groups), 1)
    for number, (label, points) in enumerate(groups.items()):
        bars = np.zeros(MOST)
        for images, patients in points["histogram"].items():
            bars[min(int(images), MOST) - 1] += patients
        centres = np.arange(1, MOST + 1) + (number - (len(groups) - 1) / 2) * width
        axes.bar(centres, bars, width * 0.92, color=_colour(label), label=label)
    names = [str(k) for k in range(1, MOST)] + [f"{MOST} or more"]
    axes.set_xticks(range(1, MOST + 1), names)
    axes.set(xlabel="images of one patient", ylabel="patients")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    plain_legend(axes)
    return figure


def shortcut_chart(features: list[Mapping[str, Any]], limit: float) -> Figure:
    """Draw the AUROC of each property with its interval; the band around .5 tells nothing."""
    figure = new_figure(7.2, 0.9 + 0.36 * len(features), "AUROC of properties other than the lungs")
    axes = quiet_axes(figure)
    axes.axvspan(1 - limit, limit, color=RULE, alpha=0.45, linewidth=0)
    axes.axvline(0.5, color=MUTED, linewidth=1)
    for row, feature in enumerate(features):
        low, high = feature["auroc"]["ci95"]
        colour = CLASSES["PNEUMONIA"] if feature["flagged"] else MUTED
        axes.plot([low, high], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt")
        axes.plot([feature["auroc"]["value"]], [row], "o", color=colour, markersize=6)
    axes.set_yticks(range(len(features)), [_plain(feature["name"]) for feature in features])
    axes.set(xlim=(-0.01, 1.01), ylim=(len(features) - 0.5, -0.5))
    axes.set_xlabel("AUROC for pneumonia, with 95 % interval")
    axes.tick_params(axis="y", length=0)
    return figure


def framing_chart(medians: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the frame of each class side by side, with the box of the lungs at its median."""
    figure = new_figure(7.2, 3.6, "Where the lungs lie in the frame, by class")
    for column, label in enumerate(medians[_SIDES[0]]):
        axes = figure.add_subplot(1, 2, column + 1)
        above, below, left, right = (medians[side][label] for side in _SIDES)
        axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor=MUTED, linewidth=1))
        axes.add_patch(Rectangle((left, above), 1 - left - right, 1 - above - below, color=_colour(label), alpha=0.35))
        axes.annotate(f"{above:.0%} above", (0.5, above / 2), ha="center", va="center", color=INK)
        axes.annotate(f"{below:.0%} below", (0.5, 1 - below / 2), ha="center", va="center", color=INK)
        axes.set(xlim=(-0.01, 1.01), ylim=(1.01, -0.01), aspect="equal", title=label)
        axes.set_axis_off()
    return figure


def _colour(label: str) -> str:
    return CLASSES.get(label, MUTED)


def _plain(name: str) -> str:
    return " ".join(name.split()).replace("$", r"\$")
