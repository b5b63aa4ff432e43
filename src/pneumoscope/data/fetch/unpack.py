"""Zip archives from outside, unpacked without trusting their headers."""

from __future__ import annotations

import errno
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pneumoscope.errors import DownloadError, storage_errors

MemberPath = Callable[[PurePosixPath], PurePosixPath | None]

# ValueError and struct.error: offsets and fields that make no sense
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an archive of radiographs; `ratio`: unpacked over packed bytes of one file."""

    members: int = 50_000
    total: int = 8 << 30
    ratio: int = 100


def unpack(archive: Path, folder: Path, path_of: MemberPath, limits: Limits | None = None) -> int:
    """Unpack the members that `path_of` gives a path (relative to `folder`) and return how many.

    Every member is judged before the first is written; of two with one destination the shallower wins.
    Contents are checked against the archive's CRC-32.

    Raises:
        DownloadError: the archive is damaged, or a member is encrypted, a link, a bomb or outside the folder.
        StorageError: the disk refused.
    """
    try:
        with storage_errors(archive), zipfile.ZipFile(archive) as source:
            members = source.infolist()
            _judge(members, limits or Limits(), archive)
            chosen = _choose(members, path_of)
            for target, member in chosen.items():
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with source.open(member) as stream, path.open("xb") as copy:
                    shutil.copyfileobj(stream, copy, 1 << 20)
            return len(chosen)
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a seek to before the file
            raise
        raise DownloadError(f"is no whole zip archive ({error})", path=archive) from error


def _judge(members: list[zipfile.ZipInfo], limits: Limits, archive: Path) -> None:
    if len(members) > limits.members:
        raise DownloadError(f"holds {len(members)} files, at most {limits.members} are allowed", path=archive)
    total = sum(member.file_size for member in members)
    if total > limits.total:
        raise DownloadError(f"would unpack to {total} bytes, at most {limits.total} are allowed", path=archive)
    for member in members:
        fault = _fault(member, limits)
        if fault:
            raise DownloadError(f"its member {member.orig_filename!r} {fault}", path=archive)


def _fault(member: zipfile.ZipInfo, limits: Limits) -> str | None:
    name = member.orig_filename
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]:
        return "points outside the folder"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.file_size > max(1 << 20, limits.ratio * member.compress_size):  # a small file is no bomb
        return "unpacks to far more than it should"
    return None


def _choose(members: list[zipfile.ZipInfo], path_of: MemberPath) -> dict[PurePosixPath, zipfile.ZipInfo]:
    chosen: dict[PurePosixPath, zipfile.ZipInfo] = {}
    files = [member for member in members if not member.is_dir()]
    for member in sorted(files, key=lambda item: (item.filename.count("/"), item.filename)):
        target = path_of(PurePosixPath(member.filename))
        if target is not None:
            chosen.setdefault(target, member)
    return chosen
