"""The only reader of pixels and DICOM headers: JPEG, PNG and other raster files, DICOM, rows of a MedMNIST archive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.errors import ImageError
from pneumoscope.images.decoded import MAX_PIXELS, Radiograph, check_size, image_errors
from pneumoscope.images.dicom import decode, display_window, is_dicom, open_dicom, render, stored_pixels, voi_table
from pneumoscope.images.header import Header, age_in_years, dicom_errors, header_of, read_dataset, read_header
from pneumoscope.images.raster import RASTER_SUFFIXES, in_archive, read_archive_row, read_raster

__all__ = [
    "MAX_PIXELS",
    "RASTER_SUFFIXES",
    "Header",
    "ImageFile",
    "Radiograph",
    "age_in_years",
    "check_size",
    "dicom_errors",
    "display_window",
    "image_errors",
    "in_archive",
    "is_dicom",
    "open_dicom",
    "open_image",
    "read_header",
    "read_image",
    "render",
    "stored_pixels",
    "voi_table",
]


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """An image that is not decoded yet.

    `decode`: given what `read_image` calls `at_least`, returns the radiograph or raises `ImageError`. `header`: None
    where the file is no DICOM.
    """

    decode: Callable[[int | None], Radiograph]
    header: Header | None = None


def open_image(path: str | Path) -> ImageFile:
    """Open one image without decoding its pixels; raises `ImageError` where the file is missing or no DICOM."""
    if row := in_archive(str(path)):
        return ImageFile(lambda at_least: read_archive_row(*row))
    file = Path(path)
    with image_errors(file, "cannot be read", "check the path and who owns the file"):
        if not file.is_file():
            what = "is a folder, not an image" if file.is_dir() else "no such file"
            raise ImageError(what, path=file, remedy="check the path")
        if file.stat().st_size == 0:
            raise ImageError("the file is empty (0 bytes)", path=file, remedy="copy it again from its source")
    if not is_dicom(file):
        return ImageFile(lambda at_least: read_raster(file, at_least))
    dataset = read_dataset(file)
    return ImageFile(lambda at_least: decode(file, dataset), header_of(dataset))


def read_image(path: str | Path, *, at_least: int | None = None) -> Radiograph:
    """Read one radiograph.

    Args:
        path: a raster file, a DICOM file, or `archive.npz#val/12`.
        at_least: a JPEG may be decoded at a half, quarter or eighth as long as both sides keep this
            many pixels (DCT scaling, three times as fast on large files).

    Raises:
        ImageError: the file is missing, damaged, too large, too small, has several frames, or no pixels.
    """
    return open_image(path).decode(at_least)
