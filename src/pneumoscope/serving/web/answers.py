"""The answer about an image as a page may show it, in the words of all results, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.numerals import figure, percent
from pneumoscope.records import PNEUMONIA, Prediction
from pneumoscope.serving.people.accounts import ADMIN, Person
from pneumoscope.serving.results import words
from pneumoscope.serving.results.finding import Finding
from pneumoscope.serving.store.tables import DECLINED, QUARANTINED, RUNNING, Job, Result

FLAGGED, CLEAR, NOT_ANALYSED, PENDING, HIDDEN = "flagged", "not-flagged", "not-analysed", "pending", "hidden"


@dataclass(frozen=True, slots=True)
class Answer:
    """`kind`: one of the constants above; only `FLAGGED` and `CLEAR` have a score."""

    kind: str
    headline: str
    detail: str
    caution: str | None = None
    score: str | None = None

    @property
    def scored(self) -> bool:
        """True where the network answered and the user may see it."""
        return self.kind in (FLAGGED, CLEAR)


def answer_of(job: Job, person: Person, bundle: Bundle) -> Answer:
    """Return what a user may see of a job's answer.

    In shadow mode only administrators see answers, so that they do not influence readers.
    """
    if job.state in (DECLINED, QUARANTINED):
        return Answer(NOT_ANALYSED, "Not analysed", job.reason or "not analysed", words.NO_ANSWER)
    if job.result is None:
        detail = "The network is analysing it." if job.state == RUNNING else "It waits for the network."
        return Answer(PENDING, "No answer yet", detail)
    if hidden(job.result, person):
        return Answer(HIDDEN, "Answer kept back", "The gateway runs in shadow mode: answers are recorded, not shown.")
    finding = _finding(job.result, bundle)
    if not words.analysed(finding):
        return Answer(NOT_ANALYSED, "Not analysed", words.score(finding), words.caution(finding))
    kind = FLAGGED if words.flagged(finding) else CLEAR
    score = words.rounded(words.percent(finding))
    return Answer(kind, words.headline(finding), words.score(finding), words.caution(finding), score)


def hidden(result: Result, person: Person) -> bool:
    """Say whether an answer is hidden from a user."""
    return result.shadow and not person.may(ADMIN)


def calibration(result: Result, bundle: Bundle) -> list[tuple[str, str]]:
    """Return facts about the score, as names and values; few where another bundle answered than runs now."""
    rows = [("Answered by", result.bundle), ("Flagged from", percent(result.threshold))]
    if bundle.sha256 != result.bundle_sha256:
        return [*rows, ("Calibration", "unknown: another bundle answered than runs now")]
    card = bundle.card
    fitted = card["calibration"]
    rows.append(("Calibration", f"{fitted['method']}, {fitted['n']} images"))
    point = next((p for p in card["operating_points"].values() if abs(p["threshold"] - result.threshold) < 1e-9), None)
    if point is not None:
        rows.append(("Sensitivity on validation images", figure(point.get("sensitivity"))))
        rows.append(("Specificity on validation images", figure(point.get("specificity"))))
    population = card.get("population", {})
    if description := population.get("description"):
        rows.append(("Learned from", str(description)))
    return rows


def limits(result: Result, bundle: Bundle) -> tuple[str, ...]:
    """Return the limits that the bundle states, none where another bundle answered."""
    return tuple(map(str, bundle.card.get("limits", ()))) if bundle.sha256 == result.bundle_sha256 else ()


def _finding(result: Result, bundle: Bundle) -> Finding:
    card: Mapping[str, Any] = bundle.card if bundle.sha256 == result.bundle_sha256 else {}
    prediction = Prediction(
        path="",
        probability=result.probability,
        label=result.label,
        threshold=result.threshold,
        abstained=result.abstained,
        reason=result.reason,
        bundle=result.bundle,
    )
    return Finding(
        source=Dataset(),
        prediction=prediction,
        image=None,
        heatmap=None,
        bundle=card,
        explained_by=result.explained_by,
        urgent=result.label == PNEUMONIA,
    )
