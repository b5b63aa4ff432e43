"""Columns of the journal as NumPy arrays, in the order in which rows were appended.

What is read are plain values, not objects: many times faster than `Journal.entries`. The types are fixed by name, so
an empty piece has the types of a full one.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError
from pneumoscope.journal.embedding import EMBEDDING, unpack_embedding

Column = NDArray[Any]
ANSWERS, LABELS, DECISIONS = "answers", "labels", "decisions"
TABLES = {ANSWERS: "predictions", LABELS: "labels", DECISIONS: "decisions"}
MOST = 100_000  # rows of one piece, unless asked otherwise

_TEXT, _NUMBER, _TRUTH, _TIME, _DAY, _VECTOR = "text", "number", "truth", "time", "day", "vector"
_OF_TYPE = {
    ANSWERS: {
        _TEXT: (
            "key", "state", "study", "patient", "device", "site", "feed", "bundle", "bundle_sha256", "operating_point",
            "version", "label", "reason", "covariates.view", "covariates.manufacturer", "covariates.model",
            "covariates.sex", "covariates.photometric", "covariates.modality", "covariates.body_part",
            "covariates.detector_type", "covariates.detector", "covariates.software", "covariates.grid",
            "quality.refused_by",
        ),
        _NUMBER: (
            "probability", "logit", "threshold", "milliseconds", "shown", "subtype.bacterial", "subtype.viral",
            "covariates.kvp", "covariates.exposure_uas", "covariates.exposure_index",
            "covariates.target_exposure_index", "covariates.deviation_index", "covariates.pixel_spacing_mm",
            "covariates.source_distance_mm", "covariates.lossy", "covariates.age_years", "covariates.bits",
            "covariates.rows", "covariates.columns", "quality.width", "quality.height", "quality.mean",
            "quality.contrast", "quality.sharpness", "quality.noise", "quality.collimated", "quality.gate.exposure",
            "quality.gate.turned", "quality.gate.unlike",
        ),
        _TRUTH: ("calibrated", "abstained"),
        _TIME: ("at", "received_at"),
        _DAY: ("acquired_on",),
        _VECTOR: ("embedding",),
    },
    LABELS: {
        _TEXT: ("key", "study", "answer", "label", "certainty", "source", "reader", "sample", "note"),
        _NUMBER: ("inclusion_probability",),
        _TRUTH: ("blind",),  # False also where that is not known
        _TIME: ("at",),
    },
    DECISIONS: {_TEXT: ("key", "alarm", "decision", "why", "person"), _TIME: ("at",)},
}  # fmt: skip
TYPES = {table: {name: kind for kind, names in of.items() for name in names} for table, of in _OF_TYPE.items()}
_FACTS = ("covariates", "quality", "subtype")  # columns of JSON


def read_columns(
    connection: sqlite3.Connection, names: Sequence[str], table: str, after: int, limit: int
) -> dict[str, Column]:
    """Return columns by name and `row`, as `Journal.columns` describes them; raises `DataError` for another name."""
    types = TYPES[table]
    if unknown := [name for name in names if name not in types]:
        raise DataError(f"{table} have no column {unknown[0]!r}", remedy=f"use one of {', '.join(types)}")
    selected = ", ".join(["row", *(_selected(name, types[name]) for name in names)])
    cursor = connection.cursor()
    cursor.row_factory = None
    query = f"SELECT {selected} FROM {TABLES[table]} WHERE row > ? ORDER BY row LIMIT ?"
    rows = cursor.execute(query, [after, limit]).fetchall()
    values = list(zip(*rows, strict=True)) if rows else [()] * (1 + len(names))
    found = {"row": np.array(values[0], np.int64)}
    return found | {name: _ARRAYS[types[name]](column) for name, column in zip(names, values[1:], strict=True)}


def _selected(name: str, kind: str) -> str:
    column, dot, path = name.partition(".")
    if dot and column in _FACTS:
        return f"json_extract({column}, '$.{path}')"
    return f"substr({name}, 1, 23)" if kind == _TIME else name  # all times are in UTC, to the millisecond


def _texts(values: Sequence[Any]) -> Column:
    return np.array(["" if value is None else str(value) for value in values], np.str_)


def _numbers(values: Sequence[Any]) -> Column:
    return np.array([value if isinstance(value, int | float) else np.nan for value in values], np.float64)


def _truths(values: Sequence[Any]) -> Column:
    return np.array(values, np.bool_)


def _times(values: Sequence[Any]) -> Column:
    return np.array(["NaT" if value is None else value for value in values], "datetime64[ms]")


def _days(values: Sequence[Any]) -> Column:
    return np.array(["NaT" if value is None else value for value in values], "datetime64[D]")


def _vectors(values: Sequence[Any]) -> Column:
    rows = [_vector(value) for value in values]
    found = np.full((len(rows), max(map(len, rows), default=0)), np.nan, np.float32)
    for row, vector in zip(found, rows, strict=True):
        row[: len(vector)] = vector
    return found


def _vector(text: str | None) -> Column:
    packed = None if text is None else json.loads(text)
    if isinstance(packed, dict) and packed.get("version") == EMBEDDING:
        try:
            return np.frombuffer(base64.b64decode(packed["float16"]), "<f2")
        except (KeyError, ValueError, TypeError):
            pass  # the slow way says what is wrong
    return np.array(unpack_embedding(packed) or (), np.float32)


_ARRAYS: dict[str, Callable[[Sequence[Any]], Column]] = {
    _TEXT: _texts,
    _NUMBER: _numbers,
    _TRUTH: _truths,
    _TIME: _times,
    _DAY: _days,
    _VECTOR: _vectors,
}
