"""The page that goes to a review board, and the checklist, from `validation.json` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError
from pneumoscope.files import read_json, write_text
from pneumoscope.palette import BLUE
from pneumoscope.report import figures, html, validation_figures, wording
from pneumoscope.report.folders import thumbnail

MOST_ROWS = 40
WORDS = {
    "recall": "Sensitivity",
    "specificity": "Specificity",
    "auroc": "AUROC",
    "mean_error": "Stated less observed",
    "prevalence": "Share of pneumonia",
}
_LINES = {
    "slope": ("Calibration slope", "1 is right; under 1 the probabilities are too extreme"),
    "intercept": ("Calibration in the large", "0 is right, in log-odds; under 0 pneumonia is over-called"),
    "oe": ("Observed over expected", "1 is right"),
    "ici": ("ICI", "mean gap between stated and smoothed observed frequency; lower is better"),
    "lr_positive": ("LR+", "how much an alarm raises the odds of pneumonia; 1 says nothing"),
    "lr_negative": ("LR−", "how much an all-clear lowers them; 1 says nothing"),
}


def write(out: Path) -> tuple[Path, Path]:
    """Write `validation.html` and `checklist.html` from `out/validation.json`, and return their paths.

    Raises:
        DataError: the file is missing or not what `pneumoscope validate` writes.
        StorageError: a page cannot be written.
    """
    file = out / "validation.json"
    if not file.is_file():
        raise DataError("is missing", path=file, remedy="run `pneumoscope validate` first")
    validation: Mapping[str, Any] = read_json(file)
    try:
        page, checklist = _page(validation), _checklist(validation)
    except (KeyError, TypeError) as error:
        raise DataError(f"lacks {error}", path=file, remedy="write it anew with `pneumoscope validate`") from error
    write_text(out / "validation.html", page)
    write_text(out / "checklist.html", checklist)
    return out / "validation.html", out / "checklist.html"


def _page(validation: Mapping[str, Any]) -> str:
    contents = [
        ("summary", "In short"),
        ("flags", "Flags"),
        ("flow", "Who was left out"),
        ("figures", "Figures"),
        ("sites", "Sites"),
        ("groups", "Groups"),
        ("metadata", "Without the picture"),
        ("threshold", "Does the threshold hold?"),
        ("recalibration", "Recalibration"),
        ("size", "Enough images?"),
        ("failures", "Worst errors"),
        ("limits", "Limits"),
        ("reading", "How to read this"),
    ]
    name, source = validation["bundle"]["name"], validation["data"]["source"]
    analysed = validation["flow"]["analysed"]
    subtitle = f"{analysed['images']:,} images of {analysed['patients']:,} patients"
    return html.render(
        "validation.html.j2",
        title=f"Validation of {name} on {source}",
        subtitle=f"{subtitle}. The bundle was not changed; its threshold is the one it came with.",
        contents=contents,
        v=validation,
        sentences=_sentences(validation["headline"]),
        facts=_facts(validation),
        rows=_rows(validation["headline"]["metrics"]),
        charts=_charts(validation),
        singles=[cell for cell in validation["subgroups"]["cells"] if len(cell["group"]) == 1],
        pairs=[cell for cell in validation["subgroups"]["cells"] if len(cell["group"]) > 1],
        gaps=_gaps(validation["subgroups"]["gaps"]),
        words=WORDS,
        most=MOST_ROWS,
        gallery=_gallery(validation),
    )


def _checklist(validation: Mapping[str, Any]) -> str:
    items = validation["checklist"]
    human = sum(bool(item["human"]) for item in items)
    return html.render(
        "checklist.html.j2",
        title="CLAIM 2024 and TRIPOD+AI",
        subtitle=f"{len(items)} items; {human} have something that only a person can add.",
        contents=[("claim", "CLAIM 2024"), ("tripod", "TRIPOD+AI")],
        standards=[
            (key, name, [item for item in items if item["standard"] == name])
            for key, name in (("claim", "CLAIM 2024"), ("tripod", "TRIPOD+AI"))
        ],
        bundle=validation["bundle"],
    )


def _sentences(headline: Mapping[str, Any]) -> list[str]:
    auroc = headline["metrics"]["auroc"]
    low, high = html.bounds(auroc)
    if low is None or high is None:
        ranks = []
    elif low > 0.5:
        ranks = [f"It ranks pneumonia above normal: AUROC {html.figure(auroc)}."]
    elif high < 0.5:
        ranks = [f"It ranks normal above pneumonia: AUROC {html.figure(auroc)}. On these images it misleads."]
    else:
        ranks = [f"It was not shown to tell pneumonia from normal on these images: AUROC {html.figure(auroc)}."]
    return [*ranks, *wording.findings(headline["metrics"]), *_predictive(headline)]


def _predictive(headline: Mapping[str, Any]) -> list[str]:
    for row in headline["at_prevalence"]:
        if row["prevalence"] == 0.1 and row["ppv"]["value"] is not None:
            ppv, npv = (html.figure(row[name], 2) for name in ("ppv", "npv"))
            return [f"Where 10 % have pneumonia, an alarm would be right with probability {ppv}, an all-clear {npv}."]
    return []


def _facts(validation: Mapping[str, Any]) -> list[tuple[str, str]]:
    population = validation["card"].get("population") or {}
    official = validation.get("official")
    rows = [
        ("Bundle", f"{validation['bundle']['name']}, SHA-256 {validation['bundle']['sha256']}"),
        ("Learned from", str(population.get("description") or "not recorded")),
        (
            "Operating point",
            f"{validation['operating_point']}, threshold {html.number(validation['threshold'])}, frozen",
        ),
        ("Images from", f"{validation['data']['source']}, SHA-256 {validation['data']['sha256']}"),
        ("Patients are known by", str(validation["flow"]["patients_are_known_by"])),
        ("With pneumonia", html.percent(validation["headline"]["prevalence"])),
    ]
    if official:
        looks = f"{official['looks']}, by {official['bundles']} bundles; the best flatters"
        rows.append(("Looks at this locked test set", looks))
    return rows


def _rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    meanings = {**wording.METRICS, **_LINES}
    return [
        {
            "heading": meanings[name][0],
            "meaning": meanings[name][1],
            "estimate": metrics[name],
            "method": metrics[name]["method"],
        }
        for name in meanings
        if name in metrics
    ]


def _charts(validation: Mapping[str, Any]) -> dict[str, Any]:
    metrics, curves = validation["headline"]["metrics"], validation["headline"]["curves"]
    charts: dict[str, Any] = {}
    if curves:
        point = figures.operating_point(metrics["recall"]["value"], metrics["specificity"]["value"])
        drawn = {
            "roc": figures.roc([figures.Roc(validation["bundle"]["name"], **curves["roc"], point=point)]),
            "reliability": figures.reliability(curves["reliability"]),
            "decision": validation_figures.decision(curves["decision"]),
        }
        charts |= {name: html.svg(figure) for name, figure in drawn.items()}
    cells = [cell for cell in validation["subgroups"]["cells"] if len(cell["group"]) == 1]
    if rows := {named(cell["group"]): cell["metrics"] for cell in cells}:
        charts["groups"] = _forest(rows, "AUROC by group", metrics["auroc"]["value"])
    within = {"all images": metrics}
    within |= {f"same {entry['column']}": entry for entry in validation["metadata"]["within"]}
    within |= {f"{entry['column']} alone, no picture": entry for entry in validation["metadata"]["alone"]}
    charts["metadata"] = _forest(within, "AUROC for pneumonia", 0.5)
    if any(step["rules"] for step in validation["transfer"]["curve"]):
        charts["transfer"] = html.svg(validation_figures.transfer(validation["transfer"]["curve"]))
    return charts


def _forest(rows: Mapping[str, Mapping[str, Any]], heading: str, reference: float | None) -> str:
    return html.svg(figures.forest(rows, {"auroc": heading}, reference, (BLUE,)))


def named(group: Mapping[str, str]) -> str:
    """Write a cell as `view = AP, sex = F`."""
    return ", ".join(f"{name} = {level}" for name, level in group.items())


def _gaps(gaps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the gaps, flagged ones first, then by size."""
    rows = [{**gap, "name": named(gap["group"]), "word": WORDS[gap["figure"]]} for gap in gaps]
    return sorted(rows, key=lambda gap: (not gap["flagged"], len(gap["group"]), -abs(gap["gap"]["value"] or 0)))


def _gallery(validation: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = []
    headings = (("missed", "Pneumonia that was missed"), ("false_alarms", "False alarms on normal images"))
    for key, heading in headings:
        images = []
        for failure in validation["failures"][key]["shown"]:
            uri, fault = thumbnail(failure["path"], validation["images_from"])
            about = [f"{failure['age_years']:g} years"] if "age_years" in failure else []
            about += [str(failure[name]) for name in ("sex", "view", "site") if name in failure]
            images.append({**failure, "uri": uri, "fault": fault, "about": ", ".join(about)})
        groups.append({"heading": heading, "total": validation["failures"][key]["total"], "images": images})
    return groups
