"""Which image files a user means: files, folders searched through, and globs; and what in a folder is left out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.errors import DataError, ImageError
from pneumoscope.images.content import DICOM_SUFFIXES, RASTER_SUFFIXES, Content, is_directory, kind_of

LeftOut = tuple[str, str]  # path, reason
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Found:
    """`files`: in order, each once; `left_out`: path and reason of what lay in the folders and is no image."""

    files: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


def find(patterns: Sequence[str]) -> Found:
    """Return image files named by files, folders (searched through) and globs, each once, in order.

    A name that matches nothing stays among the files, so that it is reported like an unreadable file.

    Raises:
        DataError: a folder holds no images.
    """
    files: dict[str, None] = {}
    left_out: list[LeftOut] = []
    for pattern in patterns:
        path = Path(pattern)
        if pattern and _is_folder(path):
            inside, passed = images_in(path)
            if not inside:
                remedy = f"left out: {left_out_text(passed)}" if passed else "give JPEG, PNG or DICOM files"
                raise DataError("the folder holds no images", path=path, remedy=remedy)
            files.update(dict.fromkeys(map(str, inside)))
            left_out += passed
        elif _is_glob(pattern):
            files.update(dict.fromkeys(_matches(path) or [pattern]))
        else:
            files[pattern] = None
    return Found(tuple(files), tuple(left_out))


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the files of `find`."""
    return list(find(patterns).files)


def left_out_text(left_out: Sequence[LeftOut]) -> str:
    """Say in a line how many files were left out, and name some.

    >>> left_out_text([("a/notes.txt", "no image")])
    '1 file (notes.txt: no image)'
    """
    names = "; ".join(f"{Path(path).name}: {reason}" for path, reason in left_out[:_SHOWN])
    more = len(left_out) - _SHOWN
    return (
        f"{len(left_out)} file{'' if len(left_out) == 1 else 's'} ({names}{f'; and {more} more' if more > 0 else ''})"
    )


def images_in(root: Path) -> tuple[list[Path], list[LeftOut]]:
    """Return the images of a folder and its sub-folders, by content, and what was left out; hidden files are neither.

    Links are followed; a folder is entered once, whatever leads to it. A copy of an image at the same path in a copy of
    the folder inside itself, as in Kaggle's archive, is left out.
    """
    images: list[Path] = []
    left_out: list[LeftOut] = []
    for file in files_in(root, left_out):
        reason = why_no_image(file)
        if reason is None:
            images.append(file)
        else:
            left_out.append((str(file), reason))
    copies = nested_copies(root, images)
    left_out += [(str(copy), f"the same image as {first.relative_to(root)}") for copy, first in copies.items()]
    return [file for file in images if file not in copies], sorted(left_out)


def files_in(root: Path, left_out: list[LeftOut]) -> list[Path]:
    """Return all files below a folder in order, hidden ones left out; what cannot be entered goes to `left_out`."""
    # A link back out of the folder would bring in what was not asked for, such as the other class.
    seen = {(status.st_dev, status.st_ino) for status in map(os.stat, root.resolve().parents)}
    files: list[Path] = []
    links: list[Path] = []
    waiting = [root]
    while waiting or links:
        # What links lead to comes last: under its own name it is preferred.
        folder = waiting.pop() if waiting else links.pop(0)
        for child in _children(folder, seen, left_out):
            if not child.is_dir():
                files.append(child)
            else:
                (links if child.is_symlink() else waiting).append(child)
    return sorted(files)


def _children(folder: Path, seen: set[tuple[int, int]], left_out: list[LeftOut]) -> Iterator[Path]:
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        children = sorted(folder.iterdir())
    except OSError as error:
        left_out.append((str(folder), f"the folder cannot be opened ({error.strerror or error})"))
        return
    yield from (child for child in children if not child.name.startswith(".") and child.name != "__MACOSX")


def why_no_image(file: Path) -> str | None:
    """Return why a file is no image, None where its content or its suffix says that it is one."""
    suffix = file.suffix.lower()
    try:
        if not file.is_file():
            return "a link to nothing" if file.is_symlink() else "no regular file"
        head = Content.of(file).head()
    except OSError as error:
        return None if suffix in RASTER_SUFFIXES | DICOM_SUFFIXES else f"cannot be read ({error.strerror or error})"
    if is_directory(head):
        return "a DICOM directory, which lists images"
    known = kind_of(head) is not None or suffix in RASTER_SUFFIXES | DICOM_SUFFIXES
    return None if known else "not an image file"


def nested_copies(root: Path, files: Sequence[Path]) -> dict[Path, Path]:
    """Return the files that are byte for byte another one, which lies at the end of their own path: copy -> first."""
    by_path = {file.relative_to(root).parts: file for file in files}
    copies: dict[Path, Path] = {}
    for parts, file in by_path.items():
        for start in range(1, len(parts) - 1):
            other = by_path.get(parts[start:])
            if other is not None and _same(file, other):
                copies[file] = other
                break
    return copies


def _same(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_size == other.stat().st_size and _digest(one) == _digest(other)
    except OSError:
        return False


def _digest(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def missing(name: str) -> ImageError | None:
    """Return what to say of a name that `find` files nothing for, None where there is something."""
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
