"""Elements of a DICOM header that an image can do without: a damaged one is left out, with a note.

pydicom decodes an element when it is first asked for, and raises then; here its bytes are read instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ImageError
from pneumoscope.images.header import dicom_errors

_WORDS = ("US", "SS", "US or SS", "US or OW", "US or SS or OW", "OW", "OB", "OB or OW", "UL")


def left_out(keyword: str, notes: list[str]) -> None:
    """Note that a damaged element was left out, once."""
    note = f"{keyword} is damaged or empty, and was left out"
    if note not in notes:
        notes.append(note)


def present(dataset: Any, keyword: str) -> bool:
    """Say whether a header has an element, whatever its value is."""
    return keyword in dataset


def numbers(dataset: Any, keyword: str) -> list[float | None]:
    """Return the values of a numeric element, None for each that is no finite number; empty where it is missing."""
    value, vr, little = _value(dataset, keyword)
    if isinstance(value, bytes) and vr in _WORDS:
        return [float(word) for word in _unpacked(value, signed=vr == "SS", little=little)]
    if isinstance(value, bytes):
        value = value.decode("latin-1").strip(" \0").split("\\") if value.strip(b" \0") else []
    parts = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [] if value is None or value == "" else [_number(part) for part in parts]


def number(dataset: Any, keyword: str, notes: list[str]) -> float | None:
    """Return the first value of a numeric element; None where it is missing or, with a note, damaged or empty.

    An empty window is as good as none, which has a note of its own.
    """
    found = numbers(dataset, keyword)
    if found and found[0] is not None:
        return found[0]
    if found or (present(dataset, keyword) and not keyword.startswith("Window")):
        left_out(keyword, notes)
    return None


def whole(dataset: Any, keyword: str) -> int | None:
    """Return the first value of an element as a whole number, None where it is missing, damaged or negative."""
    found = numbers(dataset, keyword)
    value = found[0] if found else None
    return int(value) if value is not None and value >= 0 and value == int(value) else None


def word(dataset: Any, keyword: str, bits: int, *, signed: bool) -> int | None:
    """Return an element of VR US or SS, read in as many bits as pixels have; None where missing or damaged."""
    found = numbers(dataset, keyword)
    if not found or found[0] is None:
        return None
    wide = 16 if bits <= 16 else 32
    value = int(found[0]) & ((1 << wide) - 1)
    return value - (1 << wide) if signed and value >> (wide - 1) else value


def words(dataset: Any, keyword: str, count: int | None = None) -> NDArray[np.int64]:
    """Return the words of an element, unsigned: US, SS or OW; of OW with a byte for each of `count`, the bytes."""
    value, _, little = _value(dataset, keyword)
    if isinstance(value, bytes):
        if count is not None and len(value) < 2 * count:
            return np.frombuffer(value, np.uint8).astype(np.int64)
        return np.asarray(_unpacked(value, signed=False, little=little), np.int64)
    if value is None or value == "":
        return np.zeros(0, np.int64)
    parts = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return np.asarray([int(part) & 0xFFFF for part in parts], np.int64)


def text(dataset: Any, keyword: str) -> str:
    """Return an element's first value as text in upper case, empty where it is missing or damaged."""
    value, _, _ = _value(dataset, keyword)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else ""
    return str(value or "").split("\\")[0].strip(" \0\t").upper()


def items(dataset: Any, keyword: str, notes: list[str]) -> list[Any]:
    """Return the items of a sequence, none where it is missing or, with a note, damaged or empty."""
    if not present(dataset, keyword):
        return []
    try:
        with dicom_errors("header", "a sequence is damaged", "export it again"):
            found = [item for item in dataset[keyword].value or () if hasattr(item, "get_item")]
    except ImageError:
        found = []
    if not found:
        left_out(keyword, notes)
    return found


def little_endian(dataset: Any) -> bool:
    """Say whether the words of a data set are little endian, as nearly all are."""
    encoding = getattr(dataset, "original_encoding", (None, None))
    return encoding[1] is not False


def _value(dataset: Any, keyword: str) -> tuple[Any, str, bool]:
    """Return an element's value, bytes where it was not decoded yet, its VR, and whether it is little endian."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset:
        return None, "", True
    element = dataset.get_item(tag)
    # In implicit VR the element has none; the dictionary tells words from text.
    return element.value, dictionary_VR(tag), getattr(element, "is_little_endian", little_endian(dataset))


def _unpacked(value: bytes, *, signed: bool, little: bool) -> list[int]:
    kind = ("<" if little else ">") + ("i2" if signed else "u2")
    return [int(part) for part in np.frombuffer(value[: len(value) // 2 * 2], kind)]


def _number(part: Any) -> float | None:
    try:
        value = float(part)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
