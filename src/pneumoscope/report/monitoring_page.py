"""The page of the monitor, from `monitoring.json` alone: state, alarms and what to do, timelines, labels, budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError
from pneumoscope.files import read_json, write_text
from pneumoscope.report import html, monitoring_figures

_LIGHTS = {"alarm": "red", "quiet": "green", "no data": "not tested"}
_KINDS = {
    "none": "no shift",
    "prevalence": "another share of pneumonia, images of each class as before",
    "covariate": "images come out differently",
    "mixed": "another share of pneumonia, and images that come out differently",
    "truth": "answers are wrong oftener on images that look as before",
    "undecided": "cannot be told from what the journal holds",
}
DRAWN = (
    "mean",
    "contrast",
    "sharpness",
    "noise",
    "abstained",
    "unlike",
    "exposure",
    "logit",
    "called",
    "age",
    "view_lateral",
)


def write(out: Path) -> Path:
    """Write `monitoring.html` from `out/monitoring.json`, and return its path.

    Raises:
        DataError: the file is missing or not what `pneumoscope monitor` writes.
        StorageError: the page cannot be written.
    """
    file = out / "monitoring.json"
    if not file.is_file():
        raise DataError("is missing", path=file, remedy="run `pneumoscope monitor` first")
    monitoring: Mapping[str, Any] = read_json(file)
    try:
        page = _page(monitoring)
    except (KeyError, TypeError) as error:
        raise DataError(f"lacks {error}", path=file, remedy="write it anew with `pneumoscope monitor`") from error
    write_text(out / "monitoring.html", page)
    return out / "monitoring.html"


def _page(m: Mapping[str, Any]) -> str:
    contents = [
        ("state", "State"),
        ("alarms", "Alarms"),
        ("timelines", "Timelines"),
        ("labels", "Labels"),
        ("budget", "Budget and reference"),
        ("blind", "What it cannot see"),
    ]
    images = sum(counts[0] for counts in m["volume"]["days"].values())
    return html.render(
        "monitoring.html.j2",
        title=f"Monitoring of {m['reference']['bundle'] or 'the bundle'}",
        subtitle=f"{images:,} images, until {_day(m['until'])}. Reference: {m['reference']['source']}.",
        contents=contents,
        m=m,
        lights=_LIGHTS,
        kinds=_KINDS,
        sentence=_sentence(m),
        charts=_charts(m),
        facts=_facts(m),
    )


def _sentence(m: Mapping[str, Any]) -> str:
    if m["open"]:
        count = len(m["open"])
        return f"{count} alarm{'s are' if count > 1 else ' is'} open: something moved, by more than its margin."
    judged = sum("p" in window for window in m["windows"])
    if not judged:
        return f"Quiet so far: {m['waiting']} images wait for the first window of {m['budget']['window']} to fill."
    return f"Quiet: in {judged:,} windows nothing moved by more than its margin that chance would not move."


def _charts(m: Mapping[str, Any]) -> list[tuple[str, Any]]:
    charts = []
    if m["volume"]["days"]:
        caption = "Images a day; grey: no image came for three days or more."
        charts.append((caption, html.svg(monitoring_figures.volume(m["volume"]), key="volume")))
    windows = [window for window in m["windows"] if "streams" in window]
    for column in m["reference"]["columns"]:
        if column["name"] in DRAWN and any(column["name"] in window["streams"] for window in windows):
            name = column["words"]
            caption = f"{name[0].upper()}{name[1:]}, window by window. Band: the margin. Filled: an alarm."
            figure = monitoring_figures.timeline(windows, column, m["volume"]["gaps"])
            charts.append((caption, html.svg(figure, key=column["name"])))
    if any(month["sensitivity"]["value"] is not None for month in m["labels"]["months"]):
        caption = "Sensitivity and specificity by month of the image, with 95 % intervals by patient."
        charts.append((caption, html.svg(monitoring_figures.performance(m["labels"]["months"]), key="labels")))
    return charts


def _facts(m: Mapping[str, Any]) -> list[tuple[str, str]]:
    budget, reference = m["budget"], m["reference"]
    facts = reference["facts"]
    rows = [
        ("False alarms allowed", f"{budget['alarms_per_year']:g} a year, all streams together"),
        ("of which", ", ".join(f"{name} {100 * share:.0f} %" for name, share in budget["shares"].items())),
        ("Planned", f"{budget['images_a_year']:,.0f} images a year, {budget['labels_a_year']:,.0f} labels"),
        ("A window", f"{budget['window']} images or a week; alarm at p ≤ {budget['alpha']:.4f} over all streams"),
        ("Bets on single images", f"alarm at a capital of {budget['sequential_threshold']:,.0f} in one stream"),
        ("Bets on labels", f"alarm at a capital of {budget['errors_threshold']:,.0f}"),
        ("Reference", f"{reference['source']}; {facts['images']:,} images of {facts['patients']:,} patients"),
        ("Its days", f"{facts.get('first') or 'not known'} to {facts.get('last') or 'not known'}"),
        ("Patients known", html.percent(facts["patient_known"], 0)),
        ("Watched", f"{len(reference['columns'])} facts and {reference['axes']} axes of the embedding"),
        ("Bundle", f"{reference['bundle']}, SHA-256 {reference['bundle_sha256']}"),
    ]
    return [*rows, *((name, f"{count:,}") for name, count in m["left_aside"].items() if count)]


def _day(text: str) -> str:
    return text[:10] or "no known day"
