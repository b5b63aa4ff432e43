"""A manifest of labelled images that are in memory, or in a frame of pandas."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from pneumoscope.data.labels import PLAIN
from pneumoscope.data.manifest import COLUMNS, Manifest
from pneumoscope.data.table import Table, samples_of
from pneumoscope.errors import DataError, ImageError
from pneumoscope.files import atomic_path, write_bytes
from pneumoscope.images.given import Given, items
from pneumoscope.records import LABELS

_RULE = "column patient_id, else every image counts as its own patient"


def manifest_of(source: Any, labels: Iterable[object] | None, folder: Path, split: str | None = None) -> Manifest:
    """Return the manifest of a frame, or of images with their labels; what is no file is written into `folder`.

    Raises:
        DataError: labels are missing, unknown or of another number.
        TypeError: an image is none.
    """
    table = source.copy() if isinstance(source, pd.DataFrame) else pd.DataFrame({"label": _texts(labels)})
    if isinstance(source, pd.DataFrame):
        if labels is not None:
            table["label"] = _texts(labels)
        if missing := [name for name in ("path", "label") if name not in table.columns]:
            raise DataError(f"the frame lacks the column {' and '.join(missing)}", remedy="path and label are required")
        table["label"] = [_text(label) for label in table["label"]]
    given = list(items(source))
    if len(given) != len(table):
        raise DataError(f"{len(given)} images and {len(table)} labels do not fit", remedy="give one label per image")
    if not given:
        raise DataError("there are no images", remedy="give at least one")
    table["path"] = [str(_stored(one, folder / f"{number:06}")) for number, one in enumerate(given)]
    names = [name for name in table.columns if name in COLUMNS or pd.api.types.is_scalar(table[name].iloc[0])]
    rows = tuple(
        (line, tuple("" if _is_missing(value) else str(value) for value in row))
        for line, row in enumerate(table[names].itertuples(index=False), start=1)
    )
    samples = samples_of(Table(Path("frame"), tuple(map(str, names)), rows), PLAIN, base=Path())
    samples = [replace(s, patient_id=s.patient_id or f"image-{number}") for number, s in enumerate(samples)]
    made = Manifest(Path("images"), "memory", tuple(samples), _RULE)
    return made if split is None else made.select(split)


def _texts(labels: Iterable[object] | None) -> list[str]:
    if labels is None:
        raise DataError("the images have no labels", remedy="give labels=[...], one per image")
    return [_text(label) for label in labels]


def _text(label: object) -> str:
    """Return a label as text: 0 and 1, also as float or bool, are NORMAL and PNEUMONIA."""
    if not isinstance(label, str) and not _is_missing(label):
        try:
            number = float(label)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        return LABELS[int(number)] if number in (0, 1) else str(label)
    return "" if _is_missing(label) else str(label)


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _stored(given: Given, stem: Path) -> Path | str:
    """Return the file of an image; of one in memory it is written, without loss."""
    if given.path:
        return given.name
    if given.data is not None:
        file = stem.with_suffix(".image")
        write_bytes(file, given.data())
        return file
    file = stem.with_suffix(".tif")
    try:
        pixels = given.open().decode(None).pixels
    except ImageError as error:
        write_bytes(file, str(error).encode())  # counted like a file that cannot be read
        return file
    with atomic_path(file) as temporary:
        Image.fromarray(pixels).save(temporary, format="TIFF")  # float32: to the bit, and 0..1 as it is
    return file
