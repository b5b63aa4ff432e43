"""Alarms: what moved, since when, on which device, which images to look at, and what to do; in a chain of hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.bundle.calibration import at_prevalence
from pneumoscope.errors import DataError, storage_errors
from pneumoscope.files import plain, sha256_bytes, write_text
from pneumoscope.monitoring.detector import Detection, stamp
from pneumoscope.monitoring.errors import KINDS as ERRORS
from pneumoscope.monitoring.kind import (
    COVARIATE,
    MIXED,
    NONE,
    PREVALENCE,
    TRUTH,
    Diagnosis,
    changed_at,
    pulling,
)
from pneumoscope.monitoring.reference import Reference, hashed
from pneumoscope.monitoring.stream import Rows
from pneumoscope.monitoring.streams import ACQUISITION, POPULATION, SCORES, said, values_of

FIRST_HASH = "0" * 64
DECISIONS = ("acknowledged", "fixed", "new reference", "dismissed")
_DEVICE_SHARE = 0.8  # of the change, that one device must carry to be named
_LEAST_OF_DEVICE = 20
_OTHERS = 0.5  # of its change, that the others may show at most


def belongs_to(alarms: Sequence[Mapping[str, Any]], detection: Detection, closed: Mapping[str, str]) -> str | None:
    """Return the open alarm that a detection only repeats: of its family, or any where scores moved; else None.

    `closed`: when a person decided about an alarm, by its name. What is seen after "acknowledged" is no news either.
    """
    for alarm in reversed(alarms):
        decided = closed.get(alarm["alarm"], "")
        open_ = not decided or decided > detection.at
        same = alarm["family"] == detection.family or (detection.family == SCORES and alarm["family"] != "truth")
        if open_ and same:
            return str(alarm["alarm"])
    return None


def named(detection: Detection) -> str:
    """Return the name of the alarm that a detection raises: the same whenever it is raised again."""
    return f"{detection.family}-{detection.row}"


def alarm_of(detection: Detection, reference: Reference, rows: Rows, diagnosis: Diagnosis) -> dict[str, Any]:
    """Return an alarm as plain values.

    `rows`: since the change, oldest first; `diagnosis`: of them. It depends on the journal's rows alone, not on the
    clock or the run.
    """
    places = [place for name in detection.streams if (place := reference.position(name)) is not None]
    columns = [reference.columns[place] for place in places]
    values = values_of(rows, columns)
    usual = np.nanmean(reference.values[:, places], axis=0) if places else np.zeros(0)
    with np.errstate(invalid="ignore"):
        now = _means(values)
    since = detection.since
    device: dict[str, Any] | None = None
    if places:
        since = stamp(rows.at[changed_at(values[:, 0], float(usual[0]))]) or since
        device = _device(rows, values[:, 0], float(usual[0]), reference)
    kind = TRUTH if detection.family == "truth" and diagnosis.kind not in (COVARIATE, MIXED) else diagnosis.kind
    kind = _by_family(kind, detection)
    plain_ones = [index for index, column in enumerate(columns) if not column.name.startswith("axis_")]
    axes = len(columns) - len(plain_ones)
    moved = [said(columns[index], float(usual[index]), float(now[index])) for index in plain_ones[:6]]
    if axes:
        moved.append(f"pictures look otherwise to the network: {axes} of its axes moved")
    look = pulling(reference, rows, detection.streams)
    alarm = {
        "alarm": named(detection), "at": detection.at, "since": since,
        "family": detection.family, "detector": detection.detector, "streams": list(detection.streams),
        "kind": kind, "moved": moved or _errors_said(detection), "did_not_move": _unmoved(diagnosis, reference, rows),
        "unexplained": list(diagnosis.unexplained)[:6],
        "prevalence": diagnosis.prevalence or None, "note": diagnosis.note, "device": device,
        "images": [str(rows.text["key"][index]) for index in look],
        "studies": [str(rows.text["study"][index]) for index in look],
        "evidence": dict(detection.evidence),
    }  # fmt: skip
    said_: dict[str, Any] = plain({**alarm, "action": action(alarm, reference), "diagnosis": diagnosis.kind})
    return said_


def _by_family(kind: str, detection: Detection) -> str:
    """A detector has shown that something moved: `none` is then what the mixture explains, within the margins."""
    if kind == NONE and detection.family in (ACQUISITION, POPULATION):
        return COVARIATE
    return "undecided" if kind == NONE else kind


def action(alarm: Mapping[str, Any], reference: Reference) -> dict[str, str]:
    """Return what to do: `do`, one word for programs, and `words`."""
    kind, family, device = alarm["kind"], alarm["family"], alarm["device"]
    if kind == TRUTH:
        words = (
            "The pictures are as they were, and the answers have become wrong oftener. Read the studies that are named "
            "below again without the answer. If the labels are right, the network is a candidate for retraining."
        )
        return {"do": "retrain", "words": words}
    if kind == PREVALENCE:
        return {"do": "threshold", "words": _threshold_words(alarm["prevalence"], reference)}
    if kind in (COVARIATE, MIXED) and family == POPULATION:
        words = (
            "Other patients come, not only more or fewer ill ones. Measure the network on labelled images of them with "
            "`pneumoscope validate`, and fit it with `pneumoscope adapt`. Do not move the threshold instead."
        )
        return {"do": "adapt", "words": words}
    if kind in (COVARIATE, MIXED):
        where = f"device {device['device']}" if device else "more than one device, or an unnamed one"
        words = (
            f"Images come out differently since {alarm['since'] or 'the start'}, from {where}. Look at the images that "
            "are named below beside older ones, and have the device, its processing and its export checked. If the "
            "change is meant to stay, `pneumoscope adapt` fits the network to it, and a new reference follows. Do not "
            "move the threshold instead."
        )
        return {"do": "fix", "words": words}
    words = (
        "The scores moved, and what is in the journal cannot tell why. Read a random sample of these studies without "
        "the answer before anything is changed."
    )
    if family == ACQUISITION:
        words = (
            "Too few images came since then to say why. Look at those that are named below beside older ones; the "
            "monitor says more once 50 were answered."
        )
    return {"do": "read", "words": words}


def _threshold_words(prevalence: Mapping[str, Any], reference: Reference) -> str:
    then, now = prevalence["then"], prevalence["now"]
    edge = 0.005
    proposed = float(
        at_prevalence([reference.threshold], float(np.clip(now, edge, 1 - edge)), float(np.clip(then, edge, 1 - edge)))[
            0
        ]
    )
    low, high = prevalence["ci95"]
    return (
        "The images of each class look as they did, and their shares have changed: about "
        f"{100 * then:.0f} % pneumonia then, {100 * now:.0f} % now (difference {100 * low:+.0f} to {100 * high:+.0f} "
        "points). Probabilities are still those of the old share. If the threshold was meant as a probability, "
        f"{proposed:.3f} now means what {reference.threshold:.3f} meant; sensitivity and specificity would move with "
        "it. Confirm the share on some labels first: it counts images that look ill."
    )


def _errors_said(detection: Detection) -> list[str]:
    e = detection.evidence
    what = ERRORS.get(detection.streams[0], detection.streams[0])
    said_ = f"{what}: {e['wrong']:.0f} of {e['labels']} labels since then; the bound is {100 * e['bound']:.1f} %"
    return [said_ if e["design"] else f"{said_}. These labels are not a sample: whoever corrects errors can raise it"]


def _device(rows: Rows, values: Any, usual: float, reference: Reference) -> dict[str, Any] | None:
    """Return the device that carries the change in the clearest stream, where one does and the others moved less."""
    names = rows.text["device"]
    away = np.where(np.isfinite(values), values - usual, 0.0)
    total = float(away.sum())
    for name in np.unique(names[names != ""]) if total else ():
        mine = names == name
        carried = float(away[mine].sum()) / total
        others = float(away[~mine].mean() / away[mine].mean()) if mine.sum() < len(rows) else 0.0
        if carried >= _DEVICE_SHARE and mine.sum() >= _LEAST_OF_DEVICE and others < _OTHERS:
            new = hashed(str(name)) not in reference.facts.get("devices", {})
            first = stamp(rows.at[mine][changed_at(values[mine], usual)])
            return {"device": str(name), "images": int(mine.sum()), "carries": carried, "new": new, "since": first}
    return None


def _unmoved(diagnosis: Diagnosis, reference: Reference, rows: Rows) -> list[str]:
    """Return the columns that lie within their margins, and of which nothing is left unexplained."""
    places = [place for name in diagnosis.unmoved if (place := reference.position(name)) is not None]
    columns = [reference.columns[place] for place in places]
    away = np.abs(_means(values_of(rows, columns)) - np.nanmean(reference.values[:, places], axis=0)) if places else []
    return [column.name for column, far in zip(columns, away, strict=True) if far <= column.margin]


def _means(values: Any) -> Any:
    present = np.isfinite(values)
    return np.where(present, values, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)


# --- the chain --------------------------------------------------------------------------------------------


def chained(alarms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return alarms as lines of JSON, each with the SHA-256 of the line before and its own."""
    lines, before = [], FIRST_HASH
    for number, alarm in enumerate(alarms, 1):
        body = {"number": number, "previous": before, **alarm}
        before = sha256_bytes(_canonical(body))
        lines.append(json.dumps({**body, "sha256": before}, ensure_ascii=False, allow_nan=False))
    return lines


def write_chain(path: Path, alarms: Sequence[Mapping[str, Any]]) -> None:
    """Write the chain, which may only have grown.

    Raises:
        DataError: what is there is not its beginning: somebody changed it.
    """
    lines = chained(alarms)
    if path.is_file():
        with storage_errors(path):
            there = path.read_text(encoding="utf-8").splitlines()
        common = min(len(there), len(lines))
        if there[:common] != lines[:common]:
            raise DataError(
                "does not go on from what is there: a line was changed, or the journal was",
                path=path,
                remedy="keep the folder as evidence, and choose another --out",
            )
        if len(there) >= len(lines):
            return
    write_text(path, "".join(f"{line}\n" for line in lines))


def verify_chain(path: Path) -> int:
    """Return how many alarms a chain holds; raises `DataError` where a line was changed, removed or added."""
    with storage_errors(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    before = FIRST_HASH
    for number, line in enumerate(lines, 1):
        body = json.loads(line)
        stated = body.pop("sha256", None)
        if body.get("previous") != before or body.get("number") != number or sha256_bytes(_canonical(body)) != stated:
            raise DataError(f"line {number} was changed", path=path, remedy="compare it with a backup")
        before = stated
    return len(lines)


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
