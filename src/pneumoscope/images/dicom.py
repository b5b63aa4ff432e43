"""DICOM: pixels as they are stored, or as the header's window shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ImageError
from pneumoscope.images import elements
from pneumoscope.images.aspect import squared
from pneumoscope.images.content import DICOM_SUFFIXES, Content, kind_of
from pneumoscope.images.decoded import Radiograph, check_size
from pneumoscope.images.depth import luma
from pneumoscope.images.header import dicom_errors, read_dataset
from pneumoscope.images.stored import Stored, read_stored
from pneumoscope.images.syntax import named_syntax
from pneumoscope.images.tables import modality_table, palette, voi_lut
from pneumoscope.records import Bools, FloatArray

_PERCENTILES = (0.5, 99.5)  # of the grey values: black and white where a header has no window
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
Window = tuple[float, float, str]


@dataclass(frozen=True, slots=True, eq=False)
class Greys:
    """The grey values of a DICOM image.

    `values`: [H, W], after the modality LUT or rescale; `padding`: bool [H, W], what is no image, or None; `dark`:
    whether low values are dark; `ratio`: height of a pixel by its width; `notes`: what had to be put right.
    """

    values: NDArray[Any]
    padding: Bools | None
    dark: bool
    ratio: float
    notes: list[str]

    def shown(self) -> NDArray[Any]:
        """Return the values that are no padding."""
        return self.values if self.padding is None else self.values[~self.padding]


def is_dicom(path: Path) -> bool:
    """Say whether a file is DICOM by its content, with preamble (PS3.10, 7.1) or without; else by its suffix."""
    try:
        kind = kind_of(Content.of(path).head())
    except OSError:
        kind = None
    return kind == "dicom" or (kind is None and path.suffix.lower() in DICOM_SUFFIXES)


def open_dicom(path: Path) -> Any:
    """Read a DICOM image of a single frame, its pixels not decoded yet; raises `ImageError`."""
    dataset = read_dataset(path)
    _check(path, dataset)
    return dataset


def decode(path: str | Path, dataset: Any) -> Radiograph:
    """Return the image of a dataset of `read_dataset`, as its header's window shows it; raises `ImageError`."""
    _check(path, dataset)
    with dicom_errors(path, "pixels cannot be decoded", remedy(dataset)):
        return render(dataset)


def remedy(dataset: Any) -> str:
    """Return what to do about pixels that cannot be decoded."""
    known = named_syntax(dataset)
    return "export it uncompressed" if known and known.is_encapsulated else "send or copy it again from its source"


def _check(path: str | Path, dataset: Any) -> None:
    with dicom_errors(path, "pixels cannot be decoded", remedy(dataset)):
        if "PixelData" not in dataset:
            raise ImageError("the DICOM object has no pixels", path=path, remedy="send the image object, not a report")
        check_size(path, elements.whole(dataset, "Columns") or 0, elements.whole(dataset, "Rows") or 0)
        if (elements.whole(dataset, "NumberOfFrames") or 1) > 1:
            raise ImageError("is a multi-frame object, one frame is expected", path=path, remedy="send single images")


def render(dataset: Any) -> Radiograph:
    """Decode and bring to 0..1 with air dark; to be called within `dicom_errors`."""
    notes: list[str] = []
    stored = read_stored(dataset, notes)
    layout = stored.layout
    if layout.photometric == "PALETTE COLOR":
        pixels = luma(palette(dataset, stored.values, signed=layout.signed, notes=notes))
        ratio = pixel_ratio(dataset, notes)
    elif layout.samples == 3:  # YBR was turned into RGB by the decoder
        pixels = luma(np.asarray(stored.values / (2**stored.bits - 1), np.float32))
        ratio = pixel_ratio(dataset, notes)
    else:
        greys = _greys(dataset, stored, notes)
        pixels, ratio = _display(dataset, greys, signed=layout.signed), greys.ratio
        if not greys.dark:
            pixels = np.float32(1.0) - pixels
            first = layout.photometric == "MONOCHROME1"
            notes.append(f"inverted for display ({'MONOCHROME1' if first else 'Presentation LUT'})")
        if greys.padding is not None:
            pixels = np.where(greys.padding, np.float32(0), pixels)
    pixels = np.clip(squared(pixels, ratio, notes), 0, 1)
    return Radiograph(pixels, layout.columns, layout.rows, "DICOM", layout.photometric, tuple(notes))


def stored_pixels(dataset: Any) -> NDArray[Any]:
    """Return a DICOM object's pixels as they are stored, [H, W] or [H, W, 3]; to be called within `dicom_errors`."""
    return read_stored(dataset, []).values


def greys_of(dataset: Any) -> Greys | None:
    """Return the grey values of a DICOM image; None where it is in colour. To be called within `dicom_errors`."""
    notes: list[str] = []
    stored = read_stored(dataset, notes)
    if stored.layout.samples == 3 or stored.layout.photometric == "PALETTE COLOR":
        return None
    return _greys(dataset, stored, notes)


def _greys(dataset: Any, stored: Stored, notes: list[str]) -> Greys:
    values = _rescaled(dataset, stored, notes)
    inverse = elements.text(dataset, "PresentationLUTShape") == "INVERSE"
    dark = stored.layout.photometric != "MONOCHROME1" and not inverse
    return Greys(values, _padding(dataset, stored, notes), dark, pixel_ratio(dataset, notes), notes)


def _padding(dataset: Any, stored: Stored, notes: list[str]) -> Bools | None:
    """Return where pixels are padding (PS3.3, C.7.5.1.1.2), bool [H, W]; None where none is."""
    if not elements.present(dataset, "PixelPaddingValue"):
        return None
    layout = stored.layout
    ends = [elements.word(dataset, name, layout.allocated, signed=layout.signed)
            for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]  # fmt: skip
    if ends[0] is None:
        elements.left_out("PixelPaddingValue", notes)
        return None
    if ends[1] is None and elements.present(dataset, "PixelPaddingRangeLimit"):
        elements.left_out("PixelPaddingRangeLimit", notes)
    low, high = sorted((ends[0], ends[0] if ends[1] is None else ends[1]))
    values = stored.values
    padded = (values >= low) & (values <= high)
    half = 1 << (stored.bits - 1)
    lowest, highest = (-half, half - 1) if layout.signed else (0, 2 * half - 1)
    if low < lowest or high > highest:  # in bits that pixels do not have
        raw = stored.raw.astype(np.int64)
        top = 8 * stored.raw.dtype.itemsize
        raw = np.where(raw >> (top - 1), raw - (1 << top), raw) if layout.signed else raw
        padded |= (raw >= low) & (raw <= high)
    if padded.all():
        notes.append("all pixels have the padding value, which was left out")
        return None
    if not padded.any():
        return None
    notes.append(f"{padded.mean():.1%} of the pixels are padding, and shown black")
    return np.asarray(padded, np.bool_)


def pixel_ratio(dataset: Any, notes: list[str]) -> float:
    """Return the height of a pixel by its width; 1 where the header does not say (PS3.3, 10.7.1.1 and C.7.6.3.1.7)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        found = elements.numbers(dataset, keyword)
        if len(found) == 2 and found[0] and found[1] and found[0] > 0 and found[1] > 0:
            return found[0] / found[1]
        if found:
            elements.left_out(keyword, notes)
    return 1.0


def display_window(dataset: Any, greys: Greys | None = None) -> Window:
    """Return centre, width and VOI LUT function by which `read_image` shows a grey DICOM image without a VOI LUT.

    They are of the header, or else of the 0.5 and 99.5 percentiles of `greys` without padding; without them the pixels
    are decoded: do that within `dicom_errors`.
    """
    if (window := _first_window(dataset, [])) is not None:
        return window
    greys = greys or greys_of(dataset)
    if greys is None:
        raise ValueError("an image in colour has no window")
    low, high = np.percentile(greys.shown(), _PERCENTILES)
    return float(low + high) / 2, max(1.0, float(high - low)), "LINEAR"


def voi_table(dataset: Any) -> tuple[int, int, NDArray[np.uint16]] | None:
    """Return the first VOI LUT of a header: the value of its first entry, bits per entry, and entries; None without.

    To be called within `dicom_errors`. Source: DICOM PS3.3, C.11.2.1.1.
    """
    signed = elements.whole(dataset, "PixelRepresentation") == 1
    table = voi_lut(dataset, signed=signed or _below_zero(dataset), notes=[])
    return None if table is None else (table.first, table.bits, table.entries.astype(np.uint16))


def _below_zero(dataset: Any) -> bool:
    """Say whether a rescale may give values below 0: a VOI LUT's first value is signed then (C.11.2.1.1)."""
    found = elements.numbers(dataset, "RescaleIntercept")
    return bool(found and found[0] is not None and found[0] < 0)


def _display(dataset: Any, greys: Greys, *, signed: bool) -> FloatArray:
    """Apply the VOI transformation (PS3.3, C.11.2) and scale to 0..1."""
    values, notes = greys.values, greys.notes
    table = voi_lut(dataset, signed=signed or _below_zero(dataset), notes=notes)
    if table is not None:
        return table.shades(values)
    window = _first_window(dataset, notes)
    if window is None:
        notes.append("no window in the header: scaled by the 0.5 and 99.5 percentiles")
        low, high = np.percentile(greys.shown(), _PERCENTILES)
        return np.clip(_scale(values, float(low), float(high)), 0, 1).astype(np.float32)
    first, last = float(values.min()), float(values.max())
    if values.dtype.kind == "f" or last - first >= values.size:
        return _windowed(values, *window)
    levels = _windowed(np.arange(int(first), int(last) + 1), *window)  # fewer than there are pixels
    return np.asarray(levels[np.subtract(values, int(first), dtype=np.int64)], np.float32)


def _rescaled(dataset: Any, stored: Stored, notes: list[str]) -> NDArray[Any]:
    """Apply the modality LUT or the rescale (PS3.3, C.11.1); without either, return the stored values."""
    values = stored.values
    table = modality_table(dataset, signed=stored.layout.signed, notes=notes)
    if table is not None:
        return table.look_up(values)
    slope = elements.number(dataset, "RescaleSlope", notes)
    intercept = elements.number(dataset, "RescaleIntercept", notes)
    if slope == 0:
        elements.left_out("RescaleSlope", notes)
    if slope in (None, 0, 1) and not intercept:
        return values
    step, start = slope or 1.0, intercept or 0.0
    if step == int(step) and start == int(start) and max(abs(step), abs(start)) < 1 << 31:
        return values.astype(np.int64) * int(step) + int(start)  # whole numbers are windowed by a table
    with np.errstate(over="ignore"):
        rescaled = values * np.float64(step) + np.float64(start)
    if not np.isfinite(rescaled).all():
        raise ValueError("rescaled values are not finite")
    return rescaled


def _windowed(values: NDArray[Any], centre: float, width: float, function: str) -> FloatArray:
    if function == "SIGMOID":
        from scipy.special import expit  # slow to load, and few images need it

        return np.asarray(expit(4 * (values.astype(np.float64) - centre) / width), dtype=np.float32)
    if function == "LINEAR_EXACT":
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return np.clip(_scale(values, low, high), 0, 1).astype(np.float32)


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    span = high - low
    shifted = values.astype(np.float64) - low
    return shifted / span if span > 0 else (shifted > 0).astype(np.float64)


def _first_window(dataset: Any, notes: list[str]) -> Window | None:
    centre = elements.number(dataset, "WindowCenter", notes)
    width = elements.number(dataset, "WindowWidth", notes)
    function = elements.text(dataset, "VOILUTFunction") or "LINEAR"
    if function not in _FUNCTIONS:
        elements.left_out("VOILUTFunction", notes)
        function = "LINEAR"
    if centre is None or width is None:
        return None
    # PS3.3, C.11.2.1.2: at least 1; C.11.2.1.3: greater than 0 for the exact functions.
    allowed = width > 0 if function in ("LINEAR_EXACT", "SIGMOID") else width >= 1
    return (centre, width, function) if allowed else None
