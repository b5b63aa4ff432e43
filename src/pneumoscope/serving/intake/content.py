"""Comparing the content of DICOM files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pynetdicom.dsutils import split_dataset

from pneumoscope.images import dicom_errors

_CHUNK = 1 << 20


def digest(path: Path) -> str:
    """Return the SHA-256, lower-case hex, of transfer syntax and data set, without the file meta information.

    Raises:
        ImageError: the file is no DICOM.
    """
    with dicom_errors(path, "is not a readable DICOM file", "export it again"):
        meta, offset = split_dataset(path)
        summed = hashlib.sha256(str(meta.get("TransferSyntaxUID", "")).encode())
        with path.open("rb") as stream:
            stream.seek(offset)
            while chunk := stream.read(_CHUNK):
                summed.update(chunk)
    return summed.hexdigest()


def same_pixels(one: Path, other: Path) -> bool:
    """Say whether two DICOM files have the same pixel bytes in the same transfer syntax."""
    return _pixels(one) == _pixels(other)


def _pixels(path: Path) -> tuple[str, bytes]:
    import pydicom

    with dicom_errors(path, "is not a readable DICOM file", "export it again"):
        dataset = pydicom.dcmread(path)
        element = dataset.get_item("PixelData")
        value = element.value if element is not None else b""
        return str(dataset.file_meta.get("TransferSyntaxUID", "")), hashlib.sha256(value or b"").digest()
