"""Receiving over DICOMweb: STOW-RS (PS3.18, 10.5). An object reported as stored cannot be lost, as with C-STORE."""

from __future__ import annotations

import hmac
import ipaddress
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO, Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse
from pydicom.dataset import Dataset
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from pneumoscope.errors import ImageError, StorageError, storage_errors
from pneumoscope.files import out_folder
from pneumoscope.images.header import Header, read
from pneumoscope.serving.intake.listener import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, accepted_classes
from pneumoscope.serving.intake.receipt import Intake, sweep
from pneumoscope.serving.settings.gateway import SHORTEST_TOKEN, Gateway, Stow
from pneumoscope.serving.settings.secret import read_secret
from pneumoscope.serving.watch.logs import logger
from pneumoscope.serving.wire.references import reference

# PS3.18, table 10.5.3-1, and PS3.7, annex C.
NOT_ITS_STUDY, CLASS_UNKNOWN = 0xA900, 0x0122
_DICOM = "application/dicom"


@dataclass
class _Answer:
    """The outcome of one request: UIDs of class and instance, and the reasons of failures."""

    stored: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, int]] = field(default_factory=list)
    others: list[int] = field(default_factory=list)  # reasons of parts without readable UIDs

    @property
    def status(self) -> int:
        """PS3.18, table 10.5.3-1."""
        failures = [reason for *_, reason in self.failed] + self.others
        if not failures:
            return 200
        if self.stored:
            return 202
        return 503 if set(failures) == {OUT_OF_RESOURCES} else 409

    def dataset(self) -> Dataset:
        """PS3.18, table 10.5.3-2; without a URL, since nothing can be retrieved here."""
        dataset = Dataset()
        dataset.RetrieveURL = None
        if self.stored:
            dataset.ReferencedSOPSequence = [reference(*uids) for uids in self.stored]
        if self.failed:
            dataset.FailedSOPSequence = [reference(*failure) for failure in self.failed]
        if self.others:
            dataset.OtherFailuresSequence = [_failure(reason) for reason in self.others]
        return dataset


def _failure(reason: int) -> Dataset:
    item = Dataset()
    item.FailureReason = reason
    return item


class _Parts:
    """The parts of a multipart body as files, each yielded once complete."""

    def __init__(self, boundary: str, folder: Path) -> None:
        self.folder, self.ended, self.count = folder, False, 0
        self._done: list[Path | None] = []
        self._stream: IO[bytes] | None = None
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_begin": self._header,
                "on_header_field": lambda data, start, end: self._extend(self._names, data[start:end]),
                "on_header_value": lambda data, start, end: self._extend(self._values, data[start:end]),
                "on_headers_finished": self._open,
                "on_part_data": lambda data, start, end: self._write(data[start:end]),
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def feed(self, chunk: bytes) -> Iterator[Path | None]:
        """Parse bytes; yield the parts that they complete, None for a part that is not DICOM.

        Raises:
            FormParserError: the body is not multipart.
            StorageError: the disk is full.
        """
        with storage_errors(self.folder):
            self._parser.write(chunk)
        while self._done:
            yield self._done.pop(0)

    def close(self) -> None:
        """Remove parts that were not yielded."""
        if self._stream is not None:
            Path(self._stream.name).unlink(missing_ok=True)  # first: closing flushes bytes for which there is no space
            with suppress(OSError):
                self._stream.close()
        for path in self._done:
            if path is not None:
                path.unlink(missing_ok=True)

    def _begin(self) -> None:
        self.count += 1
        self._names, self._values = [], []

    def _header(self) -> None:
        self._names.append(b"")
        self._values.append(b"")

    def _extend(self, texts: list[bytes], more: bytes) -> None:
        texts[-1] += more

    def _open(self) -> None:
        headers = dict(zip((name.lower() for name in self._names), self._values, strict=True))
        kind = headers.get(b"content-type", _DICOM.encode()).decode("latin-1").partition(";")[0].strip().lower()
        if kind == _DICOM:
            self._stream = tempfile.NamedTemporaryFile(dir=self.folder, suffix=".dcm", delete=False)  # noqa: SIM115

    def _write(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.write(data)

    def _end(self) -> None:
        if self._stream is None:
            self._done.append(None)
            return
        self._stream.close()
        self._done.append(Path(self._stream.name))
        self._stream = None

    def _finish(self) -> None:
        self.ended = True


def create_router(config: Gateway, intake: Intake) -> APIRouter:
    """Return the routes `/dicom-web/studies` and `/dicom-web/studies/STUDY`, for POST.

    Raises:
        ConfigError: the file of the token is missing or too short.
        StorageError: the folder of incoming files cannot be made.
    """
    settings = config.stow or Stow()
    token = None if settings.token_file is None else read_secret(settings.token_file, shortest=SHORTEST_TOKEN)
    folder = out_folder(config.incoming / "stow")  # not in the listener's own, which it clears at its start
    sweep(folder, older_seconds=0)
    router = APIRouter(prefix="/dicom-web")
    log = logger("stow")

    @router.post("/studies")
    @router.post("/studies/{study}")
    async def store(request: Request, study: str | None = None) -> JSONResponse:
        """Store the objects of a request, and report on each."""
        _admit(request, token)
        parts = _Parts(_boundary(request), folder)
        answer = _Answer()
        try:
            async for part in _received(request, parts, settings):
                await run_in_threadpool(_take, part, study, intake, answer)
        except ClientDisconnect as error:
            raise HTTPException(400, "the request was broken off") from error
        except FormParserError as error:
            raise HTTPException(400, "the body is not multipart/related") from error
        except StorageError as error:
            raise HTTPException(503, error.what) from error
        finally:
            parts.close()
        if not parts.ended or not parts.count:
            raise HTTPException(400, "the body ends before its last boundary")
        log.info("answered", stored=len(answer.stored), failed=len(answer.failed) + len(answer.others))
        return JSONResponse(answer.dataset().to_json_dict(), answer.status, media_type="application/dicom+json")

    return router


def _admit(request: Request, token: str | None) -> None:
    """Require the token, or, without one, a request from this machine."""
    if token is None:
        if not _is_this_machine(request.client.host if request.client else ""):
            raise HTTPException(403, "only this machine may send, because no stow.token_file is configured")
        return
    shown = request.headers.get("authorization", "").encode("latin-1")
    if not hmac.compare_digest(shown, b"Bearer " + token.encode()):
        raise HTTPException(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # not an address
        return False


def _boundary(request: Request) -> str:
    """Return the boundary of the parts; 415 where they are not DICOM files."""
    parsed = Message()
    parsed["Content-Type"] = request.headers.get("content-type", "")
    boundary, kind = parsed.get_param("boundary"), parsed.get_param("type")
    if parsed.get_content_type() != "multipart/related" or kind not in (None, _DICOM):
        raise HTTPException(415, f'send multipart/related; type="{_DICOM}"')
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 70 or not boundary.isascii():  # RFC 2046, 5.1.1
        raise HTTPException(400, "the boundary is missing or too long")
    return boundary


async def _received(request: Request, parts: _Parts, settings: Stow) -> AsyncIterator[Path | None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > settings.request_mb << 20:
            raise HTTPException(413, f"the request is larger than {settings.request_mb} MB")
        for part in parts.feed(chunk):
            yield part
        if parts.count > settings.objects:
            raise HTTPException(413, f"the request holds more than {settings.objects} objects")


def _take(part: Path | None, study: str | None, intake: Intake, answer: _Answer) -> None:
    if part is None:
        answer.others.append(CANNOT_UNDERSTAND)
        return
    try:
        header = read(part)
        reason = _refused(header.sop_class, header.study_uid, study)
        uids = (header.sop_class, header.sop_uid)
        if reason is None:
            reason = _stored(part, header, intake)
    except ImageError:
        answer.others.append(CANNOT_UNDERSTAND)
    else:
        if reason is None:
            answer.stored.append(uids)
        else:
            answer.failed.append((*uids, reason))
    finally:
        part.unlink(missing_ok=True)


def _refused(sop_class: str, study_uid: str, study: str | None) -> int | None:
    if sop_class not in accepted_classes():
        return CLASS_UNKNOWN
    return NOT_ITS_STUDY if study is not None and study_uid != study else None


def _stored(part: Path, header: Header, intake: Intake) -> int | None:
    log: Any = logger("stow")
    try:
        receipt = intake.take(part, "stow", header=header)
    except (StorageError, OSError) as error:
        log.error("cannot store", error=type(error).__name__)
        return OUT_OF_RESOURCES
    log.info(receipt.outcome, image=receipt.image_id, state=receipt.state)
    return None
