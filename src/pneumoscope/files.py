"""Writing files so that a reader sees the old version or the new one, never half of either."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, StorageError, storage_errors

_CHUNK = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hex; raises `StorageError` where it cannot be read."""
    digest = hashlib.sha256()
    with storage_errors(path), path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut (POSIX: fsync of the directory)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename it to `path`.

    On an error the temporary file is removed and `path` is as it was.
    """
    if path.is_symlink():  # a link stays, what it points to is replaced
        path = Path(os.path.realpath(path))
    if path.is_dir():
        raise StorageError("is a folder, a file is needed here", path=path, remedy="choose another name")
    with storage_errors(path):
        temporary = _part_of(path)
        try:
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    """Make an empty file of another name beside a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    return Path(name)


@contextmanager
def appending(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; on success its bytes are added to `path` at once, and synced.

    Several processes may do so at the same time. On an error `path` is as it was.
    """
    path = Path(os.path.realpath(path))
    with storage_errors(path):
        temporary = _part_of(path)
        try:
            yield temporary
            with temporary.open("rb") as source, path.open("ab") as target:
                fcntl.flock(target, fcntl.LOCK_EX)
                before = target.seek(0, os.SEEK_END)
                try:
                    shutil.copyfileobj(source, target)
                    target.flush()
                    os.fsync(target.fileno())
                except OSError:
                    target.truncate(before)
                    raise
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success rename it to `path`, replacing the folder that was there.

    On an error the temporary folder is removed and `path` is as it was.
    """
    if path.exists() and not path.is_dir():
        raise StorageError("is a file, a folder is needed here", path=path, remedy="choose another name")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            yield temporary
            for child in temporary.rglob("*"):
                if child.is_file():
                    with child.open("rb+") as stream:
                        os.fsync(stream.fileno())
            temporary.chmod(0o777 & ~_umask())
            _replace_folder(temporary, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Rename `new` to `path`; POSIX renames over an empty folder only, so what was there steps aside first."""
    if not path.exists():
        new.replace(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        path.replace(aside / "previous")
        new.replace(path)
    except BaseException:  # Ctrl-C too: one of the two must be there afterwards
        if (aside / "previous").exists() and not path.exists():
            (aside / "previous").replace(path)
        raise
    finally:
        shutil.rmtree(aside)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def home() -> Path:
    """Return the user's home folder; raises `StorageError` where there is none, as in some containers."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise StorageError("the user has no home folder", path="HOME", remedy="set HOME to a folder") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically; what file names hold beyond UTF-8 is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def plain(value: Any) -> Any:
    """Turn mappings, sequences, numpy scalars and arrays into what JSON knows; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinity become null."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises `DataError` where it is not JSON, `StorageError` where it cannot be read."""
    with storage_errors(path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"is not valid JSON ({error})", path=path, remedy="write it anew") from error


def private_folder(path: Path) -> Path:
    """Create a folder that none but its owner may enter, and return it; one that is there is left as it is.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def out_folder(path: Path) -> Path:
    """Create an output folder and return it; raises `StorageError` where that cannot be done."""
    if path.exists() and not path.is_dir():
        raise StorageError("is a file, a folder is needed here", path=path, remedy="choose another --out")
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path
