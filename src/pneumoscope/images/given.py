"""What a Python user may give as an image: a file, an array, an image of Pillow, bytes, an open file, a dataset."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image

from pneumoscope.errors import DataError, ImageError
from pneumoscope.images.content import Content
from pneumoscope.images.decoded import image_errors
from pneumoscope.images.dicom import decode
from pneumoscope.images.find import find, left_out_text
from pneumoscope.images.header import header_of
from pneumoscope.images.raster import RE_EXPORT, picture, read_array
from pneumoscope.images.read import ImageFile, open_content, open_image

KINDS = (
    "a path, a folder, a NumPy array [H, W], an image of Pillow, the bytes of a file, a file opened in binary mode, "
    "a pydicom dataset, or a list of these"
)
logger = logging.getLogger(__name__)
_NUMBERS = "buif"  # kinds of NumPy dtypes


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """One image. `name`: for answers and messages; `open`: raises `ImageError`; `path`: whether `name` is one.

    `data`: gives the bytes of its file, None where it is a file of that name, or never was in one.
    """

    name: str
    open: Callable[[], ImageFile]
    path: bool = False
    data: Callable[[], bytes] | None = None


def items(given: object) -> Iterator[Given]:
    """Return the images that were given one by one; folders and globs are searched, lists are taken as they come.

    Raises:
        TypeError: something is none of `KINDS`; of an element, when its turn comes.
        DataError: the folder holds no images.
    """
    if isinstance(given, str | os.PathLike):
        return iter([_file(name) for name in _searched(os.fspath(given))])
    if (one := item(given, "")) is not None:
        return iter([one])
    if _is_frame(given):
        if "path" not in given.columns:  # type: ignore[attr-defined]
            raise TypeError("a frame needs a column `path` with paths or images; or give one column of it")
        given = given["path"]  # type: ignore[index]
    if isinstance(given, Mapping | set | frozenset | np.generic) or not isinstance(given, Iterable):
        raise TypeError(f"an image cannot be {_named(given)}; give {KINDS}")
    return _each(given)


def count(given: object) -> int | None:
    """Return how many elements were given, None where only their end tells, or a folder or one image was given."""
    if isinstance(given, str | bytes | bytearray | memoryview | os.PathLike | np.ndarray) or hasattr(given, "read"):
        return None
    if isinstance(given, list | tuple):
        return len(given)
    return len(cast(Sized, given)) if _is_frame(given) else None


def _each(given: Iterable[Any]) -> Iterator[Given]:
    for position, element in enumerate(given):
        if isinstance(element, str | os.PathLike):
            yield from _found(os.fspath(element))
        elif (one := item(element, f" {position}")) is not None:
            yield one
        else:
            raise TypeError(f"an image cannot be {_named(element)} (element {position}); give {KINDS}")


def _found(name: str) -> Iterator[Given]:
    try:
        names = _searched(name)
    except DataError:  # a folder without images: reported like a file that cannot be read
        names = [name]
    return map(_file, names)


def _searched(name: str) -> list[str]:
    found = find([name])
    if found.left_out:
        logger.warning("left out: %s", left_out_text(found.left_out))
    return list(found.files)


def _file(name: str) -> Given:
    return Given(name, lambda: open_image(name), path=True)


def one_item(given: object) -> Given:
    """Return the only image that was given; raises as `items`, and `TypeError` where there are several."""
    found = list(items(given))
    if len(found) != 1:
        raise TypeError(f"one image is expected here, not {len(found)}")
    return found[0]


def item(given: Any, number: str) -> Given | None:
    """Return an image that is no path, None where it is nothing known; raises `TypeError` where it is no image."""
    pydicom = sys.modules.get("pydicom")  # who has a dataset has imported it
    found = None
    if isinstance(given, np.ndarray):
        found = None if given.ndim == 1 and given.dtype.kind in "OU" else _array(given, f"<array{number}>")
    elif isinstance(given, Image.Image):
        found = _picture(given, f"<image{number}>")
    elif isinstance(given, bytes | bytearray | memoryview):
        found = _bytes(bytes(given), f"<bytes{number}>")
    elif hasattr(given, "read"):
        found = _opened(given, f"<file{number}>")
    elif pydicom is not None and isinstance(given, pydicom.Dataset):
        found = _dataset(given, str(getattr(given, "filename", None) or f"<dataset{number}>"))
    return found


def _opened(given: Any, name: str) -> Given:
    data = given.read()
    if not isinstance(data, bytes):
        raise TypeError(f"an image cannot be {_named(given)}, which gives text; open the file in binary mode, `rb`")
    called = getattr(given, "name", None)
    return _bytes(data, called if isinstance(called, str) else name)


def _array(values: np.ndarray[Any, Any], name: str) -> Given:
    shape = values.shape
    fits = values.ndim == 2 or (values.ndim == 3 and shape[2] in (1, 3, 4))
    if not fits or values.dtype.kind not in _NUMBERS:
        advice = " (of a stack [N, H, W] give a list, `list(stack)`)" if values.ndim in (3, 4) else ""
        raise TypeError(
            f"an image cannot be an array {list(shape)} of {values.dtype}; "
            f"give bool, int, uint or float numbers [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]{advice}"
        )
    return Given(name, lambda: ImageFile(lambda at_least: read_array(name, values)))


def _picture(image: Image.Image, name: str) -> Given:
    called = str(getattr(image, "filename", "") or name)

    def opened(at_least: int | None) -> Any:
        with image_errors(called, "the image is damaged", RE_EXPORT):
            return picture(called, image)

    return Given(called, lambda: ImageFile(opened))


def _bytes(data: bytes, name: str) -> Given:
    def opened() -> ImageFile:
        if not data:
            raise ImageError("it is empty (0 bytes)", path=name, remedy="rewind a file that was read before")
        return open_content(Content(name, data))

    return Given(name, opened, data=lambda: data)


def _dataset(dataset: Any, name: str) -> Given:
    def saved() -> bytes:
        buffer = io.BytesIO()
        plain = dataset.original_encoding[0] is None and "TransferSyntaxUID" not in getattr(dataset, "file_meta", ())
        dataset.save_as(buffer, **({"implicit_vr": False, "little_endian": True} if plain else {}))
        return buffer.getvalue()

    return Given(name, lambda: ImageFile(lambda at_least: decode(name, dataset), header_of(dataset)), data=saved)


def _is_frame(given: object) -> bool:
    return hasattr(given, "columns") and hasattr(given, "iloc")


def _named(given: object) -> str:
    return "None" if given is None else f"of type {type(given).__name__}"
