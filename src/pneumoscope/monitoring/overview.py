"""What `monitoring.json` says: each family in one line of words, and the figures that the page draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pneumoscope.files import plain
from pneumoscope.monitoring import performance
from pneumoscope.monitoring.detector import SHARES, Budget, Detector
from pneumoscope.monitoring.errors import Errors, beside
from pneumoscope.monitoring.labels import Judged
from pneumoscope.monitoring.reference import Reference
from pneumoscope.monitoring.sequential import Sequential
from pneumoscope.monitoring.stream import Stream
from pneumoscope.monitoring.streams import ACQUISITION, FAMILIES, POPULATION, SCORES, TRUTH, as_json
from pneumoscope.monitoring.volume import Volume
from pneumoscope.monitoring.windows import Windows
from pneumoscope.version import __version__

BLIND = (
    performance.BLIND,
    "A change that began before the reference is what the monitor takes for usual.",
    "A change that grows slowly is seen by the windows alone, and only once it exceeds its margin.",
    "A change in a group that is a few per cent of the images is diluted by the others.",
    "It sees what scores, embedding, header and picture facts measure: a shift that keeps all of them is not seen.",
)
_WORDS = {
    ACQUISITION: "how images are taken: pictures, headers, images without an answer",
    POPULATION: "who comes: age, sex, views",
    SCORES: "what the network answers",
    TRUTH: "whether the answers are right",
}


def overview(
    reference: Reference,
    source: str,
    budget: Budget,
    detectors: Mapping[str, Detector],
    errors: Errors,
    labels: Judged,
    volume: Volume,
    alarms: Sequence[Mapping[str, Any]],
    superseded: Sequence[str],
    stream: Stream,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Return all that the page shows, as plain values; nothing in it depends on when or how often the monitor ran."""
    renewed = {"decision": "new reference", "why": "another reference was given", "at": ""}
    decided = dict.fromkeys(superseded, renewed)
    for alarm, decision, why, at in stream.decisions():
        decided[alarm] = {"decision": decision, "why": why, "at": at}
    listed = [{**alarm, "decision": decided.get(alarm["alarm"])} for alarm in alarms]
    open_ = [alarm for alarm in listed if alarm["decision"] is None]
    windows, bets = detectors["windows"], detectors["sequential"]
    assert isinstance(windows, Windows)
    assert isinstance(bets, Sequential)
    history = windows.history
    said: dict[str, Any] = plain(
        {
            "pneumoscope": __version__,
            "journal": stream.path.name,
            "until": volume.last,
            "status": "alarm" if open_ else "quiet",
            "open": [alarm["alarm"] for alarm in open_],
            "families": {name: _family(name, open_, reference, history, labels, errors) for name in FAMILIES},
            "alarms": listed,
            "reference": {
                "source": source, "sha256": reference.identity, "bundle": reference.bundle,
                "bundle_sha256": reference.bundle_sha256, "threshold": reference.threshold, "facts": reference.facts,
                "errors": reference.errors,
                "columns": [as_json(column) for column in reference.columns if not column.name.startswith("axis_")],
                "axes": sum(column.name.startswith("axis_") for column in reference.columns),
            },
            "budget": {
                "alarms_per_year": budget.alarms_per_year, "shares": SHARES, "images_a_year": budget.images_a_year,
                "labels_a_year": budget.labels_a_year, "window": budget.window, "alpha": budget.alpha(0),
                "sequential_threshold": bets.threshold, "errors_threshold": errors.threshold,
                "note": _pace(volume, budget),
            },
            "windows": history,
            "waiting": windows.waiting,
            "sequential": _bets(bets),
            "labels": {
                "all": performance.figures(labels) if len(labels) else None,
                "months": performance.by_month(labels, volume.called_by_month()),
                "refused": {reason: n for reason, n in labels.refused.items() if n},
                "detectors": beside(errors), "blind": performance.BLIND,
            },
            "volume": {"days": volume.days, "gaps": volume.gaps},
            "left_aside": {
                "answers of other bundles": counts["other_bundles"],
                "images taken more than 30 days before their answer": counts["from_archive"],
            },
            "blind": BLIND,
        }
    )  # fmt: skip
    return said


def _family(
    name: str,
    open_: Sequence[Mapping[str, Any]],
    reference: Reference,
    history: Sequence[Mapping[str, Any]],
    labels: Judged,
    errors: Errors,
) -> dict[str, str]:
    """Return `state`, one of alarm, quiet, no data, and its line of words."""
    mine = [alarm for alarm in open_ if alarm["family"] == name]
    watched = [column for column in reference.columns if column.family == name and not column.name.startswith("axis_")]
    judged = sum("p" in window for window in history)
    state = "no data"
    last: Mapping[str, Any] = next((window for window in reversed(history) if "p" in window), {})
    too = [column.words for column in watched if column.name in last.get("moved", ())]
    if not mine and open_ and too:
        state, line = "alarm", f"Moved too, in the last window: {', '.join(too)}. See the alarm that is open."
    elif mine:
        state, line = "alarm", f"Since {mine[-1]['since'] or 'the start'}: {mine[-1]['moved'][0]}."
    elif name == TRUTH and not len(labels):
        line = f"No label was given. {performance.BLIND}"
    elif name == TRUTH and not errors.bounds:
        line = "The reference says nothing of errors: fit it with labels, or give the bundle with --bundle."
    elif name == TRUTH:
        state, line = "quiet", f"{len(labels):,} labelled studies; errors are within the bounds."
    elif not watched:
        line = "The reference holds no such fact."
    elif not judged:
        state, line = "quiet", f"{len(watched)} streams are watched; no window is full yet."
    else:
        state, line = "quiet", f"{len(watched)} streams within their margins in the last of {judged:,} windows."
    return {"state": state, "what": _WORDS[name], "line": line}


def _bets(bets: Sequential) -> list[dict[str, Any]]:
    sums = bets.capital.sum(axis=1)
    return [
        {"stream": column.name, "statistic": float(value), "threshold": bets.threshold}
        for column, value in zip(bets.columns, sums, strict=True)
    ]


def _pace(volume: Volume, budget: Budget) -> str:
    """Say where more images come than were planned: bets then spend more than the budget."""
    days = list(volume.days)
    if len(days) < 28:
        return ""
    span = (np.datetime64(days[-1]) - np.datetime64(days[0])) / np.timedelta64(1, "D") + 1
    pace = sum(counts[0] for counts in volume.days.values()) / float(span) * 365.25
    if pace <= 1.25 * budget.images_a_year:
        return ""
    return (
        f"{pace:,.0f} images a year come, {budget.images_a_year:,.0f} were planned: false alarms grow in proportion. "
        f"Give --images-a-day {pace / 365.25:.0f}."
    )
