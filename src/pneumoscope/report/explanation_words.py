"""What an explanation's figures say, in plain words: of the score, the maps, the zones, and images that are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.report import html, wording

LEAST_AGREEMENT = 0.5
LEAST_ENERGY = 0.5
_CARRIED_NOTE = "threshold carried over"  # the only sign of it in cards written before `carried`
MOVED = 0.05  # a smaller change of the score is not worth a sentence

METHODS: Mapping[str, str] = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "integrated-gradients": "Integrated gradients",
    "occlusion": "Occlusion",
    "lime": "LIME",
    "shap": "SHAP (kernel)",
    "shap-partition": "SHAP (partition)",
}
VERDICTS: Mapping[str, str] = {
    "stable": "Repeated with other random numbers, or with a little noise, the map stays. That does not prove it true.",
    "unstable": "Repeated, the map changes: read no place from it.",
    "not faithful": "Removing what it marks changes the score no more than removing random places: do not trust it.",
    "blank": "There is nothing to show.",
    "not tested": "Not tested for this image whether the map repeats or matters: pneumoscope explain --check tests it.",
}


def method_name(method: str) -> str:
    """Return the name that the literature uses, or the key itself."""
    return METHODS.get(method, method)


def zone_name(zone: str) -> str:
    """Write a key of `lungs.ZONES` as it stands in a sentence."""
    return "everything outside the lungs" if zone == "outside" else f"the {zone} zone"


# --- the score --------------------------------------------------------------------------------------------


def score(value: float | None) -> str:
    """Write a probability with two decimals, never as certain: `> 0.99` and `< 0.01` at the ends."""
    if value is not None and value >= 0.995:
        return f">{html.GAP}0.99"
    if value is not None and value < 0.005:
        return f"<{html.GAP}0.01"
    return html.number(value, 2)


def call(value: float, threshold: float) -> str:
    """Say on which side of the threshold a score lies."""
    if value >= threshold:
        return f"At or above the threshold of {html.number(threshold)}: called {PNEUMONIA.lower()}."
    return f"Under the threshold of {html.number(threshold)}: not called {PNEUMONIA.lower()}."


def meaning(context: Mapping[str, Any]) -> list[str]:
    """Say what the score is, and what its threshold did: where nothing was chosen, or else where it was chosen."""
    population = context.get("population") or {}
    calibration = context.get("calibration") or {}
    prevalence = calibration.get("prevalence", population.get("prevalence"))
    sentences = ["The score is the network's probability of pneumonia, not the extent or severity of disease."]
    if calibration.get("method") and prevalence is not None:
        sentences = [
            f"The score is a probability of pneumonia, calibrated where {html.percent(prevalence, 0)} of the images "
            "had it; where fewer do, a score like this is wrong more often. It says nothing of extent or severity."
        ]
    name = context.get("operating_point")
    if tested := held_out(context):
        findings = wording.findings(tested.get("metrics") or {})
        images = f"{_held_out_images(tested)}, which chose nothing"
    else:
        point = (context.get("operating_points") or {}).get(str(name)) or {}
        estimates = {"recall": point.get("sensitivity"), "specificity": point.get("specificity")}
        findings = wording.findings(estimates, flattered=True)
        images = _images(point) + ("" if _carried(point) else ", which flatters")
    return [*sentences, f"At this threshold ({name}), on {images}: {' '.join(findings)}"] if findings else sentences


def age(context: Mapping[str, Any], image: Mapping[str, Any]) -> str | None:
    """Say that nobody compared the patient's age with those the network learned from, None where that was done."""
    if image.get("age_checked") is not False:
        return None
    if not (ages := context.get("ages")):
        return "The patient's age was not checked: the bundle names no ages."
    return f"Age not known, so not checked: the network is meant for patients of {ages[0]:g} to {ages[1]:g} years."


def limits(context: Mapping[str, Any], image: Mapping[str, Any]) -> list[str]:
    """Return the limits of the card, and what is not certain of this image."""
    stated = [str(limit) for limit in context.get("limits") or []]
    if context.get("ages") and image.get("age_checked") is False:
        stated.append("Where the file gives no age, the gate knows patients of other ages only in part: many pass.")
    return stated


def held_out(context: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what the card says of images that chose nothing, where that is about the threshold in use."""
    tested = context.get("held_out") or {}
    same = all(tested.get(key) == context.get(key) for key in ("operating_point", "threshold"))
    return tested if tested and same else None


def _carried(point: Mapping[str, Any]) -> bool:
    """Say whether a threshold was chosen on other images than its figures are of."""
    return bool(point.get("carried", point.get("note") == _CARRIED_NOTE))


def _images(point: Mapping[str, Any]) -> str:
    chosen = ", threshold carried over" if _carried(point) else " that chose it"
    return f"{html.integer(point.get('n'))} images{chosen}"


def _held_out_images(tested: Mapping[str, Any]) -> str:
    data = tested.get("data") or {}
    parts = " and ".join(data.get("splits") or {})
    source = f"{parts} of {data['source']}" if parts and data.get("source") else str(data.get("source") or "held out")
    return f"{html.integer(tested.get('n'))} images of {html.integer(tested.get('n_patients'))} patients ({source})"


def points(context: Mapping[str, Any], value: float | None) -> list[dict[str, Any]]:
    """Return each operating point of the card, what it would call this score, and what it achieved on which images."""
    rows = []
    tested = held_out(context)
    for name, point in (context.get("operating_points") or {}).items():
        threshold = point.get("threshold")
        called = None if value is None or threshold is None else PNEUMONIA if value >= threshold else NORMAL
        in_use = name == context.get("operating_point")
        sensitivity, specificity, images = point.get("sensitivity"), point.get("specificity"), _images(point)
        if tested and in_use:
            metrics = tested.get("metrics") or {}
            sensitivity, specificity = metrics.get("recall"), metrics.get("specificity")
            images = f"{_held_out_images(tested)}, which chose nothing"
        facts = {"name": name, "threshold": threshold, "called": called, "in_use": in_use, "images": images}
        rows.append({**facts, "sensitivity": sensitivity, "specificity": specificity})
    return rows


def uncertain(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Say that operating points call one score differently, None where they agree."""
    called = {str(row["name"]): row["called"] for row in rows if row["called"]}
    if len(set(called.values())) < 2:
        return None
    sick = " and ".join(name for name, label in called.items() if label == PNEUMONIA)
    well = " and ".join(name for name, label in called.items() if label == NORMAL)
    return f"Uncertain: the score lies between thresholds. {sick} would call it pneumonia, {well} would not."


def crossed(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Say that rule-in is laxer than balanced, as in bundles made before that was ruled out; None where it is not."""
    at = {row["name"]: row["threshold"] for row in rows}
    rule_in, balanced = at.get("rule-in"), at.get("balanced")
    if rule_in is None or balanced is None or rule_in >= balanced:
        return None
    return (
        "In this bundle rule-in is laxer than balanced: the specificity it was to have is reached at a lower threshold."
    )


# --- maps -------------------------------------------------------------------------------------------------


def verdict(entry: Mapping[str, Any]) -> str:
    """Say what a map's verdict means, and the figures it rests on."""
    sentence = VERDICTS.get(str(entry.get("verdict")), "")
    reason = str(entry.get("verdict_reason") or "")
    return f"{sentence} {reason[:1].upper()}{reason[1:]}.".strip() if reason else sentence


def outside(entries: Sequence[Mapping[str, Any]], label: object) -> str | None:
    """Warn of the maps of which most lies outside the lungs, None where there is none, or no pneumonia was called.

    Where it was not called, a map of what speaks for pneumonia explains next to nothing.
    """
    parts = [
        f"{html.percent(1 - share, 0)} of {name}" for name, share in _in_lungs(entries).items() if share < LEAST_ENERGY
    ]
    if not parts or label != PNEUMONIA:
        return None
    return (
        f"Most of the map lies outside the lungs: {', '.join(parts)}. "
        "If that is right, the score rests on something other than lung."
    )


def lungs_replaced(
    entries: Sequence[Mapping[str, Any]], removal: Mapping[str, Any] | None, label: object, threshold: float | None
) -> str | None:
    """Warn where pneumonia is called and the score without both lungs still reaches the threshold, else None."""
    fill = (removal or {}).get("fill")
    value = ((removal or {}).get("together") or {}).get(fill, {}).get("both lungs")
    if label != PNEUMONIA or threshold is None or value is None or value < threshold:
        return None
    by = "a normal child's" if fill == "normal" else f"something else ({fill})"
    still = f"With both lungs replaced by {by}, the network still says pneumonia ({score(value)})"
    inside = [
        f"{html.percent(share, 0)} of {name}" for name, share in _in_lungs(entries).items() if share >= LEAST_ENERGY
    ]
    if not inside:
        return f"{still}: the score does not rest on the lungs alone."
    return f"{still}, though most of the map lies in the lungs ({', '.join(inside)}): map and test disagree."


def _in_lungs(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    shares = {method_name(str(entry.get("method"))): entry.get("energy_in_lungs") for entry in entries}
    return {name: share for name, share in shares.items() if share is not None}


def disagreement(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """Say which maps disagree, rank correlation under a half over 16 x 16 fields; None where none do."""
    parts = []
    for first, second in combinations(entries, 2):
        rho = (first.get("agreement") or {}).get(second.get("method"))
        if rho is not None and rho < LEAST_AGREEMENT:
            names = " and ".join(method_name(str(entry.get("method"))) for entry in (first, second))
            parts.append(f"{names} ({html.number(rho, 2)})")
    if not parts:
        return None
    return (
        f"Methods disagree on the place: {', '.join(parts)}, in rank correlation, less than {LEAST_AGREEMENT}. "
        "They cannot all show the reason."
    )


# --- zones ------------------------------------------------------------------------------------------------


def moved(removal: Mapping[str, Any], fill: str) -> dict[str, float]:
    """Return the scores without those zones that change the score by `MOVED` or more."""
    whole = float(removal.get("score") or 0.0)
    return {zone: value for zone, value in removal["without"][fill].items() if abs(value - whole) >= MOVED}


def removals(removal: Mapping[str, Any], threshold: float | None) -> list[str]:
    """Say what the score would be without single zones, the largest change first."""
    fill, whole = removal.get("fill"), float(removal.get("score") or 0.0)
    if fill is None:
        empty = [float(value) for value in (removal.get("empty") or {}).values()]
        ends = f"{score(min(empty))} to {score(max(empty))}" if empty else "unknown"
        return [
            f"No zone's part in the score of {score(whole)} can be told by removing it: an image that is nothing but "
            f"fill scores {ends}, so that filling adds an opinion where it should take one away."
        ]
    changed = moved(removal, fill)
    sentences = []
    if not changed:
        sentences = [f"No single zone moves the score of {score(whole)} by {MOVED} or more when it is removed."]
    for zone, value in sorted(changed.items(), key=lambda item: -abs(item[1] - whole)):
        verb = "falls" if value < whole else "rises"
        sentence = f"Without {zone_name(zone)} the score {verb} from {score(whole)} to {score(value)}"
        if threshold is not None and (value >= threshold) != (whole >= threshold):
            sentence += ", across the threshold"
        sentences.append(f"{sentence}{_other_fills(removal, zone, fill, whole)}.")
    if fill == "normal" and any(value > whole and zone != "outside" for zone, value in changed.items()):
        sentences.append("Normal lung raised the score, which is no sign of disease: do not trust this test here.")
    if lungs := removal["together"].get(fill):
        scores = ", ".join(f"{score(value)} ({name})" for name, value in lungs.items())
        sentences.append(f"Where all zones of a lung are removed at once it scores {scores}.")
    alone = score((removal.get("empty") or {}).get(fill))
    return [*sentences, f"For comparison, an image that is nothing but the fill ({fill}) scores {alone}."]


def hidden(surrogates: Mapping[str, str | None]) -> str | None:
    """Say which surrogates are not shown, and why, by their names; None where all are."""
    reasons = {name: reason for name, reason in surrogates.items() if reason}
    if not reasons:
        return None
    return (
        f"{' and '.join(reasons)} by zone {'is' if len(reasons) == 1 else 'are'} hidden: {'; '.join(reasons.values())}."
    )


def _other_fills(removal: Mapping[str, Any], zone: str, fill: str, whole: float) -> str:
    others = {name: scores[zone] for name, scores in removal["without"].items() if name != fill}
    if not others:
        return ""
    values = ", ".join(f"{score(value)} with {name}" for name, value in others.items())
    own = removal["without"][fill][zone]
    agree = all((value < whole) == (own < whole) and abs(value - whole) >= MOVED for value in others.values())
    return f" (filled by {fill}; {values}{'' if agree else ': the fills disagree'})"


# --- images that are alike --------------------------------------------------------------------------------


def alike(similar: Mapping[str, Any]) -> list[str]:
    """Say how the labels of the nearest images divide, and what was left out."""
    neighbours = similar.get("neighbours") or []
    if not neighbours:
        return ["No other patient's image was left to compare with."]
    counts = {label: round(share * len(neighbours)) for label, share in (similar.get("shares") or {}).items()}
    labels = ", ".join(f"{count} of {len(neighbours)} are labelled {label}" for label, count in counts.items())
    sentences = [f"Of the nearest images, {labels}. So few are no probability, and their labels may be wrong."]
    left_out = similar.get("left_out") or {}
    if left_out:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in left_out.items())
        sentences.append(f"Nearer or as near, but left out: {reasons}.")
    if not similar.get("patient_known"):
        sentences.append("Neither source nor file name says whose image this is: one below may be of this patient.")
    return sentences
