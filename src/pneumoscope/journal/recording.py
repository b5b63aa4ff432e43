"""Answers into the journal, and out of it into tables.

This module decides which facts of a header are kept, and under which pseudonyms.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.errors import ConfigError, ImageError
from pneumoscope.files import atomic_path, plain
from pneumoscope.images import in_archive, is_dicom
from pneumoscope.images.header import read
from pneumoscope.journal.columns import ANSWERS, DECISIONS, LABELS
from pneumoscope.journal.embedding import pack_embedding
from pneumoscope.journal.entry import Decision, Entry, Label, answer_key, content_sha256, entry_of
from pneumoscope.journal.journal import Journal
from pneumoscope.journal.pseudonyms import Pseudonyms, default_key
from pneumoscope.records import Prediction, Sample

FEED = "predict"  # of entries that did not come through a gateway
_COVARIATES = (
    "view", "manufacturer", "model", "kvp", "exposure_uas", "age_years", "sex", "photometric", "bits", "modality",
    "body_part", "rows", "columns", "exposure_index", "target_exposure_index", "deviation_index", "detector_type",
    "software", "grid", "pixel_spacing_mm", "source_distance_mm", "lossy",
)  # fmt: skip
_DEVICE = ("manufacturer", "model", "station", "device_serial")


def entry_facts(
    facts: Mapping[str, Any],
    pseudonyms: Pseudonyms,
    *,
    study_uid: str | None,
    patient: tuple[str | None, str | None],
    site: str | None = None,
) -> dict[str, Any]:
    """Return the parts of an entry besides the answer: pseudonyms, the day, and a header's facts without identity.

    Args:
        facts: of `Header.facts`.
        patient: issuer and ID; without an ID there is no pseudonym.
        site: instead of the header's institution.
    """
    of, detector = pseudonyms.of, facts.get("detector_id")
    return {
        "study": of("study", study_uid),
        "patient": of("patient", *patient) if patient[1] else None,
        "device": of("device", *(facts.get(name) for name in _DEVICE)),
        "site": of("site", site or facts.get("institution")),
        "acquired_on": _day(facts.get("acquired_on") or facts.get("study_date")),
        "covariates": {name: facts.get(name) for name in _COVARIATES}
        | {"detector": of("detector", facts.get("manufacturer"), detector) if detector else None},
    }


def _day(text: str | None) -> date | None:
    try:
        return datetime.strptime(text or "", "%Y%m%d").date()
    except ValueError:
        return None


def sample_facts(sample: Sample, pseudonyms: Pseudonyms) -> dict[str, Any]:
    """Return what a manifest knows of an image without a header: patient and site as pseudonyms, view, age, sex."""
    return {
        "patient": pseudonyms.of("patient", None, sample.patient_id),
        "site": pseudonyms.of("site", sample.site),
        "covariates": {"view": sample.view, "age_years": sample.age_years, "sex": sample.sex},
    }


class Recorder:
    """Writes the answers of one bundle about image files into a journal; existing answers stay as they are."""

    def __init__(self, journal: Path, bundle: Bundle, operating_point: str, samples: Sequence[Sample] = ()) -> None:
        """Open or create a journal; the secret of its pseudonyms is a file beside it.

        `samples`: of a manifest, which names the patients of images that have no header.

        Raises:
            DataError: the file is no journal, or the secret is too short.
            StorageError: it cannot be written.
        """
        self.journal = Journal(journal)
        self.pseudonyms = Pseudonyms.load(default_key(journal))
        self.card, self.operating_point = bundle.card, operating_point
        self.samples = {_absolute(sample.path): sample for sample in samples}

    def record(self, prediction: Prediction) -> bool:
        """Write an answer, on the disk when this returns; False where it exists.

        Equal content is one answer, whatever the path; unreadable files are identified by their path.
        """
        name = _absolute(prediction.path)
        content = content_sha256(prediction.path) or str(self.pseudonyms.of("path", name))
        key = answer_key(str(self.card["sha256"]), content, self.operating_point)
        facts = self._facts(prediction.path) | {"operating_point": self.operating_point, "feed": FEED}
        return self.journal.append(entry_of(prediction, self.card, key, datetime.now(UTC), **facts))

    def _facts(self, path: str) -> dict[str, Any]:
        """Return what the header says, and where there is none what the manifest says."""
        sample = self.samples.get(_absolute(path))
        known = {} if sample is None else sample_facts(sample, self.pseudonyms)
        if in_archive(path) or not is_dicom(Path(path)):
            return known
        try:
            header = read(Path(path))
        except ImageError:  # unreadable, which the answer says, or without UIDs, which identify nothing
            return known
        facts = entry_facts(
            header.facts(), self.pseudonyms, study_uid=header.study_uid, patient=(header.issuer, header.patient_id)
        )
        return facts if facts["patient"] else facts | {"patient": known.get("patient")}


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def write_table(
    journal: Journal, out: Path, first: datetime | None = None, last: datetime | None = None, *, of: str = ANSWERS
) -> int:
    """Write the answers of the days `first` to `last` (midnights), labels or decisions, to a .csv or .jsonl.

    Returns the number of rows. `of`: `answers`, `labels` or `decisions`.

    In a CSV lists and mappings are JSON, and a text that a spreadsheet would compute starts with an apostrophe.

    Raises:
        ConfigError: the name ends otherwise.
        StorageError: it cannot be written.
    """
    if out.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"{out.name}: a table ends in .csv or .jsonl", remedy="choose such a name")
    until = None if last is None else last + timedelta(days=1)
    items: dict[str, Iterable[Entry | Label | Decision]] = {
        ANSWERS: journal.entries(first, until),
        LABELS: journal.labels(first, until),
        DECISIONS: journal.decisions(first, until),
    }
    count = 0
    with atomic_path(out) as path, path.open("w", encoding="utf-8", newline="") as stream:
        names = [item.name for item in fields({ANSWERS: Entry, LABELS: Label, DECISIONS: Decision}[of])]
        table = csv.DictWriter(stream, names)
        if out.suffix == ".csv":
            table.writeheader()
        for item in items[of]:
            count += 1
            row = plain(asdict(item))
            row |= {key: value.isoformat() for key, value in row.items() if isinstance(value, date)}
            if isinstance(item, Entry):
                row["embedding"] = pack_embedding(item.embedding)
            if out.suffix == ".csv":
                table.writerow({name: _cell(value) for name, value in row.items()})
            else:
                stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return count


def _cell(value: Any) -> Any:
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
