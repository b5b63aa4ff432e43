"""JPEG, PNG and other raster files, images of Pillow, and rows of a MedMNIST archive."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pneumoscope.errors import ImageError
from pneumoscope.images.aspect import squared
from pneumoscope.images.content import Content, kind_of
from pneumoscope.images.decoded import Radiograph, check_size, image_errors
from pneumoscope.images.depth import luma, scaled
from pneumoscope.images.tiff import TiffFacts, tiff_facts
from pneumoscope.records import FloatArray

RE_EXPORT = "export it again as an 8- or 16-bit greyscale PNG or JPEG"
# Formats of images; Pillow reads others, some of which start programs (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_FULL = ("PPM", "JPEG2000")  # of more than 8 bits: Pillow spreads them over 0..65535
_NAMES = {
    b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF": "GIF", b"II": "TIFF", b"MM": "TIFF", b"BM": "BMP", b"RIFF": "WebP",
    b"P": "portable anymap", b"\0\0\0\x0c": "JPEG 2000", b"\xff\x4f": "JPEG 2000",
}  # fmt: skip
_HALF = 0.5  # a brightest pixel below it means that the upper of 16 bits are empty


def read_raster(content: Content, at_least: int | None) -> Radiograph:
    """Read one raster file, a JPEG not below `at_least`; raises `ImageError`."""
    path = content.name
    with (
        image_errors(path, "the image is damaged", RE_EXPORT),
        content.open() as stream,
        _identified(content, stream) as image,
    ):
        if (frames := getattr(image, "n_frames", 1)) > 1:
            check_size(path, image.width, image.height)
            raise ImageError(
                f"holds {frames} frames, one is expected",
                path=path,
                remedy="save the frame you mean as a PNG of its own",
            )
        return picture(path, image, at_least, white=_significant(content) if image.format == "PNG" else None)


def _identified(content: Content, stream: BinaryIO) -> Image.Image:
    """Open an image; where Pillow knows no such, say how it begins: a wrong checksum is no other format."""
    try:
        return Image.open(stream, formats=_FORMATS)
    except UnidentifiedImageError:
        head = content.head()
        if kind_of(head) != "raster":
            raise
    name = next((known for magic, known in _NAMES.items() if head.startswith(magic)), "known")
    if name == "PNG" and zlib.crc32(head[12:29]) != int.from_bytes(head[29:33]):
        raise ValueError("the checksum of its header is wrong")
    raise ValueError(f"it begins like a {name} image, and its header is damaged or of a kind that cannot be read")


def picture(path: str, image: Image.Image, at_least: int | None = None, *, white: float | None = None) -> Radiograph:
    """Return an image of Pillow as a radiograph; to be called within `image_errors`, raises `ImageError`.

    `white`: the value that is white, where it is stated.
    """
    notes: list[str] = []
    width, height, mode = image.width, image.height, image.mode
    check_size(path, width, height)
    facts, upper = tiff_facts(image), _upper_bits(image)
    if at_least and image.format == "JPEG" and hasattr(image, "draft"):
        image.draft("L" if mode in ("L", "RGB", "YCbCr") else mode, (at_least, at_least))
    ratio = _ratio(image)
    upright: Image.Image = image
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation in range(2, 9):
        upright = ImageOps.exif_transpose(image)
        notes.append("turned as the EXIF orientation says")
        ratio = 1 / ratio if orientation in range(5, 9) else ratio
    pixels = _grey(upright, image.format, white, facts, notes)
    if upper and pixels.max() < _HALF:
        raise ValueError("16-bit colours that use few of their bits would be read at less than 8")
    if facts.white_is_zero and facts.pillow_leaves:
        pixels = np.float32(1.0) - pixels
        notes.append("inverted (0 is white in this TIFF)")
    pixels = squared(pixels, ratio, notes)
    return Radiograph(pixels, width, height, image.format or "PIL", mode, tuple(notes))


def _grey(image: Image.Image, name: str | None, white: float | None, facts: TiffFacts, notes: list[str]) -> FloatArray:
    """Return float32 [H, W] in 0..1 from any Pillow mode."""
    if image.mode.startswith("I") or image.mode == "F" or facts.signed_bytes:
        values = facts.restored(np.asarray(image))
        if values.dtype.kind in "ui" and 255 < values.max() <= 65535 and values.min() >= 0:
            notes.append("16 bits per pixel, read at full depth")
        white = white or facts.white
        if name in _FULL or (name == "PNG" and white is not None and values.max() > white):
            white = 65535
        return scaled(values, notes, white=white, black=facts.black)
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


def _upper_bits(image: Image.Image) -> bool:
    """Say whether Pillow will read the upper 8 of 16 bits: of colours, and of grey with transparency."""
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK", "RGBX"):
        return False
    for tile in getattr(image, "tile", ()):
        raw = tile[3] if isinstance(tile[3], str) else (tile[3] or [""])[0]
        if ";16" in str(raw):
            return True
    return False


def _ratio(image: Image.Image) -> float:
    """Return the height of a pixel by its width, from the resolution in the file: more pixels an inch are smaller."""
    across, down = image.info.get("jfif_density") or image.info.get("dpi") or image.info.get("aspect") or (1, 1)
    try:
        ratio = float(across) / float(down)
    except (TypeError, ValueError, ZeroDivisionError):
        return 1.0
    return ratio if 0 < ratio < float("inf") else 1.0


def _significant(content: Content) -> float | None:
    """Return the value of white by the chunk sBIT of a 16-bit grey PNG, None without.

    The standard has samples spread over all 16 bits, and sBIT say how many were in use before (PNG 3rd ed., 11.3.2.6);
    many writers leave them as they were. `scaled` sees by the largest value which it is.
    """
    with content.open() as stream:
        head = stream.read(33)
        if head[24:26] != b"\x10\x00":  # bit depth, colour type
            return None
        while len(chunk := stream.read(8)) == 8 and chunk[4:] not in (b"IDAT", b"IEND"):
            body = stream.read(int.from_bytes(chunk[:4]) + 4)
            if chunk[4:] == b"sBIT" and 0 < body[0] <= 16:
                return float(2 ** body[0] - 1)
    return None


def read_array(name: str, values: NDArray[Any]) -> Radiograph:
    """Return an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] as a radiograph; raises `ImageError`.

    What is black and white: `depth.scaled`. Colours become grey, transparent ones on black.
    """
    notes: list[str] = []
    with image_errors(name, "the array is no image", "give finite numbers [H, W]"):
        height, width = values.shape[:2]
        check_size(name, width, height)
        pixels = scaled(values, notes)
        if pixels.ndim == 3:
            if pixels.shape[2] == 4:
                pixels = pixels[..., :3] * pixels[..., 3:]
                notes.append("transparent pixels were put on black")
            pixels = luma(pixels) if pixels.shape[2] == 3 else pixels[..., 0]
    return Radiograph(np.ascontiguousarray(pixels), width, height, "array", str(values.dtype), tuple(notes))


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


def archive_fault(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    """Return why the images of an archive cannot be read, None where they can: [N, H, W], [N, H, W, 1] or [.., 3]."""
    what = f"{'x'.join(map(str, shape))} {dtype}"
    if dtype.kind not in "buif":
        return f"{what} are no grey values (bool, int, uint or float are)"
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3)):
        return None
    return f"{what} are no images ([N, H, W], [N, H, W, 1] or [N, H, W, 3] are)"


@lru_cache(maxsize=16)
def _archive_scale(path: str, modified: int, split: str) -> tuple[float, float, tuple[str, ...]]:
    """Return black and white of all images of a split, and the notes: one scale, so that they stay comparable."""
    images = _archive_images(path, modified, split)
    notes: list[str] = []
    ends = np.array([images.min(), images.max()], images.dtype)
    at = scaled(ends, notes).astype(np.float64)
    low, high = ends.astype(np.float64)
    span = (high - low) / (at[1] - at[0]) if at[1] > at[0] else 1.0
    black = low - at[0] * span
    return float(black), float(black + span), tuple(notes)


def read_archive_row(archive: Path, row: str) -> Radiograph:
    """Read one image of an archive, named as in `val/12`; raises `ImageError`."""
    name = f"{archive}#{row}"
    split, _, number = row.partition("/")
    with image_errors(name, "no such row in the archive", "use e.g. a.npz#val/0"):
        modified = archive.stat().st_mtime_ns
        images = _archive_images(str(archive), modified, split)
        if (fault := archive_fault(images.shape, images.dtype)) is not None:
            raise ValueError(f"its images, {fault}")
        values = images[int(number)]
        height, width = values.shape[:2]
        check_size(name, width, height)
        notes: list[str] = []
        if values.dtype == np.uint8 and values.ndim == 3 and values.shape[2] == 3:
            values = np.asarray(Image.fromarray(values).convert("L"))  # whole greys, as in a JPEG
            pixels = values.astype(np.float32) / np.float32(255.0)
        elif values.dtype == np.uint8:
            pixels = values.reshape(height, width).astype(np.float32) / np.float32(255.0)
        else:
            if not np.isfinite(values).all():
                raise ValueError("pixel values are not finite")
            black, white, guessed = _archive_scale(str(archive), modified, split)
            notes.extend(guessed)
            pixels = ((values.astype(np.float64) - black) / ((white - black) or 1.0)).astype(np.float32)
            pixels = luma(pixels) if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels.reshape(height, width)
    return Radiograph(np.clip(pixels, 0, 1), width, height, "NPZ", "L", tuple(notes))
