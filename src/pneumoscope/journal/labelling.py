"""Labels out of a table: what reports, laboratories and readers said later about images that were answered."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, storage_errors
from pneumoscope.files import sha256_bytes
from pneumoscope.journal.entry import (
    BLIND,
    CERTAINTIES,
    SOURCES,
    SURE,
    UNSURE,
    Label,
    answer_key,
    content_sha256,
)
from pneumoscope.journal.journal import Journal, archives
from pneumoscope.journal.pseudonyms import Pseudonyms
from pneumoscope.records import LABELS

MEANT = ("answer", "study", "study_uid", "path")  # of which a row gives one
COLUMNS = (*MEANT, "label", "source", "at", "reader", "blind", "certainty", "sample", "inclusion_probability")
_POINTS = ("balanced", "triage", "rule-in")  # tried for answers that do not name theirs
_MOST_FAULTS = 5  # named in one message
_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")


@dataclass(frozen=True, slots=True)
class Imported:
    """How many `labels` a table gave, how many of them were `new`, and of how many rows."""

    rows: int
    labels: int
    new: int


@dataclass
class _Answers:
    """What the journal and its archives know of the images that a table means.

    `days`: of each answer and study that is there, when it was taken. `contents`: answers about a file's content.
    """

    days: dict[str, date | None] = field(default_factory=dict)
    makers: set[tuple[str, str]] = field(default_factory=set)

    def about(self, content: str) -> list[str]:
        keys = (answer_key(bundle, content, point) for bundle, point in sorted(self.makers))
        return [key for key in keys if key in self.days]


class _FaultError(Exception):
    """What is wrong with a row, and the remedy."""


def import_labels(table: Path, journal: Journal, key: Path) -> Imported:
    """Append the labels of a CSV table to a journal, all or none; the same table again adds nothing.

    Args:
        table: UTF-8, one label a row, with the columns `label`, `source` and one of `MEANT`: an answer's key or a
            study's pseudonym as the journal has them, a Study Instance UID, or an image file, relative to the table,
            that `predict` answered. The others of `COLUMNS` may be missing or empty.
        journal: with its archives beside it.
        key: file of its pseudonyms; readers and UIDs are kept as these.

    Raises:
        DataError: a row is wrong, names an image that the journal does not know or that was taken later; or there is
            no key. The message names the rows. Nothing is appended.
        StorageError: a file cannot be read, or the journal not be written.
    """
    rows = list(_rows(table))
    needs_key = any(row["reader"] or row["study_uid"] for _, row in rows)
    if needs_key and not key.is_file():
        raise DataError("there is no key of the journal's pseudonyms", path=key, remedy="give its file with --key")
    pseudonyms = Pseudonyms.load(key) if needs_key else None
    faults: list[str] = []
    contents = {}
    for number, row in rows:
        if row["study_uid"] and pseudonyms is not None:
            row["study"] = str(pseudonyms.of("study", row["study_uid"]))
        if row["path"]:
            contents[number] = content_sha256(str(table.parent / row["path"]))
    answers = _known(journal, rows, filter(None, contents.values()))
    labels: dict[str, Label] = {}
    for number, row in rows:
        try:
            given = _label(row, pseudonyms, answers, contents.get(number))
        except (_FaultError, DataError) as error:
            clause = error.clause if isinstance(error, DataError) else str(error)
            faults.append(f"row {number}: {clause}")
        else:
            labels |= {label.key: label for label in given}
    if faults:
        more = f"; {len(faults) - _MOST_FAULTS} more rows" if len(faults) > _MOST_FAULTS else ""
        raise DataError("; ".join(faults[:_MOST_FAULTS]) + more, path=table, remedy="nothing was imported")
    return Imported(len(rows), len(labels), journal.append_labels(labels.values()))


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield rows with their numbers, the header being row 1; empty ones are left out."""
    with storage_errors(table), table.open(encoding="utf-8-sig", newline="") as stream:
        try:
            names, *lines = list(csv.reader(stream)) or [[]]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"is no CSV in UTF-8 ({error})", path=table, remedy="export it as such") from error
    names = [name.strip() for name in names]
    if unknown := [name for name in names if name not in COLUMNS]:
        raise DataError(f"has a column {unknown[0]!r}", path=table, remedy=f"keep {', '.join(COLUMNS)}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"has two columns {twice[0]!r}", path=table, remedy="keep one of them")
    for needed in ("label", "source"):
        if needed not in names:
            raise DataError(f"has no column {needed!r}", path=table, remedy=f"give label, source, one of {MEANT}")
    for number, values in enumerate(lines, start=2):
        if len(values) > len(names):
            raise DataError(f"row {number} has more cells than the header", path=table, remedy="quote commas")
        row = dict.fromkeys(COLUMNS, "") | {name: value.strip() for name, value in zip(names, values, strict=False)}
        if any(row.values()):
            yield number, row


def _known(journal: Journal, rows: Iterable[tuple[int, dict[str, str]]], contents: Iterable[str]) -> _Answers:
    found, contents = _Answers(), list(contents)
    names = {row[name] for _, row in rows for name in ("answer", "study")} - {""}
    files = [journal, *(Journal(file) for file in archives(journal.path))]
    if contents:
        for file in files:
            for bundle, point in file.makers():
                found.makers |= {(bundle, name) for name in ((point,) if point else _POINTS)}
        names |= {answer_key(bundle, content, point) for content in contents for bundle, point in found.makers}
    for file in files:
        for name, day in file.days(names).items():
            found.days[name] = day or found.days.get(name)
    return found


def _label(
    row: Mapping[str, str], pseudonyms: Pseudonyms | None, answers: _Answers, content: str | None
) -> list[Label]:
    """Return the labels of a row: one, or one for each answer about an image file."""
    given = [name for name in MEANT if row[name]]
    if row["study_uid"]:
        given.remove("study")
    if len(given) != 1:
        raise _FaultError(f"means {' and '.join(given) or 'no image'}; give one of {', '.join(MEANT)}")
    keys: list[str | None] = [row["answer"] or None]
    if row["path"]:
        if content is None:
            raise _FaultError(f"{row['path']} cannot be read; give its path from the folder of the table")
        keys = list(answers.about(content))
    names = [name for name in (*keys, row["study"]) if name]
    if not any(name in answers.days for name in names):
        raise _FaultError(
            "the journal has no answer about it; check the name, or whether it was erased or another journal answered"
        )
    moment = _moment(row["at"])
    taken = max((day for name in names if (day := answers.days.get(name)) is not None), default=None)
    if moment is not None and taken is not None and moment.date() < taken:
        raise _FaultError(f"is of {moment:%Y-%m-%d}, and the image was taken on {taken}; check `at` and the image")
    values = _said(row, pseudonyms)
    made = []
    for answer in keys:
        identity = json.dumps([answer, row["study"], row["at"], sorted(map(str, values.items()))])
        made.append(
            Label(
                key=f"table-{sha256_bytes(identity.encode())[:32]}",
                at=moment or datetime.now(UTC),
                study=row["study"] or None,
                answer=answer,
                **values,
            )
        )
    return made


def _said(row: Mapping[str, str], pseudonyms: Pseudonyms | None) -> dict[str, Any]:
    """Return what a row says, without which image it means, and when."""
    label = row["label"].upper()
    source = _one_of(row, "source", SOURCES, None)
    blind = _one_of(row, "blind", (*_YES, *_NO), "")
    if source == BLIND and blind in _NO:
        raise _FaultError(f"is a {BLIND} that was not blind; change source or blind")
    certainty = _one_of(row, "certainty", CERTAINTIES, SURE)
    if label not in LABELS and (label or certainty != UNSURE):
        raise _FaultError(f"{row['label']!r} is no label; use {' or '.join(LABELS)}, or none with {UNSURE!r}")
    return {
        "label": label or None,
        "source": source,
        "reader": None if pseudonyms is None else pseudonyms.of("reader", row["reader"]),
        "certainty": certainty,
        "blind": True if source == BLIND or blind in _YES else False if blind in _NO else None,
        "sample": row["sample"] or None,
        "inclusion_probability": _read(row, "inclusion_probability", float, "a number above 0, at most 1"),
    }


def _one_of(row: Mapping[str, str], name: str, words: Iterable[str], default: str | None) -> str:
    value = row[name].lower()
    if not value and default is not None:
        return default
    if value not in words:
        raise _FaultError(f"{name} is {row[name]!r}; use {', '.join(words)}")
    return value


def _read(row: Mapping[str, str], name: str, kind: Callable[[str], float], wanted: str) -> float | None:
    try:
        return kind(row[name]) if row[name] else None
    except ValueError as error:
        raise _FaultError(f"{name} is {row[name]!r}; give {wanted}") from error


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _FaultError(f"at is {text!r}; write 2026-03-04 or 2026-03-04T10:30:00+01:00") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > datetime.now(UTC):
        raise _FaultError(f"is of {text}, which is to come; check `at`")
    return moment
