"""Shared by all readers of pixels: the decoded image, the limits of size, and errors that name file and remedy."""

from __future__ import annotations

import errno
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pneumoscope.errors import ImageError, ImageUnavailableError
from pneumoscope.records import FloatArray

MAX_PIXELS = 80_000_000  # 1.5 times the largest radiography detector; Pillow warns from 89 megapixels on
MIN_SIDE = 16
BOMB = "not decoded, because it may be a decompression bomb; scale it down first"
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
# Errors of the system, not of the file.
_REFUSED = {
    getattr(errno, name)
    for name in ("EACCES", "EAGAIN", "EBUSY", "EIO", "EMFILE", "ENFILE", "ENODEV", "ENOENT", "ENOMEM", "ENOTCONN",
                 "EPERM", "ESTALE", "ETIMEDOUT")
}  # fmt: skip


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


@contextmanager
def image_errors(path: str | Path, what: str, remedy: str) -> Iterator[None]:
    """Turn what decoders raise on a damaged file into an `ImageError` that names the file and the remedy.

    An error of the system is an `ImageUnavailableError`.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError("is not an image (the content matches no known format)", path=path, remedy=remedy) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        larger = f"is larger than {MAX_PIXELS // 1_000_000} megapixels"
        raise ImageError(larger, path=path, remedy=BOMB) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, OSError) and error.errno in _REFUSED:
            if error.errno != errno.ENOENT:
                what, remedy = "cannot be read", "check who may read the file, and the disk"
                reason = (error.strerror or reason).lower()
            raise ImageUnavailableError(f"{what} ({reason})", path=path, remedy=remedy) from error
        raise ImageError(f"{what} ({reason})", path=path, remedy=remedy) from error


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
            remedy=BOMB,
        )
