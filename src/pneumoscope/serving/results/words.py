"""The result in words, the same in every object: no claim beyond the measurement, never an all-clear."""

from __future__ import annotations

from pneumoscope.records import PNEUMONIA, RESEARCH_ONLY
from pneumoscope.serving.results.finding import Finding

NOTICE = "FOR RESEARCH USE ONLY - NOT FOR DIAGNOSIS"
NO_ANSWER = "This says nothing about pneumonia: read the radiograph as if no software had been there."
_NOT_ANALYSED = "not analysed, because "


def analysed(finding: Finding) -> bool:
    """Say whether the network answered: only then is there a score."""
    prediction = finding.prediction
    return prediction.probability is not None and not prediction.abstained and prediction.error is None


def flagged(finding: Finding) -> bool:
    """Say whether the score reached the threshold."""
    return analysed(finding) and finding.prediction.label == PNEUMONIA


def calibrated(finding: Finding) -> bool:
    """Say whether the bundle's scores were fitted to be probabilities."""
    method = (finding.bundle.get("calibration") or {}).get("method")
    return bool(method) and method != "none"


def percent(finding: Finding) -> float:
    """Return the score in percent, two decimals; only of what was analysed."""
    assert finding.prediction.probability is not None
    return round(100 * float(finding.prediction.probability), 2)


def reason(finding: Finding) -> str:
    """Return why there is no answer, without the name of the file, which may identify the patient."""
    prediction = finding.prediction
    text = prediction.reason or prediction.fault or "there is no answer"
    text = " ".join(text.replace(prediction.path or "\x00", "the image").split())
    return text if text.startswith(_NOT_ANALYSED) else _NOT_ANALYSED + text


def headline(finding: Finding) -> str:
    """Return the result in a few words, such as `Pneumonia suspected`."""
    if not analysed(finding):
        return "NOT ANALYSED"
    return "Pneumonia suspected" if flagged(finding) else "Not flagged"


def score(finding: Finding) -> str:
    """Return the score with its threshold, or why there is none."""
    if not analysed(finding):
        return reason(finding)
    kind = "Probability of pneumonia" if calibrated(finding) else "Score for pneumonia (not a probability)"
    threshold = f"{100 * finding.prediction.threshold:.1f} %"
    return f"{kind} {rounded(percent(finding))}; flagged from {threshold}"


def rounded(value: float) -> str:
    """Write a percentage so that none reads as certain: `under 1 %`, `87 %`, `over 99 %`."""
    if value < 1:
        return "under 1 %"
    return "over 99 %" if value > 99 else f"{value:.0f} %"


def caution(finding: Finding) -> str:
    """Return what the reader must not conclude."""
    if not analysed(finding):
        return NO_ANSWER
    if flagged(finding):
        return "Software may be wrong: the radiograph decides."
    return "A score under the threshold does not rule out pneumonia."


def explanation(finding: Finding) -> str | None:
    """Return what the marked region shows, None without one."""
    if not flagged(finding) or finding.heatmap is None:
        return None
    how = f" ({finding.explained_by})" if finding.explained_by else ""
    return f"Marked: where the network's evidence lies{how}. This is not an outline of disease."


def algorithm(finding: Finding) -> str:
    """Return which software answered, with the first twelve digits of the bundle's SHA-256."""
    bundle = finding.bundle
    return f"Pneumoscope {bundle.get('pneumoscope', '')}, {bundle.get('name', '')}@{str(bundle.get('sha256', ''))[:12]}"


def sentences(finding: Finding) -> list[str]:
    """Return the whole result as sentences, the notice last."""
    texts = [headline(finding), score(finding), caution(finding), explanation(finding), algorithm(finding)]
    return [*(text for text in texts if text), RESEARCH_ONLY]
