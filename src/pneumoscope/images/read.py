"""One image from a file, not decoded yet: its kind is told by its content, whatever the name says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pneumoscope.errors import ImageError
from pneumoscope.images.content import DICOM_SUFFIXES, RASTER_SUFFIXES, Content, kind_of
from pneumoscope.images.decoded import Radiograph, image_errors
from pneumoscope.images.dicom import decode
from pneumoscope.images.header import Header, header_of, read_dataset
from pneumoscope.images.raster import in_archive, read_archive_row, read_raster


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
    return open_content(Content.of(file))


def open_content(content: Content) -> ImageFile:
    """Open one image of a file or of bytes, without decoding its pixels; raises `ImageError`."""
    with image_errors(content.name, "cannot be read", "check the path and who owns the file"):
        kind = kind_of(content.head())
    suffix = content.suffix
    if kind == "dicom" or (kind is None and suffix in DICOM_SUFFIXES):
        dataset = read_dataset(content)
        named = (f"is DICOM, whatever the suffix {suffix} says",) if suffix in RASTER_SUFFIXES else ()
        return ImageFile(lambda at_least: _noted(decode(content.name, dataset), named), header_of(dataset))
    named = (f"is no DICOM, whatever the suffix {suffix} says",) if suffix in DICOM_SUFFIXES else ()
    return ImageFile(lambda at_least: _noted(read_raster(content, at_least), named))


def _noted(radiograph: Radiograph, notes: tuple[str, ...]) -> Radiograph:
    return replace(radiograph, notes=(*notes, *radiograph.notes)) if notes else radiograph


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
