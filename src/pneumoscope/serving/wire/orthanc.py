"""Requests to Orthanc's REST API for following its changes (Orthanc Book, "Tracking changes")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError

from pneumoscope.errors import storage_errors
from pneumoscope.serving.wire.tls import reason_of

NEW = "NewInstance"
PAGE = 100  # changes of one request

_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{8}){4}$")]  # it becomes part of an address
_Read = TypeVar("_Read", bound=BaseModel)


class Change(BaseModel):
    """One change. `date`: UTC as Orthanc writes it, such as 20260304T050000; sorts as text."""

    seq: Annotated[int, Field(alias="Seq", ge=1)]
    kind: Annotated[str, Field(alias="ChangeType")]
    resource: Annotated[_Id, Field(alias="ID")]
    date: Annotated[str, Field(alias="Date", max_length=20)]


class Page(BaseModel):
    """Some changes in order. `done`: there are no later ones; `last`: the highest number, or the one asked from."""

    changes: Annotated[tuple[Change, ...], Field(alias="Changes")]
    done: Annotated[bool, Field(alias="Done")]
    last: Annotated[int, Field(alias="Last", ge=0)]


class Instance(BaseModel):
    """`size`: of its file, in bytes."""

    series: Annotated[_Id, Field(alias="ParentSeries")]
    size: Annotated[int, Field(alias="FileSize", ge=0)]


class _Series(BaseModel):
    tags: Annotated[Mapping[str, Any], Field(alias="MainDicomTags")]


class OrthancError(Exception):
    """A wrong or missing answer of Orthanc, without identity. `status`: of HTTP, None without an answer."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Gone(OrthancError):  # noqa: N818 - no fault of anybody
    """The resource was erased meanwhile."""


class Client:
    """Orthanc's REST API at `url`, through a client that carries certificates and secrets.

    All methods raise `OrthancError`.
    """

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url, self.http = url.rstrip("/"), http

    def version(self) -> str:
        """Return Orthanc's version."""
        system = self._json("/system")
        if not isinstance(system, dict) or "Version" not in system:
            raise OrthancError("the server is no Orthanc")
        return str(system["Version"])

    def changes(self, since: int) -> Page:
        """Return the changes after number `since`, the first hundred of them."""
        return self._read(f"/changes?since={since}&limit={PAGE}", Page)

    def newest(self) -> Page:
        """Return a page with the last change, empty where Orthanc keeps none."""
        return self._read("/changes?last", Page)

    def instance(self, resource: str) -> Instance:
        """Return series and size of an instance; raises `Gone` where it was erased."""
        return self._read(f"/instances/{resource}", Instance)

    def modality(self, series: str) -> str | None:
        """Return the modality of a series, None where it has none; raises `Gone` where it was erased."""
        value = self._read(f"/series/{series}", _Series).tags.get("Modality")
        return str(value).strip().upper() or None if value else None

    def fetch(self, resource: str, size: int, to: Path) -> None:
        """Write the file of an instance, `size` bytes, to `to`.

        Raises:
            Gone: it was erased meanwhile.
            StorageError: the disk is full.
        """
        written = 0
        try:
            # Uncompressed: Orthanc takes a hundred times as long to compress a radiograph as to send it.
            with self.http.stream(
                "GET", f"{self.url}/instances/{resource}/file", headers={"Accept-Encoding": "identity"}
            ) as response:
                _checked(response)
                with storage_errors(to), to.open("wb") as stream:
                    for chunk in response.iter_bytes():
                        written += len(chunk)
                        if written > size:
                            break
                        stream.write(chunk)
        except httpx.HTTPError as error:
            raise OrthancError(reason_of(error)) from error
        if written != size:
            raise OrthancError("a file has another length than announced", response.status_code)

    def _read(self, path: str, kind: type[_Read]) -> _Read:
        try:
            return kind.model_validate(self._json(path))
        except ValidationError as error:
            raise OrthancError("an answer is not Orthanc's", 200) from error

    def _json(self, path: str) -> Any:
        try:
            response = self.http.get(self.url + path)
            _checked(response)
            return response.json()
        except httpx.HTTPError as error:
            raise OrthancError(reason_of(error)) from error
        except ValueError as error:
            raise OrthancError("an answer is no JSON", 200) from error


def _checked(response: httpx.Response) -> None:
    if response.status_code == 404:
        raise Gone("HTTP 404", 404)
    if response.status_code != 200:
        raise OrthancError(f"HTTP {response.status_code}", response.status_code)
