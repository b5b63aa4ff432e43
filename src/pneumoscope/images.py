"""The only reader of pixels: JPEG, PNG and other raster files, DICOM, rows of a MedMNIST archive."""

from __future__ import annotations

import math
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from pneumoscope.errors import ImageError
from pneumoscope.records import FloatArray

RASTER_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff"})
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
MAX_PIXELS = 100_000_000  # 100 megapixels: twice the largest radiography detector, 400 MB as float32
MIN_SIDE = 16

_RE_EXPORT = "export it again as an 8- or 16-bit greyscale PNG or JPEG"


@dataclass(frozen=True, slots=True)
class Radiograph:
    """One decoded image.

    `pixels`: float32 [H, W] in 0..1, 0 black, 1 white, air dark (photometric interpretation resolved).
    `width`, `height`: size of the stored image in pixels; `pixels` may be smaller where a reduced
    decoding was asked for. `notes`: what had to be put right on the way.
    """

    pixels: FloatArray
    width: int
    height: int
    format: str
    mode: str
    notes: tuple[str, ...] = ()


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


def read_image(path: str | Path, *, at_least: int | None = None) -> Radiograph:
    """Read one radiograph.

    Args:
        path: a raster file, a DICOM file, or `archive.npz#val/12`.
        at_least: a JPEG may be decoded at a half, quarter or eighth as long as both sides keep this
            many pixels (DCT scaling, three times as fast on large files).

    Raises:
        ImageError: the file is missing, damaged, too large, too small, has several frames, or no pixels.
    """
    text = str(path)
    if ".npz#" in text:
        return _read_archive_row(text)
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not an image" if file.is_dir() else "no such file"
        raise ImageError(what, path=file, remedy="check the path")
    if file.stat().st_size == 0:
        raise ImageError("the file is empty (0 bytes)", path=file, remedy="copy it again from its source")
    return _read_dicom(file) if is_dicom(file) else _read_raster(file, at_least)


def check_size(path: str | Path, width: int, height: int) -> None:
    """Raise `ImageError` where an image is too small to judge or too large to decode safely."""
    if width < MIN_SIDE or height < MIN_SIDE:
        raise ImageError(
            f"is {width}x{height} pixels, at least {MIN_SIDE}x{MIN_SIDE} are needed",
            path=path,
            remedy="use the original image",
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"is {width}x{height} pixels, over the limit of {MAX_PIXELS // 1_000_000} megapixels",
            path=path,
            remedy="not decoded, because it may be a decompression bomb; scale it down first",
        )


def _read_raster(path: Path, at_least: int | None) -> Radiograph:
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb warning becomes an error; our limit on the header comes first.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open_raster(path) as image:
                width, height, mode = image.width, image.height, image.mode
                check_size(path, width, height)
                frames = int(getattr(image, "n_frames", 1))
                if frames > 1:
                    raise ImageError(
                        f"holds {frames} frames, one is expected",
                        path=path,
                        remedy="save the frame you mean as a PNG of its own",
                    )
                if at_least and image.format == "JPEG":
                    image.draft("L" if mode in ("L", "RGB", "YCbCr") else mode, (at_least, at_least))
                pixels = _grey(ImageOps.exif_transpose(image), notes)
                fmt = image.format or "?"
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:
        raise ImageError(_reason(error), path=path, remedy=_RE_EXPORT) from error
    return Radiograph(pixels, width, height, fmt, mode, tuple(notes))


def _open_raster(path: Path) -> ImageFile.ImageFile:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and limit < MAX_PIXELS:
        # Image.open refuses by size before we can say so in our own words; reading the header alone is safe.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    return Image.open(path)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is not an image (the content matches no known format)"
    if isinstance(error, Image.DecompressionBombError):
        return f"is larger than {MAX_PIXELS // 1_000_000} megapixels and was not decoded"
    text = str(error).split("\n", maxsplit=1)[0]
    return f"the image is damaged ({text})" if text else "the image is damaged"


def _grey(image: Image.Image, notes: list[str]) -> FloatArray:
    """Return float32 [H, W] in 0..1 from any Pillow mode."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image, dtype=np.float32)
        return np.asarray(np.clip(values / 65535.0, 0.0, 1.0), dtype=np.float32)
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError("pixel values are not finite")
        notes.append("floating-point pixels were scaled by their range")
        return _by_range(values)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        if image.getchannel("A").getextrema()[0] != 255:
            notes.append("transparent pixels were put on black")
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            image = Image.alpha_composite(black, image.convert("RGBA"))
        image = image.convert("RGB") if image.mode != "LA" else image.convert("L")
    if image.mode == "CMYK":
        notes.append("CMYK colours were turned into grey")
    if image.mode != "L":
        image = image.convert("L")
    return np.asarray(image, dtype=np.float32) / np.float32(255.0)


def _by_range(values: NDArray[Any]) -> FloatArray:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)


# --- MedMNIST archives ------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _archive(path: str, modified: int) -> Any:
    return np.load(path, allow_pickle=False, mmap_mode=None)


@lru_cache(maxsize=4)
def _archive_images(path: str, modified: int, split: str) -> NDArray[Any]:
    images: NDArray[Any] = _archive(path, modified)[f"{split}_images"]
    return images


def _read_archive_row(text: str) -> Radiograph:
    name, _, row = text.rpartition("#")
    split, _, number = row.partition("/")
    try:
        images = _archive_images(name, Path(name).stat().st_mtime_ns, split)
        values = images[int(number)]
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise ImageError(f"no such row in the archive ({error})", path=text, remedy="use e.g. a.npz#val/0") from error
    height, width = values.shape[:2]
    check_size(text, width, height)
    if values.ndim == 3:
        values = np.asarray(Image.fromarray(values).convert("L"))
    return Radiograph(values.astype(np.float32) / np.float32(255.0), width, height, "NPZ", "L")


# --- DICOM ------------------------------------------------------------------------------------------------


def read_header(path: Path) -> Any:
    """Read a DICOM file without its pixels; raises `ImageError` where it is not DICOM."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ImageError(
            f"is not a readable DICOM file ({_first(error)})", path=path, remedy="export it again"
        ) from error


def _first(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n", maxsplit=1)[0]


def _read_dicom(path: Path) -> Radiograph:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        dataset = pydicom.dcmread(path)
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ImageError(
            f"is not a readable DICOM file ({_first(error)})", path=path, remedy="export it again"
        ) from error
    if "PixelData" not in dataset:
        raise ImageError("the DICOM object has no pixels", path=path, remedy="send the image object, not a report")
    height, width = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    check_size(path, width, height)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ImageError("is a multi-frame object, one frame is expected", path=path, remedy="send single images")
    try:
        stored = dataset.pixel_array
    except (
        ValueError,
        RuntimeError,
        AttributeError,
        KeyError,
        NotImplementedError,
        TypeError,
        OSError,
        EOFError,
    ) as error:
        raise ImageError(
            f"pixels cannot be decoded ({_first(error)})", path=path, remedy="export it uncompressed"
        ) from error
    notes: list[str] = []
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if stored.ndim == 3:
        pixels = _colour_to_grey(dataset, stored, photometric)
    else:
        pixels = _window(dataset, stored, notes)
        inverse = str(dataset.get("PresentationLUTShape", "")).upper() == "INVERSE"
        if photometric == "MONOCHROME1" or inverse:
            pixels = np.float32(1.0) - pixels
            notes.append("inverted for display (MONOCHROME1)" if not inverse else "inverted (Presentation LUT)")
    return Radiograph(pixels, width, height, "DICOM", photometric, tuple(notes))


def _colour_to_grey(dataset: Any, stored: NDArray[Any], photometric: str) -> FloatArray:
    from pydicom.pixels.processing import convert_color_space

    if photometric.startswith("YBR"):
        stored = convert_color_space(stored, photometric, "RGB")
    top = float(2 ** int(dataset.BitsStored) - 1)
    weights = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma
    return np.asarray(np.clip(stored.astype(np.float32) @ weights / top, 0, 1), dtype=np.float32)


def _window(dataset: Any, stored: NDArray[Any], notes: list[str]) -> FloatArray:
    """Apply modality and VOI transformation (PS3.3, C.11.1 and C.11.2) and scale to 0..1."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        lut = dataset.VOILUTSequence[0]
        looked_up = apply_voi(values.astype(np.int64), dataset)
        top = 2 ** int(lut.LUTDescriptor[2]) - 1
        return np.asarray(np.clip(looked_up / top, 0, 1), dtype=np.float32)
    window = _first_window(dataset)
    if window is None:
        notes.append("no window in the header: scaled by the 0.5 and 99.5 percentiles")
        low, high = np.percentile(values, (0.5, 99.5))
        return np.clip(_scale(values, float(low), float(high)), 0, 1).astype(np.float32)
    centre, width, function = window
    if function == "SIGMOID":
        return (1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width))).astype(np.float32)
    if function == "LINEAR_EXACT":
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return np.clip(_scale(values, low, high), 0, 1).astype(np.float32)


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
    if centre is None or width is None or not math.isfinite(centre) or width < 1:
        return None
    return centre, width, str(dataset.get("VOILUTFunction", "LINEAR")).upper()
