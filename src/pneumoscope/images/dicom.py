"""DICOM: pixels as they are stored, or as the header's window shows them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ImageError
from pneumoscope.images import lossless
from pneumoscope.images.decoded import Radiograph, check_size
from pneumoscope.images.header import dicom_errors, read_dataset
from pneumoscope.images.raster import RASTER_SUFFIXES
from pneumoscope.records import FloatArray

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})

_PIXELS = 0x7FE00010
_PERCENTILES = (0.5, 99.5)  # of the grey values: black and white where a header has no window


def is_dicom(path: Path) -> bool:
    """Say whether a file is DICOM, by suffix or by the `DICM` prefix at byte 128 (PS3.10, 7.1)."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if path.suffix.lower() in RASTER_SUFFIXES:
        return False
    try:
        with path.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError:
        return False


def open_dicom(path: Path) -> Any:
    """Read a DICOM image of a single frame, its pixels not decoded yet; raises `ImageError`."""
    dataset = read_dataset(path)
    _check(path, dataset)
    return dataset


def decode(path: Path, dataset: Any) -> Radiograph:
    """Return the image of a dataset of `read_dataset`, as its header's window shows it; raises `ImageError`."""
    _check(path, dataset)
    with dicom_errors(path, "pixels cannot be decoded", "export it uncompressed"):
        return render(dataset)


def _check(path: Path, dataset: Any) -> None:
    with dicom_errors(path, "pixels cannot be decoded", "export it uncompressed"):
        if "PixelData" not in dataset:
            raise ImageError("the DICOM object has no pixels", path=path, remedy="send the image object, not a report")
        height, width = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        check_size(path, width, height)
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise ImageError("is a multi-frame object, one frame is expected", path=path, remedy="send single images")


def render(dataset: Any) -> Radiograph:
    """Decode and bring to 0..1 with air dark; to be called within `dicom_errors`."""
    from pydicom.pixels.processing import apply_color_lut

    stored = stored_pixels(dataset)
    notes: list[str] = []
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)
        pixels = _luma(coloured, np.iinfo(coloured.dtype).max)
    elif stored.ndim == 3:  # YBR was turned into RGB by pydicom
        pixels = _luma(stored, 2 ** int(dataset.BitsStored) - 1)
    else:
        pixels = _window(dataset, stored, notes)
        inverse = str(dataset.get("PresentationLUTShape", "")).upper() == "INVERSE"
        if photometric == "MONOCHROME1" or inverse:
            pixels = np.float32(1.0) - pixels
            reason = "MONOCHROME1" if photometric == "MONOCHROME1" else "Presentation LUT"
            notes.append(f"inverted for display ({reason})")
    return Radiograph(pixels, int(dataset.Columns), int(dataset.Rows), "DICOM", photometric, tuple(notes))


def stored_pixels(dataset: Any) -> NDArray[Any]:
    """Return a DICOM object's pixels as they are stored, [H, W] or [H, W, 3]; to be called within `dicom_errors`."""
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_deflated:
        _check_end(dataset)
    with _panic_is_damage():
        pixels = pixel_array(dataset, decoding_plugin=_decoder(syntax) if syntax.is_encapsulated else "")
    return lossless.checked(dataset, pixels)


def _decoder(syntax: Any) -> str:
    """Return which plugin of pydicom decodes: one each, since fallbacks would differ by machine.

    GDCM ends the process on damaged JPEG; pylibjpeg decodes damaged JPEG-LS to noise without a word.
    """
    from pydicom.uid import JPEGLSLossless, JPEGLSNearLossless

    return "pyjpegls" if syntax in (JPEGLSLossless, JPEGLSNearLossless) else "pylibjpeg"


def _check_end(dataset: Any) -> None:
    """Raise `ValueError` where anything but signatures and padding follows the pixels (PS3.5, 7.1 and 8.1).

    Deflate has no checksum here, and damaged, it mostly gives another number of bytes.
    """
    tags = list(dataset.keys())  # as they came
    if any(tag.group < 0xFFFA for tag in tags[tags.index(_PIXELS) + 1 :]):
        raise ValueError("the data set goes on after its pixels")


@contextmanager
def _panic_is_damage() -> Iterator[None]:
    """Turn a panic of the decoder of RLE, written in Rust, into a `ValueError`; it is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError("the decoder gave up") from error


def display_window(dataset: Any, values: NDArray[Any] | None = None) -> tuple[float, float, str]:
    """Return centre, width and VOI LUT function by which `read_image` shows a grey DICOM image without a VOI LUT.

    They are of the header, or else of the 0.5 and 99.5 percentiles of `values`, those after the modality LUT; without
    them the pixels are decoded: do that within `dicom_errors`.
    """
    from pydicom.pixels.processing import apply_modality_lut

    if (window := _first_window(dataset)) is not None:
        return window
    if values is None:
        values = apply_modality_lut(stored_pixels(dataset), dataset)
    low, high = np.percentile(values, _PERCENTILES)
    return float(low + high) / 2, max(1.0, float(high - low)), "LINEAR"


def voi_table(dataset: Any) -> tuple[int, int, NDArray[np.uint16]] | None:
    """Return the first VOI LUT of a header: the value of its first entry, bits per entry, and entries; None without.

    To be called within `dicom_errors`. Source: DICOM PS3.3, C.11.2.1.1.
    """
    if not dataset.get("VOILUTSequence"):
        return None
    item = dataset.VOILUTSequence[0]
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 65536
    table = item.LUTData
    if isinstance(table, bytes):
        wide = "<u2" if dataset.original_encoding[1] in (True, None) else ">u2"
        table = np.frombuffer(table, "u1" if len(table) < 2 * entries else wide)
    return first, bits, np.asarray(table, np.uint16)[:entries]


def _luma(colours: NDArray[Any], top: float) -> FloatArray:
    weights = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    grey: FloatArray = colours[..., :3].astype(np.float32) @ weights / np.float32(top)
    return np.clip(grey, 0, 1)


def _window(dataset: Any, stored: NDArray[Any], notes: list[str]) -> FloatArray:
    """Apply modality and VOI transformation (PS3.3, C.11.1 and C.11.2) and scale to 0..1."""
    if (looked_up := voi_table(dataset)) is not None:
        return _look_up(_rescaled(dataset, stored), *looked_up)
    window = _first_window(dataset)
    if window is None:
        notes.append("no window in the header: scaled by the 0.5 and 99.5 percentiles")
        values = _rescaled(dataset, stored)
        low, high = np.percentile(values, _PERCENTILES)
        return np.clip(_scale(values, float(low), float(high)), 0, 1).astype(np.float32)
    first, last = int(stored.min()), int(stored.max())
    if last - first >= stored.size:
        return _windowed(_rescaled(dataset, stored), *window)
    levels = _windowed(_rescaled(dataset, np.arange(first, last + 1)), *window)  # fewer than there are pixels
    return np.asarray(levels[np.subtract(stored, first, dtype=np.int64)], np.float32)


def _rescaled(dataset: Any, stored: NDArray[Any]) -> NDArray[Any]:
    from pydicom.pixels.processing import apply_modality_lut

    values = apply_modality_lut(stored, dataset)
    if not np.isfinite(values).all():
        raise ValueError("rescaled values are not finite")
    return np.asarray(values)


def _windowed(values: NDArray[Any], centre: float, width: float, function: str) -> FloatArray:
    if function == "SIGMOID":
        from scipy.special import expit  # slow to load, and few images need it

        return np.asarray(expit(4 * (values.astype(np.float64) - centre) / width), dtype=np.float32)
    if function == "LINEAR_EXACT":
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return np.clip(_scale(values, low, high), 0, 1).astype(np.float32)


def _look_up(values: NDArray[Any], first: int, bits: int, table: NDArray[np.uint16]) -> FloatArray:
    """Apply a VOI LUT (PS3.3, C.11.2.1.1); pydicom's own wraps around with 8-bit entries beyond the 256th."""
    shades = table.astype(np.float32) / np.float32(2**bits - 1)
    index = np.clip(values.astype(np.int64) - first, 0, len(shades) - 1)
    looked_up: FloatArray = np.clip(shades[index], 0, 1).astype(np.float32)
    return looked_up


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    span = high - low
    shifted = values.astype(np.float64) - low
    return shifted / span if span > 0 else (shifted > 0).astype(np.float64)


def _first_window(dataset: Any) -> tuple[float, float, str] | None:
    from pydicom.multival import MultiValue

    def first(value: Any) -> float | None:
        if isinstance(value, MultiValue):
            value = value[0] if len(value) else None
        return None if value in (None, "") else float(value)

    centre, width = first(dataset.get("WindowCenter")), first(dataset.get("WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or not (math.isfinite(centre) and math.isfinite(width)):
        return None
    # PS3.3, C.11.2.1.2: at least 1; C.11.2.1.3: greater than 0 for the exact functions.
    allowed = width > 0 if function in ("LINEAR_EXACT", "SIGMOID") else width >= 1
    return (centre, width, function) if allowed else None
