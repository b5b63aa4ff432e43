"""Which image files a user means: files, folders searched through, and globs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pneumoscope.errors import DataError, ImageError
from pneumoscope.images import RASTER_SUFFIXES, is_dicom


def expand(patterns: Sequence[str]) -> list[str]:
    """Return image files named by files, folders (searched through) and globs, each once, in order.

    A name that matches nothing stays in the list, so that it is reported like an unreadable file.

    Raises:
        DataError: a folder holds no images.
    """
    files: dict[str, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if pattern and _is_folder(path):
            inside = [str(file) for file in sorted(path.rglob("*")) if _looks_like_image(file)]
            if not inside:
                raise DataError("the folder holds no images", path=path, remedy="give JPEG, PNG or DICOM files")
            files.update(dict.fromkeys(inside))
        elif _is_glob(pattern):
            files.update(dict.fromkeys(_matches(path) or [pattern]))
        else:
            files[pattern] = None
    return list(files)


def missing(name: str) -> ImageError | None:
    """Return what to say of a name that `expand` files nothing for, None where there is something."""
    try:
        if os.path.lexists(name):
            return None
    except ValueError:  # such as a name with NUL: the reader says what is wrong with it
        return None
    if _is_glob(name):
        return ImageError("no file matches the pattern", path=name, remedy="check the path")
    return ImageError("no such file", path=name, remedy="check the path") if name else None


def _is_glob(pattern: str) -> bool:
    return any(mark in pattern for mark in "*?[") and not os.path.lexists(pattern)


def _matches(pattern: Path) -> list[str]:
    anchor = Path(pattern.anchor or ".")
    try:
        return [str(file) for file in sorted(anchor.glob(str(pattern.relative_to(pattern.anchor))))]
    except ValueError:  # such as `a**b`
        return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, or a folder that may not be searched: no folder for us
        return False


def _looks_like_image(file: Path) -> bool:
    if not file.is_file() or file.name.startswith("."):
        return False
    return file.suffix.lower() in RASTER_SUFFIXES or is_dicom(file)
