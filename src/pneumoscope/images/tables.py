"""Look-up tables of a DICOM header: modality LUT, VOI LUT, palette (PS3.3, C.11.1, C.11.2, C.7.6.3.1.5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images import elements
from pneumoscope.records import FloatArray

_CHANNELS = ("Red", "Green", "Blue")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """`first`: the value of the first entry; `bits`: of an entry; `entries`: int64 [N]."""

    first: int
    bits: int
    entries: NDArray[np.int64]

    def look_up(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return the entry of each value; those below the first take the first, those beyond the last the last."""
        whole = np.asarray(np.rint(values) if values.dtype.kind == "f" else values, np.int64)
        return self.entries[np.clip(whole - self.first, 0, len(self.entries) - 1)]

    def shades(self, values: NDArray[Any]) -> FloatArray:
        """Return the entry of each value as a part of the largest possible, float32 in 0..1."""
        return np.asarray(self.look_up(values) / (2**self.bits - 1), np.float32)


def table_of(item: Any, descriptor: str, data: str, *, signed: bool, notes: list[str]) -> Table | None:
    """Return the table of two elements; None where they are missing or, with a note, damaged."""
    said = elements.words(item, descriptor)
    if len(said) != 3:
        elements.left_out(descriptor, notes)
        return None
    count, first, bits = (int(number) for number in said)
    entries = elements.words(item, data, count or 65536)[: count or 65536]
    if len(entries) < 2:
        elements.left_out(data, notes)
        return None
    first -= 65536 if signed and first >= 32768 else 0
    return Table(first, bits, entries)


def _as_used(table: Table, largest: int, what: str, notes: list[str]) -> Table:
    """Return the table with as many bits as its entries use, with a note where the descriptor says otherwise."""
    used = max(8, largest.bit_length())
    if used == table.bits:
        return table
    notes.append(f"{what} says {table.bits} bits, and its largest entry is {largest}: scaled by {2**used - 1}")
    return replace(table, bits=used)


def modality_table(dataset: Any, *, signed: bool, notes: list[str]) -> Table | None:
    """Return the modality LUT, None without a usable one."""
    return _first(dataset, "ModalityLUTSequence", signed=signed, notes=notes)


def voi_lut(dataset: Any, *, signed: bool, notes: list[str]) -> Table | None:
    """Return the first usable VOI LUT, None without one.

    Where the entries use fewer or more bits than the descriptor says, their actual range counts, with a note.
    """
    table = _first(dataset, "VOILUTSequence", signed=signed, notes=notes)
    return None if table is None else _as_used(table, int(table.entries.max()), "the VOI LUT", notes)


def _first(dataset: Any, sequence: str, *, signed: bool, notes: list[str]) -> Table | None:
    for item in elements.items(dataset, sequence, notes):
        table = table_of(item, "LUTDescriptor", "LUTData", signed=signed, notes=notes)
        if table is not None:
            return table
    return None


def palette(dataset: Any, stored: NDArray[Any], *, signed: bool, notes: list[str]) -> FloatArray:
    """Return the colours of indices, float32 [H, W, 3] in 0..1; raises `ValueError` where the palette is damaged."""
    if any(elements.present(dataset, f"Segmented{name}PaletteColorLookupTableData") for name in _CHANNELS):
        from pydicom.pixels.processing import apply_color_lut

        coloured = apply_color_lut(stored, dataset)
        return np.asarray(coloured[..., :3] / np.float32(np.iinfo(coloured.dtype).max), np.float32)
    aside: list[str] = []
    tables = [
        table_of(
            dataset,
            f"{name}PaletteColorLookupTableDescriptor",
            f"{name}PaletteColorLookupTableData",
            signed=signed,
            notes=aside,
        )
        for name in _CHANNELS
    ]
    usable = [table for table in tables if table is not None]
    if len(usable) < len(tables):
        raise ValueError(aside[0])
    # One scale for all three: a channel may be dark, and the descriptors are alike.
    largest = max(int(table.entries.max()) for table in usable)
    scale = 2 ** _as_used(usable[0], largest, "the palette", notes).bits - 1
    return np.asarray(np.stack([table.look_up(stored) for table in usable], axis=-1) / scale, np.float32)
