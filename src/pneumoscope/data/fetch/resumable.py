"""One file over HTTP: resumed after a break, checked, and given its name only when it is complete.

The bytes grow in `NAME.part`; `NAME.part.json` says which entity they belong to (URL, ETag, size). A broken
transfer goes on with Range and If-Range (RFC 9110, sections 13.1.5 and 14.2); where the server ignores the
range or the entity changed, it starts from zero.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import httpx
import numpy as np

from pneumoscope.data.fetch.catalogue import RemoteFile
from pneumoscope.errors import DataError, DownloadError, StorageError, storage_errors
from pneumoscope.files import atomic_path, read_json, write_json
from pneumoscope.records import Progress

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_FINAL = {
    401: "asks for a login",
    403: "refuses this file",
    404: "does not have this file",
    410: "does not have this file any more",
}


def _rng_of_process() -> np.random.Generator:
    # jitter must differ between machines that lost the same server at the same moment
    return np.random.default_rng(os.getpid())


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long to wait: exponential backoff with jitter.

    `attempts` counts tries in a row that gained no byte; waits are in seconds.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    rng: np.random.Generator = field(default_factory=_rng_of_process)

    def pause(self, failures: int, retry_after: float) -> None:
        """Sleep before the next try; `retry_after`: of the server, in seconds."""
        wait = min(self.first_wait * 2 ** (failures - 1), self.longest_wait)
        self.sleep(max(min(retry_after, self.longest_wait), wait * (0.5 + self.rng.random() / 2)))


class _AgainError(Exception):
    """This try failed, the next may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        self.wait = wait
        super().__init__(reason)


def transfer(
    remote: RemoteFile,
    path: Path,
    *,
    url: str,
    client: httpx.Client,
    remedy: str,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Path:
    """Fetch `remote` from `url` to `path`; `progress` is called with (bytes so far, bytes in all or None).

    Raises:
        DownloadError: the server cannot be reached, refuses, breaks off too often, or its file is not the
            published one.
        StorageError: the disk is full or read-only.
    """
    part = _Part(path, remote, url, remedy)
    if not part.whole():
        _receive_all(part, client, progress or _silent, patience or Patience())
    part.check()
    with atomic_path(path) as temporary:
        part.file.replace(temporary)
    part.note.unlink(missing_ok=True)
    return path


def _silent(done: int, total: int | None) -> None:
    """Report no progress."""


def _receive_all(part: _Part, client: httpx.Client, progress: Progress, patience: Patience) -> None:
    best = part.size()
    failures = tries = 0
    reached = False
    while True:
        tries += 1
        try:
            _receive_once(part, client, progress)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if not reached:
                raise DownloadError(
                    f"{httpx.URL(part.url).host} cannot be reached ({_brief(error)})",
                    path=part.path,
                    remedy=part.remedy,
                ) from error
            again = _AgainError(_brief(error))
        except _AgainError as error:
            reached, again = True, error
        else:
            return
        failures = 1 if part.size() > best else failures + 1
        best = max(best, part.size())
        # the second bound ends a server that hands out a byte per try
        if failures >= patience.attempts or tries >= 10 * patience.attempts:
            raise DownloadError(
                f"gave up after {tries} attempts ({again}), {part.size()} bytes are kept",
                path=part.path,
                remedy=f"run the command again to go on from there, or {part.remedy}",
            ) from again
        patience.pause(failures, again.wait)


def _receive_once(part: _Part, client: httpx.Client, progress: Progress) -> None:
    try:
        with client.stream("GET", part.url, headers=part.headers(), follow_redirects=True) as response:
            _judge(response, part)
            part.receive(response, progress)
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise DownloadError(f"{part.url} is no web address", remedy="use http:// or https://") from error
    except httpx.TransportError as error:
        raise _AgainError(_brief(error)) from error
    except httpx.HTTPError as error:
        raise DownloadError(_brief(error), path=part.path, remedy=part.remedy) from error


def _judge(response: httpx.Response, part: _Part) -> None:
    code = response.status_code
    if code in (200, 206):
        return
    status = f"HTTP {code} {response.reason_phrase}".rstrip()
    if code in _BUSY:
        retry_after = response.headers.get("Retry-After", "")
        raise _AgainError(status, float(retry_after) if retry_after.isdecimal() else 0.0)
    if code == 416:  # our bytes reach past the end of the server's file
        part.drop()
        raise _AgainError(status)
    fault = _FINAL.get(code, "gave an answer that is no file")
    raise DownloadError(f"{part.url} {fault} ({status})", path=part.path, remedy=part.remedy)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


@dataclass(frozen=True, slots=True)
class _Part:
    """The unfinished file, and the note of which entity its bytes belong to."""

    path: Path
    remote: RemoteFile
    url: str
    remedy: str

    @property
    def file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    def size(self) -> int:
        with suppress(FileNotFoundError):
            return self.file.stat().st_size
        return 0

    def entity(self) -> dict[str, Any]:
        """Return the note, empty where it is missing, damaged or of another address."""
        with suppress(DataError, StorageError):
            note = read_json(self.note)
            if isinstance(note, dict) and note.get("url") == self.url:
                return note
        return {}

    def whole(self) -> bool:
        return 0 < self.size() == self.entity().get("total")

    def drop(self) -> None:
        with storage_errors(self.file):
            self.file.unlink(missing_ok=True)  # bytes before the note: never old bytes under a new note
            self.note.unlink(missing_ok=True)

    def refuse(self, fault: str) -> NoReturn:
        """Drop the bytes and raise `DownloadError`."""
        self.drop()
        raise DownloadError(fault, path=self.path, remedy=self.remedy)

    def headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        etag = self.entity().get("etag")
        if self.size() and etag:
            headers |= {"Range": f"bytes={self.size()}-", "If-Range": etag}
        return headers

    def receive(self, response: httpx.Response, progress: Progress) -> None:
        """Append the answer's bytes; after a break they stay."""
        start, total = self._begin(response)
        published = self.remote.size
        if published is not None and total not in (None, published):
            self.refuse(f"{self.url} offers {total} bytes where {published} were published")
        require_space(self.file.parent, (total or published or start) - start)
        with storage_errors(self.file), self.file.open("ab") as stream:
            done = start
            progress(done, total)
            for chunk in response.iter_raw():  # as it comes: a chunk size would hold bytes back from a break
                stream.write(chunk)
                done += len(chunk)
                if published is not None and done > published:  # no length was announced
                    self.refuse(f"{self.url} sends more than the {published} bytes that were published")
                progress(done, total)
        if total is not None and done != total:
            raise _AgainError(f"the answer ended after {done} of {total} bytes")

    def _begin(self, response: httpx.Response) -> tuple[int, int | None]:
        """Return the offset of the answer and the total size; start anew on a full answer."""
        etag = response.headers.get("ETag", "")
        if response.status_code == 206:
            entity = self.entity()
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            same = span is not None and int(span[1]) == self.size() > 0 and int(span[2]) == entity.get("total")
            if span is None or not same or etag not in ("", entity.get("etag")):
                self.drop()
                raise _AgainError("the file on the server changed")
            return int(span[1]), int(span[2])
        self.drop()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        strong = etag if etag.startswith('"') else None  # a weak ETag must not go into If-Range
        write_json(self.note, {"url": self.url, "etag": strong, "total": total})
        return 0, total

    def check(self) -> None:
        """Raise `DownloadError` and remove the bytes where size or checksum are not the published ones."""
        try:
            check_file(self.file, self.remote, f"run the command again; if that does not help, {self.remedy}")
        except DownloadError:
            self.drop()
            raise


def check_file(path: Path, remote: RemoteFile, remedy: str) -> None:
    """Raise `DownloadError` where the file's size or checksum is not the published one."""
    with storage_errors(path):
        size = path.stat().st_size
        if remote.size is not None and size != remote.size:
            fault = f"has {size} bytes where {remote.size} were published"
            raise DownloadError(fault, path=path, remedy=remedy)
        if remote.digest is None:
            return
        name, _, wanted = remote.digest.partition(":")
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()
    if digest != wanted:
        fault = f"its {name} checksum is {digest} where {wanted} was published"
        raise DownloadError(fault, path=path, remedy=remedy)


def require_space(folder: Path, needed: int) -> None:
    """Raise `StorageError` where `folder` has not `needed` bytes free."""
    with storage_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free",
            path=folder,
            remedy="free some space or choose another folder",
        )
