"""The only reader of pixels and DICOM headers: JPEG, PNG and other raster files, DICOM, rows of a MedMNIST archive."""

from __future__ import annotations

from pneumoscope.images.content import RASTER_SUFFIXES
from pneumoscope.images.decoded import MAX_PIXELS, Radiograph, check_size, image_errors
from pneumoscope.images.dicom import (
    display_window,
    greys_of,
    is_dicom,
    open_dicom,
    remedy,
    render,
    stored_pixels,
    voi_table,
)
from pneumoscope.images.header import Header, age_in_years, dicom_errors, header_of, read_dataset, read_header
from pneumoscope.images.raster import in_archive, read_archive_row, read_raster
from pneumoscope.images.read import ImageFile, open_image, read_image

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
    "greys_of",
    "header_of",
    "image_errors",
    "in_archive",
    "is_dicom",
    "open_dicom",
    "open_image",
    "read_archive_row",
    "read_dataset",
    "read_header",
    "read_image",
    "read_raster",
    "remedy",
    "render",
    "stored_pixels",
    "voi_table",
]
