"""The page of one evaluation: figures with intervals, curves, worst errors, explanations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.files import write_text
from pneumoscope.records import BACTERIAL, NORMAL, PNEUMONIA, SUBTYPES, Floats
from pneumoscope.report import figures, html, wording
from pneumoscope.report.folders import Evaluation, Explained, read_evaluation, thumbnail

WORST = 6
STRESSED = ("auroc", "recall", "specificity", "balanced_accuracy", "ece")
STRESSES = {
    "none": "nothing",
    "spectrum": "noise spectrum",
    "greys": "greys",
    "both": "spectrum and greys",
    "framing": "framing of the lungs",
    "all": "all of them",
}
EXPLAINED = 24

Drawings = Mapping[str, html.Drawing]


def write(folder: Path, name: str) -> Path:
    """Write `report.html` and `figures/*.svg` into an evaluation folder and return the page.

    Raises:
        DataError: `metrics.json` is missing or damaged.
        StorageError: the folder cannot be written.
    """
    evaluation = read_evaluation(folder)
    drawn = drawings(evaluation, name)
    save(drawn, folder / "figures")
    contents = [
        ("summary", "In short"),
        ("figures", "Figures"),
        ("curves", "Curves"),
        ("stressed", "With frame and machine against it"),
        ("errors", "Worst errors"),
        ("subtype", "Bacterial and viral"),
        ("unread", "Not analysed"),
        ("explanations", "Explanations"),
        ("limits", "Limits"),
        ("reading", "How to read this"),
    ]
    text = html.render(
        "evaluation.html.j2",
        title=f"Evaluation of {name}",
        subtitle=_subtitle(evaluation.metrics),
        contents=contents,
        view=view(evaluation, drawn),
        limits=[str(limit) for limit in evaluation.metrics.get("limits") or []],
        provenance=provenance(evaluation),
    )
    write_text(folder / "report.html", text)
    return folder / "report.html"


def save(drawn: Drawings, folder: Path) -> None:
    """Write each figure as a stand-alone SVG into `folder`."""
    for key, drawing in drawn.items():
        write_text(folder / f"{key}.svg", drawing.document)


def view(
    evaluation: Evaluation, drawn: Drawings, key: str = "", worst: int = WORST, explained: int = EXPLAINED
) -> dict[str, Any]:
    """Return all that the templates need to show an evaluation; `key` tells apart several on one page."""
    metrics = evaluation.metrics
    overlap = metrics.get("overlap") or {}
    copies = [f"{key.capitalize()}: {overlap[key]}." for key in ("void", "warning", "note") if overlap.get(key)]
    trust = wording.alarms(evaluation.estimates, metrics.get("prevalence"))
    return {
        "n": metrics.get("n"),
        "findings": wording.findings(evaluation.estimates),
        "void": overlap.get("void"),
        "alarms": [*copies, *unanswered(metrics), *([] if overlap.get("checked") else seen(metrics)), *trust],
        "estimates": evaluation.estimates,
        "rows": headline(evaluation.estimates),
        "drawings": [(drawing.inline(key), drawing.caption) for drawing in drawn.values()],
        "undrawn": _undrawn(evaluation),
        "mismatch": _mismatch(evaluation),
        "stressed": stressed(evaluation),
        "errors": worst_errors(evaluation, worst),
        "errors_known": evaluation.predictions is not None,
        "unread": not_analysed(evaluation),
        "unread_count": metrics.get("not_analysed"),
        "subtype": list(wording.estimates_within(metrics.get("subtype"))),
        "explanations": [_shown(item) for item in evaluation.explanations[:explained]],
        "explanations_left": max(len(evaluation.explanations) - explained, 0),
    }


def unanswered(metrics: Mapping[str, Any]) -> list[str]:
    """Say, beside the figures, how many images are not in them."""
    left_out = int(metrics.get("not_analysed") or 0)
    if not left_out:
        return []
    total = int(metrics.get("n") or 0) + left_out
    return [f"Not analysed, and counted nowhere: {left_out:,} of {total:,} images. They were not found normal."]


def seen(metrics: Mapping[str, Any]) -> list[str]:
    """Say how many of the images are marked as ones to learn from."""
    splits = (metrics.get("data") or {}).get("splits") or {}
    marked = {name: int(splits[name]) for name in ("train", "val") if splits.get(name)}
    if not marked:
        return []
    counts = " and ".join(f"{count:,} marked {name}" for name, count in marked.items())
    return [f"Among these images are {counts}: if the network learned or was tuned on them, the figures flatter."]


def headline(estimates: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the metrics table, known metrics first, with what each says."""
    known = [name for name in wording.METRICS if name in estimates]
    others = [name for name in estimates if name not in wording.METRICS]
    rows = []
    for name in (*known, *others):
        heading, meaning = wording.METRICS.get(name, (name.replace("_", " "), ""))
        method = str((estimates[name] or {}).get("method") or "")
        rows.append({"heading": heading, "meaning": meaning, "estimate": estimates[name], "method": method})
    return rows


def drawings(evaluation: Evaluation, name: str, score_name: str = figures.PROBABILITY) -> Drawings:
    """Draw what the files allow: key (also the file name) -> figure and caption."""
    drawn: dict[str, html.Drawing] = {}
    curve = evaluation.scored(name)
    if curve:
        drawn["roc"] = html.drawing(
            figures.roc([curve.roc()]),
            "ROC curve: every threshold trades missed pneumonia against false alarms. "
            "The dot is the operating point in use; the grey line is guessing.",
        )
    if counts := evaluation.metrics.get("confusion"):
        drawn["confusion"] = html.drawing(
            figures.confusion_matrix(counts),
            "Calls at the operating point: counts, and the share of each row.",
        )
    if bins := evaluation.metrics.get("reliability"):
        drawn["calibration"] = html.drawing(
            figures.reliability(bins, score_name),
            "Reliability in bins of equal size, with 95 % intervals by patient. "
            "On the grey line, stated and observed frequency agree.",
        )
    if groups := _groups(evaluation.analysed()):
        drawn["scores"] = html.drawing(
            figures.score_histogram(groups, evaluation.metrics.get("threshold"), score_name),
            "Scores by class, and by subtype where it is known. Right of the dashed line the network says pneumonia.",
        )
    if curve:
        drawn["precision_recall"] = html.drawing(
            figures.precision_recall([curve]),
            "Precision against recall. The grey line is the prevalence, which guessing would reach.",
        )
    if section := evaluation.metrics.get("selective"):
        drawn["risk_coverage"] = html.drawing(figures.risk_coverage(section, name), _gain(section))
    return drawn


def _gain(section: Mapping[str, Any]) -> str:
    """Say what accuracy gains where the least certain images are left to people."""
    gain, share = section["gain"], f"{section['coverage']:.0%}"
    caption = "Accuracy where only the images whose score lies farthest from the threshold are answered; band: 95 %."
    if gain["value"] is None or None in gain["ci95"]:
        return caption
    low, high = gain["ci95"]
    return f"{caption} At {share} it changes by {gain['value']:+.3f} ({low:+.3f} to {high:+.3f})."


def _groups(rows: pd.DataFrame) -> dict[str, Floats]:
    """Return the scores of normal images, and of pneumonia by subtype as far as it is known."""
    labels = rows["label"].where(~rows["subtype"].isin(SUBTYPES) | (rows["label"] == NORMAL), rows["subtype"])
    order = (NORMAL, PNEUMONIA, *SUBTYPES)
    scores = {name: rows["probability"][labels == name].to_numpy(dtype=float) for name in order}
    if scores[PNEUMONIA].size and scores[BACTERIAL].size:
        scores["PNEUMONIA, subtype unknown"] = scores.pop(PNEUMONIA)
    return {name: values for name, values in scores.items() if values.size}


def stressed(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the page shows of the figures under stress: rows of estimates, sentences, a picture."""
    section = evaluation.metrics.get("stressed") or {}
    picture = evaluation.folder / "figures" / "stress.png"
    names = [name for name in STRESSES if name in section]
    return {
        "draws": section.get("draws"),
        "headings": [wording.METRICS.get(key, (key,))[0] for key in STRESSED],
        "rows": [(STRESSES[name], [section[name][key] for key in STRESSED]) for name in names],
        "names": [STRESSES[name] for name in names if name != "none"],
        "adjusted": _adjusted(section.get("adjusted")),
        "picture": html.image_uri(picture) if names and picture.is_file() else "",
    }


def _adjusted(section: Mapping[str, Any] | None) -> list[str]:
    if not section:
        return []
    shortcut, weighted = (html.figure(section[key]) for key in ("shortcut_auroc", "auroc"))
    sentences = [
        f"Framing and machine alone have AUROC {shortcut}. With images weighted so that these say nothing of the class "
        f"the network has {weighted}; that is worth {section['effective_n']:.0f} images."
    ]
    conflict = [
        f"{wording.METRICS[key][0]} {html.figure(section[f'conflict_{key}'])}"
        for key in ("recall", "specificity")
        if section[f"conflict_{key}"]
    ]
    if conflict:
        sentences.append(
            f"Among the {section['conflict_n']} images of which frame and machine say the wrong class: "
            f"{', '.join(conflict)}."
        )
    return sentences


def worst_errors(evaluation: Evaluation, most: int) -> list[dict[str, Any]]:
    """Return the most confident wrong calls, missed pneumonia and false alarms apart, with thumbnails."""
    rows = evaluation.analysed()
    source = (evaluation.metrics.get("data") or {}).get("source")
    wrong = rows[rows["predicted"].isin((NORMAL, PNEUMONIA)) & (rows["predicted"] != rows["label"])]
    groups = []
    headings = ((PNEUMONIA, "Pneumonia that was missed"), (NORMAL, "False alarms on normal images"))
    for label, heading in headings:
        part = wrong[wrong["label"] == label]
        part = part.sort_values(["probability", "path"], ascending=[label == PNEUMONIA, True])
        images = []
        for path, score, subtype in part[["path", "probability", "subtype"]].head(most).itertuples(index=False):
            uri, fault = thumbnail(path, source)
            images.append({"uri": uri, "fault": fault, "path": path, "score": score, "subtype": subtype})
        groups.append({"heading": heading, "label": label, "total": len(part), "images": images})
    return groups


def not_analysed(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Return (path, outcome, reason) of each image without an answer."""
    if evaluation.predictions is None:
        return []
    rows = evaluation.predictions
    rows = rows[(rows["error"] != "") | rows["abstained"] | rows["probability"].isna()]
    images = []
    for path, error, abstained, reason in rows[["path", "error", "abstained", "reason"]].itertuples(index=False):
        outcome = "not read" if error else "abstained" if abstained else "no score"
        images.append((path, outcome, error or reason or "no reason given"))
    return images


def provenance(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return name and content of what was measured on what."""
    metrics = evaluation.metrics
    bundle, data = metrics.get("bundle") or {}, metrics.get("data") or {}
    threshold = html.number(metrics.get("threshold"))
    return [
        ("Images", html.integer(metrics.get("n"))),
        ("Patients", html.integer(metrics.get("n_patients"))),
        ("With pneumonia", html.percent(metrics.get("prevalence"))),
        ("Operating point", f"{metrics.get('operating_point') or 'not named'}, threshold {threshold}"),
        ("Bundle", _named(bundle, "name")),
        ("Images from", _named(data, "source")),
        ("Patients are known by", str(data.get("patients") or "not recorded")),
        *_looks(metrics.get("official")),
    ]


def _looks(official: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not official:
        return []
    looks, bundles = html.integer(official.get("looks")), html.integer(official.get("bundles"))
    return [("Looks at this locked test set", f"{looks}, by {bundles} different bundles; the best of many flatters")]


def _named(thing: Mapping[str, Any], key: str) -> str:
    return f"{thing.get(key) or 'not recorded'}, SHA-256 {thing.get('sha256') or 'not recorded'}"


def _subtitle(metrics: Mapping[str, Any]) -> str:
    n, patients = html.integer(metrics.get("n")), html.integer(metrics.get("n_patients"))
    left_out = int(metrics.get("not_analysed") or 0)
    rest = f"; {html.integer(left_out)} more were not analysed" if left_out else ""
    return f"{n} radiographs of {patients} patients, {html.percent(metrics.get('prevalence'))} with pneumonia{rest}"


def _undrawn(evaluation: Evaluation) -> str:
    reasons = []
    if evaluation.predictions is None:
        reasons.append("The folder holds no predictions.csv, so no curve could be drawn.")
    elif evaluation.scored("") is None:
        reasons.append("The analysed images are not of both classes, so no curve could be drawn.")
    if not evaluation.metrics.get("reliability"):
        reasons.append(
            "metrics.json holds no reliability by patient, so none is drawn: run pneumoscope evaluate again."
        )
    return " ".join(reasons)


def _mismatch(evaluation: Evaluation) -> str:
    drawn, stated = len(evaluation.analysed()), evaluation.metrics.get("n")
    if evaluation.predictions is None or stated is None or drawn == stated:
        return ""
    return f"The curves are drawn from {drawn:,} images, the table states {stated:,}: the files do not agree."


def _shown(item: Explained) -> dict[str, Any]:
    """Return the original beside its overlay; where either file is missing, neither is shown."""
    whole = item.image.is_file() and item.overlay.is_file()
    return {
        "image": html.image_uri(item.image) if whole else "",
        "overlay": html.image_uri(item.overlay) if whole else "",
        **{key: str(item.facts.get(key) or "") for key in ("path", "label", "case", "method", "layer", "verdict")},
        "score": item.facts.get("probability"),
    }
