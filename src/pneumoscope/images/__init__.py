"""The only reader of pixels: JPEG, PNG and other raster files, DICOM, rows of a MedMNIST archive."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.errors import ImageError
from pneumoscope.images.decoded import MAX_PIXELS, Radiograph, check_size, image_errors
from pneumoscope.images.dicom import (
    PLAIN,
    age_in_years,
    dicom_errors,
    display_window,
    is_dicom,
    open_dicom,
    read_dicom,
    read_header,
    render,
    stored_pixels,
    voi_table,
)
from pneumoscope.images.raster import RASTER_SUFFIXES, in_archive, read_archive_row, read_raster

__all__ = [
    "MAX_PIXELS",
    "PLAIN",
    "RASTER_SUFFIXES",
    "Radiograph",
    "age_in_years",
    "check_size",
    "dicom_errors",
    "display_window",
    "image_errors",
    "in_archive",
    "is_dicom",
    "open_dicom",
    "read_header",
    "read_image",
    "render",
    "stored_pixels",
    "voi_table",
]


def read_image(path: str | Path, *, at_least: int | None = None) -> Radiograph:
    """Read one radiograph.

    Args:
        path: a raster file, a DICOM file, or `archive.npz#val/12`.
        at_least: a JPEG may be decoded at a half, quarter or eighth as long as both sides keep this
            many pixels (DCT scaling, three times as fast on large files).

    Raises:
        ImageError: the file is missing, damaged, too large, too small, has several frames, or no pixels.
    """
    if (row := in_archive(str(path))) is not None:
        return read_archive_row(*row)
    file = Path(path)
    with image_errors(file, "cannot be read", "check the path and who owns the file"):
        if not file.is_file():
            what = "is a folder, not an image" if file.is_dir() else "no such file"
            raise ImageError(what, path=file, remedy="check the path")
        if file.stat().st_size == 0:
            raise ImageError("the file is empty (0 bytes)", path=file, remedy="copy it again from its source")
    return read_dicom(file) if is_dicom(file) else read_raster(file, at_least)
