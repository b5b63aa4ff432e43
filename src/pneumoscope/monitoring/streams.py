"""What is watched: one line for each stream, its family, its unit, and the margin under which it never alarms.

A stream is a number, whose unit is the standard deviation of the reference, or a share of images, in 0..1. A number
that never varied in the reference is watched as the share of images that differ from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pneumoscope.monitoring.stream import Rows
from pneumoscope.records import Floats

ACQUISITION, POPULATION, SCORES, TRUTH = FAMILIES = ("acquisition", "population", "scores", "truth")
SD, POINTS = "standard deviations", "points"
FAR = 6.0  # standard deviations to which one image counts: a single wild image is not a shift
LEAST_PRESENT = 0.5  # share of the reference that must have a fact for it to be watched
_CONSTANT = 1e-6  # a standard deviation, relative to the mean, under which a number never varied
GATE_LIMIT = 1.0

Measure = Callable[[Rows], Floats]


@dataclass(frozen=True, slots=True)
class Stream:
    """One line of the table. `margin`: in standard deviations, or in 0..1 for a share. `quick`: also bet on at once."""

    name: str
    family: str
    words: str
    measure: Measure
    share: bool = False
    margin: float = 0.10
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A stream as a reference has it: `value = (measured - centre) / scale`, clipped to `FAR`; of a share, measured.

    `differs`: the value that never varied. `limit`: of a tail, the measured value above which an image counts.
    """

    name: str
    family: str
    words: str
    unit: str
    margin: float
    centre: float
    scale: float
    quick: bool
    differs: float | None = None
    limit: float | None = None


def _number(name: str) -> Measure:
    return lambda rows: rows.number[name]


def _log(name: str) -> Measure:
    return lambda rows: np.log(np.where(rows.number[name] > 0, rows.number[name], np.nan))


def _is(name: str, *values: str) -> Measure:
    return lambda rows: np.where(rows.text[name] == "", np.nan, np.isin(rows.text[name], values).astype(np.float64))


def _known(name: str) -> Measure:
    return lambda rows: (rows.text[name] != "").astype(np.float64)


def _abstained(rows: Rows) -> Floats:
    return np.isnan(rows.number["probability"]).astype(np.float64)


def _called(rows: Rows) -> Floats:
    probability = rows.number["probability"]
    return np.where(np.isnan(probability), np.nan, probability >= rows.number["threshold"])


def _picture(name: str, words: str) -> Stream:
    return Stream(name, ACQUISITION, words, _number(name), quick=True)


STREAMS: tuple[Stream, ...] = (
    _picture("mean", "mean brightness"),
    _picture("contrast", "contrast"),
    _picture("sharpness", "sharpness"),
    _picture("noise", "noise"),
    _picture("collimated", "share of the frame that is collimated"),
    _picture("exposure", "distance of the grey levels from those learned"),
    _picture("turned", "how much better the image would fit turned or inverted"),
    _picture("unlike", "unlikeness to the images learned from"),
    Stream("kvp", ACQUISITION, "tube voltage", _number("kvp")),
    Stream("exposure_uas", ACQUISITION, "exposure (logarithm of µAs)", _log("exposure_uas")),
    Stream("exposure_index", ACQUISITION, "exposure index (logarithm)", _log("exposure_index")),
    Stream("deviation_index", ACQUISITION, "deviation index", _number("deviation_index")),
    Stream("bits", ACQUISITION, "bits stored", _number("bits")),
    Stream("rows", ACQUISITION, "rows of the detector", _number("rows")),
    Stream("width", ACQUISITION, "width in pixels", _number("width")),
    Stream("header", ACQUISITION, "images with a header", _known("modality"), share=True, margin=0.05),
    Stream("abstained", ACQUISITION, "images without an answer", _abstained, share=True, margin=0.02, quick=True),
    Stream("declined", ACQUISITION, "images declined by header", _is("state", "declined"), share=True, margin=0.02),
    Stream("quarantined", ACQUISITION, "unreadable images", _is("state", "quarantined"), share=True, margin=0.02),
    Stream("age", POPULATION, "age in years", _number("age_years"), quick=True),
    Stream("female", POPULATION, "female patients", _is("sex", "F"), share=True, margin=0.10),
    Stream("view_ap", POPULATION, "AP views", _is("view", "AP"), share=True, margin=0.10),
    Stream("view_lateral", POPULATION, "lateral views", _is("view", "LL", "RL", "LATERAL"), share=True, margin=0.03),
    Stream("logit", SCORES, "score (log-odds)", _number("logit"), quick=True),
    Stream("called", SCORES, "images called pneumonia", _called, share=True, margin=0.05, quick=True),
)
TAILS = ("exposure", "turned", "unlike")  # also as the share of images beyond the limit of the gate


def columns_of(rows: Rows) -> list[Column]:
    """Return the columns that a reference can watch: facts that half its images have, and axes of the embedding."""
    columns = [column for stream in STREAMS if (column := _fitted(stream, stream.measure(rows))) is not None]
    for name in TAILS:
        values = rows.number[name]
        if np.isfinite(values).mean() >= LEAST_PRESENT:
            words = f"images that the gate would refuse by “{name}”"
            beyond = float(np.nanmean(values > GATE_LIMIT))
            columns.append(
                Column(f"{name}_tail", ACQUISITION, words, POINTS, 0.01, beyond, 1.0, False, limit=GATE_LIMIT)
            )
    for axis in range(rows.embedding.shape[1]):
        stream = Stream(f"axis_{axis}", ACQUISITION, f"picture as the network sees it, axis {axis + 1}", _axis(axis))
        if (column := _fitted(stream, stream.measure(rows))) is not None:
            columns.append(column)
    return columns


def _axis(axis: int) -> Measure:
    return lambda rows: (
        rows.embedding[:, axis].astype(np.float64) if axis < rows.embedding.shape[1] else np.full(len(rows), np.nan)
    )


def _fitted(stream: Stream, values: Floats) -> Column | None:
    present = values[np.isfinite(values)]
    if present.size < LEAST_PRESENT * values.size or present.size < 2:
        return None
    centre, spread = float(present.mean()), float(present.std())
    unit = POINTS if stream.share else SD
    column = Column(
        stream.name,
        stream.family,
        stream.words,
        unit,
        stream.margin,
        centre,
        1.0 if stream.share else spread,
        stream.quick,
    )
    if not stream.share and spread <= _CONSTANT * max(1.0, abs(centre)):
        words = f"images whose {stream.words} is not {centre:g}"
        return replace(column, words=words, unit=POINTS, margin=0.05, centre=0.0, scale=1.0, differs=centre)
    return column


_MEASURES = {stream.name: stream.measure for stream in STREAMS}


def values_of(rows: Rows, columns: Sequence[Column]) -> Floats:
    """Return the columns' values of rows, float64 [n, m], NaN where a row has none."""
    found = np.full((len(rows), len(columns)), np.nan)
    for place, column in enumerate(columns):
        found[:, place] = _values(rows, column)
    return found


def _values(rows: Rows, column: Column) -> Floats:
    if column.limit is not None:
        raw = rows.number[column.name.removesuffix("_tail")]
        return np.where(np.isnan(raw), np.nan, raw > column.limit)
    measure = _axis(int(column.name[5:])) if column.name.startswith("axis_") else _MEASURES[column.name]
    raw = measure(rows)
    if column.differs is not None:
        near = _CONSTANT * max(1.0, abs(column.differs))
        return np.where(np.isnan(raw), np.nan, np.abs(raw - column.differs) > near)
    if column.unit == POINTS:
        return raw
    return np.clip((raw - column.centre) / column.scale, -FAR, FAR)


def as_json(column: Column) -> dict[str, Any]:
    """Return plain values, without what is None."""
    return {name: value for name, value in asdict(column).items() if value is not None}


def said(column: Column, reference: float, now: float) -> str:
    """Say a change in a person's units: `reference`, `now`: means of the column's values."""
    if column.unit == POINTS:
        return f"{column.words}: {100 * reference:.1f} % then, {100 * now:.1f} % now"
    return f"{column.words}: {now - reference:+.2f} standard deviations of the reference"
