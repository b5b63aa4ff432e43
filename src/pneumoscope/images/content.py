"""What a file holds by its first bytes, whatever its name says; on disk or in memory."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

Kind = Literal["dicom", "raster"]

_JPEG, _JPEG2000 = (".jpeg", ".jpg", ".jpe", ".jfif"), (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc")
_PLAIN, _OTHERS = (".pgm", ".ppm", ".pbm", ".pnm"), (".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".webp")
RASTER_SUFFIXES = frozenset((*_JPEG, *_JPEG2000, *_PLAIN, *_OTHERS))
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})

_HEAD = 1024  # bytes
_MAGIC = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",  # TIFF, and BigTIFF
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000, and its bare code stream
    b"\xff\x4f\xff\x51",
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes of the second header, by version
_DIRECTORY = b"1.2.840.10008.1.3.10"  # PS3.6: Media Storage Directory Storage
_EARLY = {b"\x02\x00": "little", b"\x08\x00": "little", b"\x00\x08": "big"}  # the group a bare data set begins with
_IDENTIFYING = 0x40  # elements of these groups that come first in files have lower numbers


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """The bytes of one image. `name`: for messages; `source`: a file, or the bytes themselves."""

    name: str
    source: Path | bytes

    @classmethod
    def of(cls, path: str | Path) -> Content:
        """Return the content of a file."""
        return cls(str(path), Path(path))

    @property
    def suffix(self) -> str:
        """Of the file in lower case, with its dot; empty in memory."""
        return self.source.suffix.lower() if isinstance(self.source, Path) else ""

    def open(self) -> BinaryIO:
        """Open it for reading; raises `OSError`."""
        return self.source.open("rb") if isinstance(self.source, Path) else io.BytesIO(self.source)

    def head(self) -> bytes:
        """Return its first bytes, at most 1024; raises `OSError`."""
        with self.open() as stream:
            return stream.read(_HEAD)


def kind_of(head: bytes) -> Kind | None:
    """Return what the first bytes of a file are of: `dicom`, with or without preamble, `raster`, or None."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "raster"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "raster"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():  # PBM, PGM, PPM
        return "raster"
    return "dicom" if is_bare(head) else None


def is_bare(head: bytes) -> bool:
    """Say whether the first bytes are those of a data set without preamble: DICOM as sent, or ACR-NEMA.

    Source: PS3.5, 7.1: a tag, then either two letters, the VR, or a length of four bytes.
    """
    order = _EARLY.get(head[:2])
    if order is None or len(head) < 16:
        return False
    element = int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
    if element > _IDENTIFYING:
        return False
    length = int.from_bytes(head[4:8], order)  # type: ignore[arg-type]
    return (head[4:6].isalpha() and head[4:6].isupper()) or (order == "little" and length <= 64)


def is_directory(head: bytes) -> bool:
    """Say whether the first bytes are those of a DICOMDIR, which lists images and is none."""
    return head[128:132] == b"DICM" and _DIRECTORY in head[132:400]
