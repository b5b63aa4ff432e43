"""Every error that Pneumoscope raises on purpose.

    PneumoscopeError            exit code 2
    ├── ConfigError             an experiment file or an option is wrong
    ├── DataError               a source, manifest or label table cannot be used
    ├── ImageError              one image cannot be read (exit code 3: the others still run)
    │   └── ImageUnavailableError   by no fault of its own: the disk, the share or the system refused
    ├── WeightsError            pretrained weights are missing or do not fit the network
    ├── BundleError             a bundle is damaged, incomplete or too new
    ├── TrainingError           training cannot go on (NaN loss, interrupted)
    ├── DownloadError           a data set could not be fetched
    └── StorageError            the disk refused (full, read-only, missing folder)

A message is one line: the file, what is wrong with it, and the remedy.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "BundleError",
    "ConfigError",
    "DataError",
    "DownloadError",
    "ImageError",
    "ImageUnavailableError",
    "PneumoscopeError",
    "StorageError",
    "TrainingError",
    "WeightsError",
    "storage_errors",
]


class PneumoscopeError(Exception):
    """Base of all deliberate errors.

    Args:
        what: what is wrong, one clause, lower case, no full stop.
        path: the file or folder concerned.
        remedy: what the user can do about it.

    >>> try:
    ...     pneumoscope.open_source("nowhere")
    ... except pneumoscope.PneumoscopeError as error:
    ...     print(error)
    nowhere: no such file or folder; check the path of --data
    """

    exit_code = 2

    def __init__(self, what: str, *, path: Path | str | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.path = None if path is None else str(path)
        self.remedy = remedy
        super().__init__(what)

    def __str__(self) -> str:
        return " ".join((self.clause if self.path is None else f"{self.path}: {self.clause}").split())

    @property
    def clause(self) -> str:
        """What is wrong and the remedy, without the file: its name may be a patient's."""
        return " ".join((f"{self.what}; {self.remedy}" if self.remedy else self.what).split())

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders; keyword-only arguments need this.
        return (_rebuild, (type(self), self.what, self.path, self.remedy))


def _rebuild(cls: type[PneumoscopeError], what: str, path: str | None, remedy: str | None) -> PneumoscopeError:
    return cls(what, path=path, remedy=remedy)


class ConfigError(PneumoscopeError):
    """An experiment file or a command-line option is wrong."""


class DataError(PneumoscopeError):
    """A data source, manifest or label table cannot be used."""


class ImageError(PneumoscopeError):
    """One image cannot be read; the others still run."""

    exit_code = 3


class ImageUnavailableError(ImageError):
    """The system refused to read an image: later it may be read."""


class WeightsError(PneumoscopeError):
    """Pretrained weights are missing or do not fit the network."""


class BundleError(PneumoscopeError):
    """A bundle is damaged, incomplete, or written by a newer version."""


class TrainingError(PneumoscopeError):
    """Training cannot go on."""

    exit_code = 1


class DownloadError(PneumoscopeError):
    """A data set could not be fetched."""


class StorageError(PneumoscopeError):
    """The file system refused to read or write."""


_STORAGE = {
    errno.ENOSPC: ("no space left on the disk", "free some space and run the command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the command again"),
    errno.EIO: ("the device cannot read or write it", "check the disk or copy the file again"),
    errno.EROFS: ("the file system is read-only", "choose another output folder"),
    errno.EACCES: ("permission denied", "check who owns the file or choose another folder"),
    errno.EFBIG: ("the file grew over the allowed size", "raise the limit or choose another output folder"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another output folder"),
    errno.EEXIST: ("is a file where a folder is needed", "choose another output folder"),
    errno.EISDIR: ("is a folder where a file was expected", "choose another name"),
    errno.ENOENT: ("no such file or folder", "check the spelling of the path"),
    errno.ENAMETOOLONG: ("the file name is too long", "choose a shorter name"),
}


@contextmanager
def storage_errors(path: Path | str | None = None) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        known = _STORAGE.get(error.errno or 0)
        if known is None:
            raise
        what, remedy = known
        raise StorageError(what, path=error.filename or path, remedy=remedy) from error
