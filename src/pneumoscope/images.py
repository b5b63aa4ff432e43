"""The only reader of pixels: JPEG, PNG and other raster files, DICOM, rows of a MedMNIST archive."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pneumoscope import lossless
from pneumoscope.errors import ImageError
from pneumoscope.records import FloatArray

RASTER_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff"})
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
MAX_PIXELS = 80_000_000  # 1.5 times the largest radiography detector; Pillow warns from 89 megapixels on
MAX_INFLATED = 4 * MAX_PIXELS  # bytes of a deflated data set
MIN_SIDE = 16


_PIXELS = 0x7FE00010
_RE_EXPORT = "export it again as an 8- or 16-bit greyscale PNG or JPEG"
_BOMB = "not decoded, because it may be a decompression bomb; scale it down first"
# Formats that pictures come in; Pillow knows others, some of which start programs (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
PLAIN = ("CR", "DX", "RG")  # DICOM PS3.3 C.7.3.1.1.1: the modalities of plain radiographs
_PERCENTILES = (0.5, 99.5)  # of the grey values: black and white where a header has no window
_WHITE_IS_ZERO = 0  # TIFF 6.0, tag 262
# What the decoders raise on damaged files, found by changing bytes at random.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class Radiograph:
    """One decoded image.

    `pixels`: float32 [H, W] in 0..1, 0 black, 1 white, air dark (photometric interpretation resolved).
    `width`, `height`: size of the stored image in pixels; `pixels` may be smaller where a reduced
    decoding was asked for. `notes`: what had to be put right on the way. From a DICOM header, None where it is not
    said: `modality` (0008,0060), `body_part` (0018,0015), `view` (0018,5101), `age_years` (0010,1010).
    """

    pixels: FloatArray
    width: int
    height: int
    format: str
    mode: str
    notes: tuple[str, ...] = ()
    modality: str | None = None
    body_part: str | None = None
    view: str | None = None
    age_years: float | None = None


@contextmanager
def image_errors(path: str | Path, what: str, remedy: str) -> Iterator[None]:
    """Turn what decoders raise on a damaged file into an `ImageError` that names the file and the remedy."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError("is not an image (the content matches no known format)", path=path, remedy=remedy) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        larger = f"is larger than {MAX_PIXELS // 1_000_000} megapixels"
        raise ImageError(larger, path=path, remedy=_BOMB) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{what} ({reason})", path=path, remedy=remedy) from error


@contextmanager
def dicom_errors(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Do as `image_errors`, also for what pydicom raises; elements are decoded, and fail, when first asked for."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    with image_errors(path, what, remedy):
        try:
            yield
        except (BytesLengthException, InvalidDicomError) as error:
            raise ValueError(error) from error


def in_archive(path: str) -> tuple[Path, str] | None:
    """Split `archive.npz#val/12` into the archive and `val/12`; None for an image in a file of its own."""
    name, _, row = path.rpartition("#")
    return (Path(name), row) if name.lower().endswith(".npz") else None


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
    if found := in_archive(str(path)):
        return _read_archive_row(*found)
    file = Path(path)
    with image_errors(file, "cannot be read", "check the path and who owns the file"):
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
            remedy=_BOMB,
        )


def _read_raster(path: Path, at_least: int | None) -> Radiograph:
    notes: list[str] = []
    with image_errors(path, "the image is damaged", _RE_EXPORT), Image.open(path, formats=_FORMATS) as image:
        width, height, mode = image.width, image.height, image.mode
        check_size(path, width, height)
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise ImageError(
                f"holds {frames} frames, one is expected",
                path=path,
                remedy="save the frame you mean as a PNG of its own",
            )
        if at_least and image.format == "JPEG":
            image.draft("L" if mode in ("L", "RGB", "YCbCr") else mode, (at_least, at_least))
        upright: Image.Image = image
        if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
            upright = ImageOps.exif_transpose(image)
            notes.append("turned as the EXIF orientation says")
        pixels = _grey(upright, notes)
        if mode.startswith(("I", "F")) and getattr(image, "tag_v2", {}).get(262) == _WHITE_IS_ZERO:
            # Pillow does this itself for 8 bits and fewer.
            pixels = np.float32(1.0) - pixels
            notes.append("inverted (0 is white in this TIFF)")
    return Radiograph(pixels, width, height, image.format or "?", mode, tuple(notes))


def _grey(image: Image.Image, notes: list[str]) -> FloatArray:
    """Return float32 [H, W] in 0..1 from any Pillow mode."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep(np.asarray(image, dtype=np.float32), image.mode, notes)
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


def _deep(values: FloatArray, mode: str, notes: list[str]) -> FloatArray:
    """Scale more than 8 bits per pixel: 16 bits by 65535, anything else by its range."""
    if not np.isfinite(values).all():
        raise ValueError("pixel values are not finite")
    low, high = float(values.min()), float(values.max())
    if mode == "F" or low < 0 or high > 65535:
        notes.append("pixels of unknown depth were scaled by their range")
        return ((values - low) / (high - low or 1.0)).astype(np.float32)
    notes.append("16 bits per pixel, read at full depth")
    if high <= 4095:
        notes.append(f"the brightest pixel is {high:.0f} of 65535: it may hold fewer bits than it says, and looks dark")
    return (values / np.float32(65535)).astype(np.float32)


# --- MedMNIST archives ------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _archive(path: str, modified: int) -> Any:
    return np.load(path, allow_pickle=False, mmap_mode=None)


@lru_cache(maxsize=4)
def _archive_images(path: str, modified: int, split: str) -> NDArray[Any]:
    images: NDArray[Any] = _archive(path, modified)[f"{split}_images"]
    return images


def _read_archive_row(archive: Path, row: str) -> Radiograph:
    name = f"{archive}#{row}"
    split, _, number = row.partition("/")
    with image_errors(name, "no such row in the archive", "use e.g. a.npz#val/0"):
        images = _archive_images(str(archive), archive.stat().st_mtime_ns, split)
        values = images[int(number)]
        if values.dtype != np.uint8 or values.ndim not in (2, 3):
            raise ValueError(f"its images are {values.ndim}-dimensional {values.dtype}, not 2-dimensional uint8")
        height, width = values.shape[:2]
        check_size(name, width, height)
        if values.ndim == 3:
            values = np.asarray(Image.fromarray(values).convert("L"))
    return Radiograph(values.astype(np.float32) / np.float32(255.0), width, height, "NPZ", "L")


# --- DICOM ------------------------------------------------------------------------------------------------


def read_header(path: Path) -> Any:
    """Read a DICOM file without its pixels; raises `ImageError` where it is not DICOM.

    Its elements are decoded when they are asked for: do that within `dicom_errors`.
    """
    return _dataset(path, stop_before_pixels=True)


def _dataset(path: Path, *, stop_before_pixels: bool = False) -> Any:
    import pydicom

    with dicom_errors(path, "is not a readable DICOM file", "export it again"):
        _check_inflated(path)
        return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)


def _check_inflated(path: Path) -> None:
    """Raise `ImageError` where a deflated data set (PS3.5, A.5), which pydicom inflates whole, is a bomb."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as stream:
        read_preamble(stream, force=False)
        meta = _read_file_meta_info(stream)  # leaves the stream where the data set begins
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflating, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := stream.read(1 << 16):
            while chunk:
                size += len(inflating.decompress(chunk, 1 << 20))
                chunk = inflating.unconsumed_tail
                if size > MAX_INFLATED:
                    raise ImageError("holds a deflated data set that is too large", path=path, remedy=_BOMB)


def _read_dicom(path: Path) -> Radiograph:
    dataset = _dataset(path)
    with dicom_errors(path, "pixels cannot be decoded", "export it uncompressed"):
        if "PixelData" not in dataset:
            raise ImageError("the DICOM object has no pixels", path=path, remedy="send the image object, not a report")
        height, width = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        check_size(path, width, height)
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise ImageError("is a multi-frame object, one frame is expected", path=path, remedy="send single images")
        return _render(dataset, width, height)


def _render(dataset: Any, width: int, height: int) -> Radiograph:
    """Decode and bring to 0..1 with air dark."""
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
    modality, part, view, age = (
        str(dataset.get(name, "") or "").strip() or None
        for name in ("Modality", "BodyPartExamined", "ViewPosition", "PatientAge")
    )
    return Radiograph(
        pixels, width, height, "DICOM", photometric, tuple(notes), modality, part, view, age_in_years(age)
    )


def age_in_years(text: str | None) -> float | None:
    """Turn a DICOM age string into years (PS3.5, 6.2: nnnD, nnnW, nnnM, nnnY), None where it is not one.

    >>> age_in_years("018M")
    1.5
    """
    if not text or len(text) < 2 or not text[:-1].isdecimal():
        return None
    unit = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}.get(text[-1].upper(), math.nan)
    years = int(text[:-1]) / unit
    return years if math.isfinite(years) else None


def stored_pixels(dataset: Any) -> NDArray[Any]:
    """Return a DICOM object's pixels as they are stored, [H, W] or [H, W, 3]; to be asked within `dicom_errors`."""
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


def display_window(dataset: Any) -> tuple[float, float, str]:
    """Return centre, width and VOI LUT function by which `read_image` shows a grey DICOM image without a VOI LUT.

    They are of the header, or else of the 0.5 and 99.5 percentiles, for which the pixels are decoded: do that within
    `dicom_errors`.
    """
    from pydicom.pixels.processing import apply_modality_lut

    if (window := _first_window(dataset)) is not None:
        return window
    low, high = np.percentile(apply_modality_lut(stored_pixels(dataset), dataset), _PERCENTILES)
    return float(low + high) / 2, max(1.0, float(high - low)), "LINEAR"


def voi_table(dataset: Any) -> tuple[int, int, NDArray[np.uint16]] | None:
    """Return the first VOI LUT of a header: the value of its first entry, bits per entry, and entries; None without.

    To be asked within `dicom_errors`. Source: DICOM PS3.3, C.11.2.1.1.
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
    from pydicom.pixels.processing import apply_modality_lut

    values = apply_modality_lut(stored, dataset)
    if not np.isfinite(values).all():
        raise ValueError("rescaled values are not finite")
    if (looked_up := voi_table(dataset)) is not None:
        return _look_up(values, *looked_up)
    window = _first_window(dataset)
    if window is None:
        notes.append("no window in the header: scaled by the 0.5 and 99.5 percentiles")
        low, high = np.percentile(values, _PERCENTILES)
        return np.clip(_scale(values, float(low), float(high)), 0, 1).astype(np.float32)
    centre, width, function = window
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
