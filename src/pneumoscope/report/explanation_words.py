"""What an explanation's figures say, in plain words: of the score, the maps, the zones, and images that are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.report import html, wording

LEAST_AGREEMENT = 0.5
LEAST_ENERGY = 0.5
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
    "not tested": "Nobody has tested whether this map repeats or matters; explain with --check does.",
}


def method_name(method: str) -> str:
    """Return the name that the literature uses, or the key itself."""
    return METHODS.get(method, method)


def zone_name(zone: str) -> str:
    """Write a key of `lungs.ZONES` as it stands in a sentence."""
    return "everything outside the lungs" if zone == "outside" else f"the {zone} zone"


# --- the score --------------------------------------------------------------------------------------------


def call(score: float, threshold: float) -> str:
    """Say on which side of the threshold a score lies."""
    if score >= threshold:
        return f"At or above the threshold of {html.number(threshold)}: called {PNEUMONIA.lower()}."
    return f"Under the threshold of {html.number(threshold)}: not called {PNEUMONIA.lower()}."


def meaning(context: Mapping[str, Any]) -> list[str]:
    """Say what the score is, and what its threshold did where it was chosen."""
    population = context.get("population") or {}
    prevalence = population.get("prevalence")
    said = ["The score is the network's probability of pneumonia, not the extent or severity of disease."]
    if (context.get("calibration") or {}).get("method") and prevalence is not None:
        said = [
            f"The score is a probability of pneumonia, calibrated where {html.percent(prevalence, 0)} of the images "
            "had it; where fewer do, a score like this is wrong more often. It says nothing of extent or severity."
        ]
    point = (context.get("operating_points") or {}).get(str(context.get("operating_point"))) or {}
    found = wording.findings({"recall": point.get("sensitivity"), "specificity": point.get("specificity")})
    if found:
        where = f"At this threshold ({context['operating_point']}), on the {html.integer(point.get('n'))} images it "
        said.append(f"{where}was chosen on, which flatters: {' '.join(found)}")
    return said


def points(context: Mapping[str, Any], score: float | None) -> list[dict[str, Any]]:
    """Return each operating point of the card, and what it would call this score."""
    rows = []
    for name, point in (context.get("operating_points") or {}).items():
        threshold = point.get("threshold")
        called = None if score is None or threshold is None else PNEUMONIA if score >= threshold else NORMAL
        rows.append(
            {
                "name": name,
                "threshold": threshold,
                "sensitivity": point.get("sensitivity"),
                "specificity": point.get("specificity"),
                "called": called,
                "in_use": name == context.get("operating_point"),
            }
        )
    return rows


def uncertain(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Say that operating points call one score differently, None where they agree."""
    called = {str(row["name"]): row["called"] for row in rows if row["called"]}
    if len(set(called.values())) < 2:
        return None
    sick = " and ".join(name for name, label in called.items() if label == PNEUMONIA)
    well = " and ".join(name for name, label in called.items() if label == NORMAL)
    return f"Uncertain: the score lies between thresholds. {sick} would call it pneumonia, {well} would not."


# --- maps -------------------------------------------------------------------------------------------------


def verdict(entry: Mapping[str, Any]) -> str:
    """Say what a map's verdict means, and the figures it rests on."""
    known = VERDICTS.get(str(entry.get("verdict")), "")
    reason = str(entry.get("verdict_reason") or "")
    return f"{known} {reason[:1].upper()}{reason[1:]}.".strip() if reason else known


def outside(entry: Mapping[str, Any]) -> str | None:
    """Warn where most of a map lies outside the lungs."""
    share = entry.get("energy_in_lungs")
    if share is None or share >= LEAST_ENERGY:
        return None
    return (
        f"{html.percent(1 - share, 0)} of the {method_name(str(entry.get('method')))} map lies outside the lungs. "
        "If it is right, the score rests mostly on something other than lung."
    )


def disagreements(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which maps disagree: rank correlation under a half over 16 x 16 fields."""
    said = []
    for one, other in combinations(entries, 2):
        rho = (one.get("agreement") or {}).get(other.get("method"))
        if rho is not None and rho < LEAST_AGREEMENT:
            names = " and ".join(method_name(str(entry.get("method"))) for entry in (one, other))
            said.append(
                f"Methods disagree: {names} mark different places (rank correlation {html.number(rho, 2)}, "
                f"less than {LEAST_AGREEMENT}). At least one of them does not show the reason."
            )
    return said


# --- zones ------------------------------------------------------------------------------------------------


def removals(told: Mapping[str, Any], threshold: float | None) -> list[str]:
    """Say what the score would be without single zones, the largest change first."""
    fill, score = told.get("fill"), float(told.get("score") or 0.0)
    if fill is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in (told.get("refused") or {}).items())
        return [f"No zone's part in the score can be told by removing it, because no fill serves. {reasons}."]
    without = told["without"][fill]
    moved = {zone: value for zone, value in without.items() if abs(value - score) >= MOVED}
    if not moved:
        return [f"No single zone moves the score of {html.number(score, 2)} by {MOVED} or more when it is removed."]
    said = []
    for zone, value in sorted(moved.items(), key=lambda item: -abs(item[1] - score)):
        verb = "falls" if value < score else "rises"
        sentence = f"Without {zone_name(zone)} the score {verb} from {html.number(score, 2)} to {html.number(value, 2)}"
        if threshold is not None and (value >= threshold) != (score >= threshold):
            sentence += ", across the threshold"
        said.append(f"{sentence}{_other_fills(told, zone, fill, score)}.")
    return said


def _other_fills(told: Mapping[str, Any], zone: str, fill: str, score: float) -> str:
    others = {name: scores[zone] for name, scores in told["without"].items() if name != fill}
    if not others:
        return ""
    values = ", ".join(f"{html.number(value, 2)} with {name}" for name, value in others.items())
    own = told["without"][fill][zone]
    agree = all((value < score) == (own < score) and abs(value - score) >= MOVED for value in others.values())
    return f" (filled by {fill}; {values}{'' if agree else ': the fills disagree'})"


# --- images that are alike --------------------------------------------------------------------------------


def alike(similar: Mapping[str, Any]) -> list[str]:
    """Say how the labels of the nearest images divide, and what was left out."""
    neighbours = similar.get("neighbours") or []
    if not neighbours:
        return ["No other patient's image was left to compare with."]
    counts = {label: round(share * len(neighbours)) for label, share in (similar.get("shares") or {}).items()}
    told = ", ".join(f"{count} of {len(neighbours)} are labelled {label}" for label, count in counts.items())
    said = [f"Of the nearest images, {told}. So few are no probability, and their labels may be wrong."]
    left_out = similar.get("left_out") or {}
    if left_out:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in left_out.items())
        said.append(f"Nearer or as near, but left out: {reasons}.")
    if not similar.get("patient_known"):
        said.append("Neither the source nor the file name tells whose image this is: one below may be of this patient.")
    return said
