"""JPEG, PNG and other raster files, and rows of a MedMNIST archive."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from pneumoscope.errors import ImageError
from pneumoscope.images.decoded import Radiograph, check_size, image_errors
from pneumoscope.records import FloatArray

RASTER_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff"})

_RE_EXPORT = "export it again as an 8- or 16-bit greyscale PNG or JPEG"
# Formats of images; Pillow reads others, some of which start programs (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_WHITE_IS_ZERO = 0  # TIFF 6.0, tag 262


def read_raster(path: Path, at_least: int | None) -> Radiograph:
    """Read one raster file, a JPEG not below `at_least`; raises `ImageError`."""
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


def in_archive(path: str) -> tuple[Path, str] | None:
    """Split `archive.npz#val/12` into the archive and `val/12`; None for an image in a file of its own."""
    name, _, row = path.rpartition("#")
    return (Path(name), row) if name.lower().endswith(".npz") else None


@lru_cache(maxsize=4)
def _archive(path: str, modified: int) -> Any:
    return np.load(path, allow_pickle=False, mmap_mode=None)


@lru_cache(maxsize=4)
def _archive_images(path: str, modified: int, split: str) -> NDArray[Any]:
    images: NDArray[Any] = _archive(path, modified)[f"{split}_images"]
    return images


def read_archive_row(archive: Path, row: str) -> Radiograph:
    """Read one image of an archive, named as in `val/12`; raises `ImageError`."""
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
