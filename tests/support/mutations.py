"""What a broken sender, network or disk may do to a DICOM file: one function per kind of damage.

Each takes a file, where its data set begins, and a generator, and returns the damaged file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from tests.support.dicom_files import encoded, pixels_at

Chance = np.random.Generator
Mutation = Callable[[bytes, int, Chance], bytes]

_VRS = (b"US", b"SS", b"OB", b"OW", b"SQ", b"PN", b"DS", b"IS", b"UN", b"FD", b"AT", b"UI", b"??", b"\0\0")
_CHARSETS = ("ISO_IR 192", "GB18030", "ISO 2022 IR 87", "\\ISO 2022 IR 149", "KLINGON", "ISO_IR 13", None, "a" * 4000)
_NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_TEXTS = ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "NumberOfFrames", "PatientAge")
_HUGE = ("1e308", "-1e308", "nan", "inf", "9" * 16, "-1", "0", "1e-300", "", "99999999999", "0x10", "1\\2\\3")
_NAMES = ("PatientName", "PatientID", "StudyDescription", "AccessionNumber", "StudyDate", "Modality", "ViewPosition")


def _bits(data: bytes, first: int, last: int, count: int, chance: Chance) -> bytes:
    changed = bytearray(data)
    for at in chance.integers(first, max(first + 1, last), count):
        changed[min(int(at), len(changed) - 1)] ^= 1 << int(chance.integers(8))
    return bytes(changed)


def header_bits(data: bytes, start: int, chance: Chance) -> bytes:
    return _bits(data, start, pixels_at(data), int(chance.integers(1, 9)), chance)


def pixel_bits(data: bytes, start: int, chance: Chance) -> bytes:
    return _bits(data, pixels_at(data), len(data), int(2 ** chance.integers(0, 10)), chance)


def pixel_block(data: bytes, start: int, chance: Chance) -> bytes:
    """A block as a disk or a network loses one: zeros or noise."""
    size = int(2 ** chance.integers(4, 13))
    at = int(chance.integers(pixels_at(data), len(data)))
    block = bytes(size) if chance.random() < 0.5 else chance.bytes(size)
    return (data[:at] + block + data[at + size :])[: len(data)]


def truncated(data: bytes, start: int, chance: Chance) -> bytes:
    return data[: int(chance.integers(start, len(data)))]


def doubled(data: bytes, start: int, chance: Chance) -> bytes:
    first, last = sorted(int(at) for at in chance.integers(start, len(data), 2))
    return data[:last] + data[first:]


def swapped(data: bytes, start: int, chance: Chance) -> bytes:
    one, two, three = sorted(int(at) for at in chance.integers(start, len(data), 3))
    return data[:one] + data[two:three] + data[one:two] + data[three:]


def removed(data: bytes, start: int, chance: Chance) -> bytes:
    at = int(chance.integers(start, len(data)))
    return data[:at] + data[at + int(2 ** chance.integers(0, 12)) :]


def other_vr(data: bytes, start: int, chance: Chance) -> bytes:
    """Change value representations that are written out."""
    representations = (b"US", b"LO", b"DS", b"CS", b"UI", b"PN", b"DA", b"OW", b"OB", b"SH", b"AS")
    offsets = [at for at in range(start + 4, min(len(data), start + 4000), 2) if data[at : at + 2] in representations]
    if not offsets:
        return header_bits(data, start, chance)
    changed = bytearray(data)
    for at in chance.choice(offsets, int(chance.integers(1, 4))):
        changed[at : at + 2] = _VRS[int(chance.integers(len(_VRS)))]
    return bytes(changed)


def other_length(data: bytes, start: int, chance: Chance) -> bytes:
    """Write odd numbers over what may be a length."""
    changed = bytearray(data)
    at = int(chance.integers(start, max(start + 1, min(len(data) - 4, pixels_at(data) + 8))))
    odd = (0, 1, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, int(chance.integers(1 << 32)))
    changed[at : at + 4] = struct.pack("<I", odd[int(chance.integers(len(odd)))])
    return bytes(changed)


def _edited(data: bytes, edit: Callable[[Dataset], object]) -> bytes:
    """Write a file anew with elements that break the rules."""
    source = pydicom.dcmread(io.BytesIO(data))
    with pydicom.config.disable_value_validation():
        edit(source)
        return encoded(source)


def _raw(data: bytes, keyword: str, value: bytes) -> bytes:
    """Put bytes in place of a value, of any length."""
    source = pydicom.dcmread(io.BytesIO(data))
    tag = pydicom.tag.Tag(keyword)
    padded = value + b" " * (len(value) % 2)
    source._dict[tag] = pydicom.dataelem.RawDataElement(tag, "UN", len(padded), padded, 0, False, True)
    return encoded(source)


def nested(data: bytes, start: int, chance: Chance) -> bytes:
    depth = int(chance.choice([3, 30, 200]))  # pydicom cannot write more, and fills the memory with its error

    def edit(source: Dataset) -> None:
        inner = Dataset()
        for _ in range(depth):
            outer = Dataset()
            outer.RequestAttributesSequence = Sequence([inner])
            inner = outer
        source.RequestAttributesSequence = Sequence([inner])

    return _edited(data, edit)


def group_length(data: bytes, start: int, chance: Chance) -> bytes:
    def edit(source: Dataset) -> None:
        for group in (0x0008, 0x0010, 0x0028):
            source.add_new((group, 0), "UL", int(chance.integers(1 << 32)))

    return _edited(data, edit)


def charset(data: bytes, start: int, chance: Chance) -> bytes:
    name = _NAMES[int(chance.integers(len(_NAMES)))]
    garbage = chance.bytes(int(2 ** chance.integers(1, 12)))
    chosen = _CHARSETS[chance.integers(len(_CHARSETS))]
    if chosen is None:
        return _raw(data.replace(b"ISO_IR", b"ISO\0IR", 1), name, garbage)  # pydicom would not write it
    return _raw(_edited(data, lambda source: setattr(source, "SpecificCharacterSet", chosen)), name, garbage)


def huge_number(data: bytes, start: int, chance: Chance) -> bytes:
    def edit(source: Dataset) -> None:
        name = _NUMBERS[int(chance.integers(len(_NUMBERS)))]
        if chance.random() < 0.5 and name in source:
            odd = (0, 1, 2, 7, 8, 15, 16, 17, 255, 32767, 65535, int(chance.integers(65536)))
            setattr(source, name, odd[int(chance.integers(len(odd)))])
            return
        name = _TEXTS[int(chance.integers(len(_TEXTS)))]
        value: Any = _HUGE[int(chance.integers(len(_HUGE)))].encode()
        setattr(source, name, "")
        element = source[name]
        source._dict[element.tag] = pydicom.dataelem.RawDataElement(
            element.tag, element.VR, len(value), value, 0, False, True
        )

    return _edited(data, edit)


def dropped_element(data: bytes, start: int, chance: Chance) -> bytes:
    def edit(source: Dataset) -> None:
        tags = [element.tag for element in source if element.keyword not in ("SOPInstanceUID", "SOPClassUID")]
        for tag in chance.choice(np.asarray(tags, np.int64), 2, replace=False):
            del source[int(tag)]

    return _edited(data, edit)


MUTATIONS: Mapping[str, Mutation] = MappingProxyType(
    {
        function.__name__.replace("_", " "): function
        for function in (
            header_bits, pixel_bits, pixel_block, truncated, doubled, swapped, removed, other_vr, other_length,
            nested, group_length, charset, huge_number, dropped_element,
        )
    }
)  # fmt: skip
