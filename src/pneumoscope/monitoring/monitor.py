"""One run of the monitor: from the last row seen to `monitoring.json`, killed anywhere without a trace in the result.

    state/state.json      detectors, alarms, counts by day: one file, written whole after each piece of rows
    state/reference.json  the first accepted period, where no reference was given
    alarms.jsonl          a line for each alarm, chained by hashes
    monitoring.json       what the page shows

What a run writes depends on the journal's rows, the reference and the budget alone. So rows that are read again after
a crash give the same state and the same alarms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.errors import DataError
from pneumoscope.files import out_folder, plain, read_json, sha256_bytes, write_json
from pneumoscope.monitoring import fitting
from pneumoscope.monitoring.alarms import alarm_of, belongs_to, named, write_chain
from pneumoscope.monitoring.detector import DAY_OF_IMAGES, Budget, Detection, Detector
from pneumoscope.monitoring.errors import Errors
from pneumoscope.monitoring.kind import diagnose
from pneumoscope.monitoring.labels import Judged, labels_of
from pneumoscope.monitoring.overview import overview
from pneumoscope.monitoring.reference import Reference, hashed, read, write
from pneumoscope.monitoring.sequential import Sequential
from pneumoscope.monitoring.stream import OLD, PIECE, Rows, Stream
from pneumoscope.monitoring.volume import Volume
from pneumoscope.monitoring.windows import Windows
from pneumoscope.records import Bools

SCHEMA = 1
DETECTORS: Mapping[str, Callable[[Reference, Budget, Any], Detector]] = {
    "windows": Windows,
    "sequential": Sequential,
}
EXPLAINED = 1_000  # rows since a change that are looked at
_UNTRACED: Mapping[str, int] = {"rows": 0, "other_bundles": 0, "from_archive": 0}

Saved = Callable[[], None]


def monitor(
    journal: Path,
    out: Path,
    *,
    reference: Path | None = None,
    bundle: Path | None = None,
    alarms_per_year: float = 1.0,
    images_a_day: float | None = None,
    size: int = 250,
    piece: int = PIECE,
) -> dict[str, Any]:
    """Read what is new in a journal, and write the state of the monitor into a folder.

    Args:
        journal: only read.
        out: folder of the monitor; its state goes on from the last run.
        reference: of `fit`; else the bundle's own, else the first accepted period of the journal.
        bundle: whose card says how often it errs.
        alarms_per_year: false alarms allowed, all streams together.
        images_a_day: planned; of the reference's period by default, else 40.
        size: images of a window.
        piece: rows that are read at once; changes nothing else.

    Returns:
        what was written to `monitoring.json`; `status` is `alarm` while an alarm is open.

    Raises:
        DataError: the journal, the reference or the state cannot be used; the message has numbers and the remedy.
    """
    stream = Stream(journal)
    out_folder(out)
    folder = out_folder(out / "state")
    usual, source = _reference(stream, folder, reference, bundle)
    pace = images_a_day or usual.facts.get("images_a_day") or DAY_OF_IMAGES
    budget = Budget(alarms_per_year=alarms_per_year, images_a_year=365.25 * pace, size=size)
    run = _Run(stream, usual, budget, folder / "state.json")
    run.answers(piece)
    labels = run.labels()
    result = {
        "monitoring": SCHEMA,
        **overview(
            usual,
            source,
            budget,
            run.detectors,
            run.errors,
            labels,
            run.volume,
            run.explained_anew(),
            run.superseded,
            stream,
            run.counts,
        ),
    }
    write_chain(out / "alarms.jsonl", run.alarms)
    write_json(out / "monitoring.json", result)
    return result


class _Run:
    """The detectors of one run, their state, and the alarms."""

    def __init__(self, stream: Stream, reference: Reference, budget: Budget, file: Path) -> None:
        self.stream, self.reference, self.budget, self.file = stream, reference, budget, file
        state = _stored(file, reference, budget)
        self.detectors = {name: make(reference, budget, state.get(name)) for name, make in DETECTORS.items()}
        self.errors = Errors(reference, budget, state.get("errors"))
        self.volume = Volume(state.get("volume"))
        self.alarms: list[dict[str, Any]] = list(state.get("alarms", ()))
        self.superseded: list[str] = list(state.get("superseded", ()))
        self.counts: dict[str, int] = dict(state.get("counts", _UNTRACED))
        self._start = _start(stream, reference)
        self._decided = {alarm: at for alarm, decision, _, at in stream.decisions() if decision != "acknowledged"}
        self._decided |= dict.fromkeys(self.superseded, "0")  # before any time

    def answers(self, piece: int) -> None:
        """Feed the answers that were appended since, piece by piece."""
        begin = max(self._start, min(detector.after for detector in self.detectors.values()))
        seen, newest = 0, ""
        for rows in self.stream.pieces(begin, size=piece):
            seen += len(rows)
            newest = rows.newest_bundle or newest
            mine = rows.of_bundle(self.reference.bundle_sha256)
            old = mine & self._from_archive(rows)
            new = rows.row > self.volume.after
            self.counts["rows"] += int(new.sum())
            self.counts["other_bundles"] += int((new & ~mine).sum())
            self.counts["from_archive"] += int((new & old).sum())
            mine &= ~old
            chosen = rows.take(mine)
            self._refuse_other_site(chosen)
            self.volume.step(rows)
            found = (
                [found for detector in self.detectors.values() for found in detector.step(chosen)] if mine.any() else []
            )
            for detection in sorted(found, key=lambda each: (each.row, each.detector)):
                self._raise(detection)
            self._save()
        if newest and newest != self.reference.bundle_sha256:
            raise DataError(
                f"its last answer is of the bundle {newest[:12]}, the reference of {self.reference.bundle_sha256[:12]}",
                path=self.stream.path,
                remedy="make a reference for the new bundle with `pneumoscope monitor fit`",
            )
        if self.counts["rows"] == 0 and not seen:
            end = self.reference.facts.get("last") or "no known day"
            raise DataError(
                f"holds no answer after the reference, which ends on {end}",
                path=self.stream.path,
                remedy="wait for images, or fit a reference of an earlier period with --to",
            )

    def labels(self) -> Judged:
        """Feed the labels that were appended since."""
        labels = labels_of(self.stream, self.reference.bundle_sha256)
        for detection in self.errors.step(labels):
            self._raise(detection, labels)
        self._save()
        return labels

    def _raise(self, detection: Detection, labels: Judged | None = None) -> None:
        known = belongs_to(self.alarms, detection, self._decided)
        if known is not None or any(alarm["alarm"] == named(detection) for alarm in self.alarms):
            return
        first, last = (detection.first, detection.row) if labels is None else self._rows_of(detection)
        self.alarms.append(self._explained(detection, first, last))

    def _explained(self, detection: Detection, first: int, last: int) -> dict[str, Any]:
        """Return the alarm of a detection, explained by the rows `first` to `last`, at most the first 1,000."""
        rows = self.stream.between(max(first, self._start + 1), last, EXPLAINED)
        rows = rows.take(rows.of_bundle(self.reference.bundle_sha256) & ~self._from_archive(rows))
        diagnosis = diagnose(self.reference, rows, seed=self.budget.seed)
        alarm = alarm_of(detection, self.reference, rows, diagnosis)
        return {**alarm, "detection": plain(asdict(detection)), "rows": [first, last]}

    def explained_anew(self) -> list[dict[str, Any]]:
        """Return the alarms as they stand now: an open one by all images since, not by the few that raised it."""
        last = max(self.volume.after, self._start)
        found = []
        for alarm in self.alarms:
            if alarm["alarm"] in self._decided or last <= alarm["rows"][1]:
                found.append(alarm)
                continue
            now = self._explained(Detection(**alarm["detection"]), alarm["rows"][0], last)
            found.append({**now, "when_raised": {"kind": alarm["kind"], "moved": alarm["moved"]}})
        return found

    def _rows_of(self, detection: Detection) -> tuple[int, int]:
        """Return the rows of the answers since the labels' images began to be wrong, and now."""
        since = np.datetime64(detection.since.rstrip("Z"), "ms")
        for piece in self.stream.pieces(self._start, light=True):
            late = piece.row[piece.at >= since]
            if late.size:
                return int(late[0]), self.volume.after
        return self.volume.after, self.volume.after

    def _from_archive(self, rows: Rows) -> Bools:
        """Return which images were taken long before their answer: an import must not look like today."""
        usual = self.reference.facts.get("from_archive", 0.0) > 0.5
        return np.zeros(len(rows), bool) if usual else np.nan_to_num(rows.number["delay"], nan=0.0) > OLD

    def _refuse_other_site(self, rows: Rows) -> None:
        usual = set(self.reference.facts.get("sites", {}))
        here = {hashed(str(name)) for name in np.unique(rows.text["site"]) if name}
        if usual and here and not usual & here:
            raise DataError(
                f"is of another site than the reference: {len(here)} here, {len(usual)} there, none in common",
                path=self.stream.path,
                remedy="fit a reference of this site's own images",
            )

    def _save(self) -> None:
        state = {
            "of": _identity(self.reference, self.budget),
            "reference": self.reference.identity,
            **{name: detector.state() for name, detector in self.detectors.items()},
            "errors": self.errors.state(),
            "volume": self.volume.state(),
            "alarms": self.alarms,
            "superseded": self.superseded,
            "counts": self.counts,
        }
        write_json(self.file, state)


def _identity(reference: Reference, budget: Budget) -> str:
    return sha256_bytes(f"{reference.identity} {budget}".encode())


def _stored(file: Path, reference: Reference, budget: Budget) -> Mapping[str, Any]:
    """Return the state of the last run; with another reference or budget all rows are read anew, and alarms are kept.

    Another reference closes the alarms before it: it is what a person answered them with.
    """
    if not file.is_file():
        return {}
    state = read_json(file)
    if not isinstance(state, dict) or "of" not in state:
        raise DataError("is no state of the monitor", path=file, remedy="choose another --out")
    if state["of"] == _identity(reference, budget):
        return state
    closed = [alarm["alarm"] for alarm in state["alarms"]] if state["reference"] != reference.identity else []
    return {"alarms": state["alarms"], "superseded": [*state["superseded"], *closed]}


def _start(stream: Stream, reference: Reference) -> int:
    """Return the journal's row after which monitoring starts: that of the reference's last image, if it is there."""
    row = int(reference.facts.get("last_row") or 0)
    key = stream.key_at(row) if row else ""
    return row if key and sha256_bytes(key.encode())[:12] == reference.facts.get("last_key") else 0


def _reference(stream: Stream, folder: Path, given: Path | None, bundle: Path | None) -> tuple[Reference, str]:
    """Return the reference, and in words where it comes from."""
    if given is not None:
        usual = read(given)
        return usual, f"the reference that was given: {usual.facts.get('source')}"
    kept = folder / "reference.json"
    own = None if bundle is None else bundle / "reference.json"
    if own is not None and own.is_file():
        return read(own), "the bundle's own reference"
    if not kept.is_file():
        write(fitting.first_period(stream, bundle), kept)
    usual = read(kept)
    return usual, f"the first {usual.facts['images']} images of this journal, because no reference was given"
