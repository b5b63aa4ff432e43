"""Flags: every finding that breaks a bound set in advance, with its text and a pointer to the figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pneumoscope.validation.flow import UNANSWERED

Flag = dict[str, str]

LIMIT = 0.05
SLOPE = (0.8, 1.25)
_WORDS = {
    "recall": "sensitivity",
    "specificity": "specificity",
    "auroc": "AUROC",
    "mean_error": "mean error of the probability",
    "prevalence": "share of pneumonia",
}


def flags(validation: Mapping[str, Any]) -> list[Flag]:
    """Return the flags of a validation: `kind`, `where`, `text` and the `pointer` (RFC 6901) to the figure."""
    return [
        *_overlap(validation),
        *_unanswered(validation),
        *_headline(validation),
        *_expected(validation),
        *_gaps(validation),
        *_metadata(validation),
    ]


def _flag(kind: str, where: str, text: str, pointer: str) -> Flag:
    return {"kind": kind, "where": where, "text": text, "pointer": pointer}


def _overlap(validation: Mapping[str, Any]) -> list[Flag]:
    copies = validation.get("overlap") or {}
    kinds = {"warning": "learned from", "note": "not checked"}
    return [_flag(kind, "all images", copies[key], f"/overlap/{key}") for key, kind in kinds.items() if copies.get(key)]


def _unanswered(validation: Mapping[str, Any]) -> list[Flag]:
    steps = (validation.get("flow") or {}).get("left_out") or []
    for index, step in enumerate(steps):
        images = step["images"] + validation["headline"]["n"]
        if step["key"] == UNANSWERED and step["images"] > LIMIT * images:
            text = (
                f"{step['images']} of {images} images were {step['step']} "
                f"({100 * step['images'] / images:.0f} %): every figure is of the others"
            )
            return [_flag("not analysed", "all images", text, f"/flow/left_out/{index}/images")]
    return []


def _headline(validation: Mapping[str, Any]) -> list[Flag]:
    metrics, out = validation["headline"]["metrics"], []
    auroc, slope, ici = metrics["auroc"], metrics["slope"], metrics["ici"]
    if auroc["ci95"][0] is not None and auroc["ci95"][0] <= 0.5:
        says = f"AUROC {auroc['value']:.3f}, interval {auroc['ci95'][0]:.3f} to {auroc['ci95'][1]:.3f}, includes .5: "
        out.append(
            _flag(
                "no discrimination",
                "all images",
                says + "on these images it was not shown to separate pneumonia from normal",
                "/headline/metrics/auroc",
            )
        )
    low, high = slope["ci95"]
    if low is not None and (high < SLOPE[0] or low > SLOPE[1]):
        way = "too extreme" if high < SLOPE[0] else "too timid"
        says = "the score does not follow the odds of pneumonia" if low <= 0 else f"probabilities are {way}"
        text = f"calibration slope {slope['value']:.2f} ({low:.2f} to {high:.2f}): {says}"
        out.append(_flag("calibration", "all images", text, "/headline/metrics/slope"))
    if (ici["ci95"][0] or 0) > LIMIT:
        text = f"stated and observed frequency differ by {100 * ici['value']:.0f} points on average"
        out.append(_flag("calibration", "all images", text, "/headline/metrics/ici"))
    return out


def _expected(validation: Mapping[str, Any]) -> list[Flag]:
    out = []
    for name, stated in (validation.get("expected") or {}).items():
        measured = validation["headline"]["metrics"]["recall" if name == "sensitivity" else name]
        if measured["ci95"][1] is not None and measured["ci95"][1] < stated["value"] - LIMIT:
            text = (
                f"{name} {100 * measured['value']:.0f} % at the frozen threshold, where the bundle states "
                f"{100 * stated['value']:.0f} %"
            )
            pointer = f"/headline/metrics/{'recall' if name == 'sensitivity' else name}"
            out.append(_flag("threshold does not transfer", "all images", text, pointer))
    return out


def _gaps(validation: Mapping[str, Any]) -> list[Flag]:
    out = []
    for index, gap in enumerate(validation["subgroups"]["gaps"]):
        if not gap["flagged"] or gap["explained_by"]:
            continue
        where = " and ".join(f"{name} = {level}" for name, level in gap["group"].items())
        low, high = gap["gap"]["ci95"]
        text = (
            f"{_WORDS[gap['figure']]} {gap['here']:.2f} here, {gap['rest']:.2f} elsewhere: "
            f"a gap of {100 * gap['gap']['value']:+.0f} points ({100 * low:+.0f} to {100 * high:+.0f})"
        )
        if matched := gap.get("matched"):
            text += f", {100 * matched['value']:+.0f} after matching for prevalence and age"
        kind = "prevalence" if gap["figure"] == "prevalence" else "gap"
        out.append(_flag(kind, where, text, f"/subgroups/gaps/{index}"))
    return out


def _metadata(validation: Mapping[str, Any]) -> list[Flag]:
    out, section = [], validation["metadata"]
    for index, entry in enumerate(section["within"]):
        if entry["flagged"]:
            column, headline, auroc = entry["column"], entry["headline"], entry["auroc"]["value"]
            shortcut = entry["drop"]["value"] > 0 and headline > 0.5
            effect = "part of the headline comes from" if shortcut else "the headline is distorted by"
            text = f"AUROC {headline:.3f} among all, {auroc:.3f} among images of one value: {effect} the column"
            out.append(_flag("shortcut" if shortcut else "confounded", column, text, f"/metadata/within/{index}"))
    for key in ("alone", "by_site"):
        for index, entry in enumerate(section[key]):
            if entry["flagged"]:
                where = entry["column"] + (f" at site {entry['site']}" if "site" in entry else "")
                auroc = entry["auroc"]["value"]
                text = f"predicts the label without the image: AUROC {auroc:.3f}"
                if entry["names_the_label"]:
                    text = f"is the label under another name (AUROC {auroc:.3f})"
                out.append(_flag("metadata tells the label", where, text, f"/metadata/{key}/{index}"))
    return out
