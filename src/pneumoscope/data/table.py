"""A table of images and labels, CSV or a frame, as samples: whatever is doubtful in it is named, with its line."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.data.labels import Labels
from pneumoscope.data.manifest import COLUMNS
from pneumoscope.data.naming import patient_from_name
from pneumoscope.errors import DataError, storage_errors
from pneumoscope.images import in_archive
from pneumoscope.records import SPLITS, SUBTYPES, Sample

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "none", "null", "<na>"})
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class Table:
    """`path`: its file; `columns`: names without spaces around them; `rows`: line in the file, and the fields."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]


def read_table(path: Path) -> Table:
    """Read a CSV table with `path` and `label`, separated by comma, semicolon or tab.

    Raises:
        DataError: it is no UTF-8 text or no table, lacks a column, has one twice, or a row with more or fewer fields.
    """
    with storage_errors(path):
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                first = stream.readline()
                stream.seek(0)
                delimiter = max(_DELIMITERS, key=first.count)
                reader = csv.reader(stream, delimiter=delimiter, strict=True)
                lines = [(reader.line_num, tuple(fields)) for fields in reader if any(map(str.strip, fields))]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"is not a readable CSV table ({error})", path=path, remedy="save it as UTF-8 CSV"
            ) from error
    if not lines:
        raise DataError("is not a readable CSV table (it is empty)", path=path, remedy="save it as UTF-8 CSV")
    columns = _columns(path, lines[0][1])
    for number, fields in lines[1:]:
        if len(fields) != len(columns):
            raise DataError(
                f"line {number} has {len(fields)} fields, and the first line {len(columns)}",
                path=path,
                remedy="put a field that holds the separator into quotes, and leave empty fields empty",
            )
    if len(lines) == 1:
        raise DataError("has no rows", path=path, remedy="list at least one image")
    return Table(path, columns, tuple(lines[1:]))


def _columns(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the columns: those that are known in lower case, an empty one by its position."""
    names = [name.strip() or f"column {position}" for position, name in enumerate(header, start=1)]
    columns = [name.lower() if name.lower() in COLUMNS else name for name in names]
    if doubled := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
        raise DataError(f"has the column {doubled[0]} twice", path=path, remedy="keep one of them")
    if missing := [name for name in ("path", "label") if name not in columns]:
        raise DataError(
            f"lacks the column {' and '.join(missing)}",
            path=path,
            remedy=f"it has {', '.join(columns) or 'none'}; path and label are required",
        )
    return tuple(columns)


def samples_of(table: Table, labels: Labels, *, base: Path | None = None) -> list[Sample]:
    """Return one sample per row; `patient_id` is empty where neither table nor file name gives it.

    `base`: what paths are relative to, the table's folder by default. Raises `DataError` where a row is wrong.
    """
    base = table.path.parent if base is None else base
    samples = [
        _sample(table.path, line, dict(zip(table.columns, fields, strict=True)), labels, base)
        for line, fields in table.rows
    ]
    files = [(s.path, archived[0] if (archived := in_archive(s.path)) else Path(s.path)) for s in samples]
    if absent := [name for name, file in files if not file.is_file()]:
        raise DataError(
            f"names {len(absent)} of {len(samples)} images that do not exist, the first is {absent[0]}",
            path=table.path,
            remedy="paths are relative to the CSV file",
        )
    return samples


def _sample(path: Path, line: int, row: Mapping[str, str], labels: Labels, base: Path) -> Sample:
    def value(name: str) -> str | None:
        text = row.get(name, "").strip()
        return None if text.lower() in _MISSING else text

    def one_of(name: str, known: Callable[[str], str | None], words: Sequence[str]) -> str | None:
        text = value(name)
        found = None if text is None else known(text)
        if text is not None and found is None:
            raise DataError(
                f"line {line}: {name} {text!r} is unknown",
                path=path,
                remedy=f"use {', '.join(words)} or leave it empty" + labels.remedy * (name == "label"),
            )
        return found

    name = row["path"].strip()
    if not name:
        raise DataError(f"line {line}: the path is empty", path=path, remedy="fill it in or delete the line")
    age = value("age_years")
    try:
        age_years = None if age is None else float(age)
        if age_years is not None and not 0 <= age_years <= 130:
            raise ValueError
    except ValueError:
        raise DataError(f"line {line}: age_years {age!r} is no age", path=path, remedy="give years, e.g. 4.5") from None
    return Sample(
        path=_located(base, name),
        patient_id=value("patient_id") or patient_from_name(name.replace("\\", "/")) or "",
        label=one_of("label", labels.label, labels.words),
        subtype=one_of("subtype", lambda text: text.lower() if text.lower() in SUBTYPES else None, SUBTYPES),
        split=one_of("split", lambda text: SPLIT_NAMES.get(text.lower()), SPLITS),
        site=value("site"),
        age_years=age_years,
        sex=value("sex"),
        view=value("view"),
        covariates={column: text for column, text in row.items() if column not in COLUMNS},
    )


def _located(base: Path, name: str) -> str:
    """Return the path of an image; backslashes, as Windows writes them, are slashes where no file has that name."""
    if "\\" in name and not (base / name).exists():
        name = name.replace("\\", "/")
    return os.path.normpath(base / name)
