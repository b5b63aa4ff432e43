"""Receiving over DICOMweb: a real client, and requests that no client would make."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
import uvicorn
from dicomweb_client.api import DICOMwebClient
from fastapi.testclient import TestClient
from scripts.pacs.orthanc import free_ports
from sqlalchemy import select
from tests.support.dicom_files import encoded
from tests.support.findings import saved
from tests.support.gateway import chest, gateway
from tests.support.waiting import until

from pneumoscope.errors import ConfigError
from pneumoscope.serving.store.database import Store, open_store
from pneumoscope.serving.store.tables import WAITING, Image, Job
from pneumoscope.serving.web.server import create_app

KIND = 'multipart/related; type="application/dicom"; boundary=B'
TOKEN = "0123456789abcdef"


def body(*parts: bytes, kind: str = "application/dicom", end: bytes = b"--B--\r\n") -> bytes:
    heads = (f"--B\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n" for part in parts)
    return b"".join(heads) + end


@contextmanager
def opened(folder: Path, host: str = "127.0.0.1", **stow: Any) -> Iterator[tuple[TestClient, Store]]:
    config = gateway(folder, stow=stow)
    folder.mkdir(exist_ok=True)
    config.images.mkdir(exist_ok=True)
    store = open_store(config.database, migrate=True)
    with TestClient(create_app(config, store), client=(host, 1), base_url="http://127.0.0.1") as client:
        yield client, store
    assert list((config.incoming / "stow").iterdir()) == [], "nothing is left of what came in"
    store.close()


def post(client: TestClient, content: bytes, path: str = "/dicom-web/studies", **headers: str) -> httpx.Response:
    return client.post(path, content=content, headers={"Content-Type": KIND, **headers})


def states(store: Store) -> list[str]:
    with store.read() as session:
        return list(session.scalars(select(Job.state)))


def test_a_real_client_stores_and_is_told_so(tmp_path: Path) -> None:
    config = gateway(tmp_path, stow={})
    config.images.mkdir()
    store = open_store(config.database, migrate=True)
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(create_app(config, store), port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        client = DICOMwebClient(f"http://127.0.0.1:{port}/dicom-web")
        sources = [saved(chest()), saved(chest())]  # as files: the client writes no preamble of its own
        reply = client.store_instances(sources)
        again = client.store_instances(sources[:1], study_instance_uid=sources[0].StudyInstanceUID)
    finally:
        server.should_exit = True
        thread.join()
    assert [item.ReferencedSOPInstanceUID for item in reply.ReferencedSOPSequence] == [
        source.SOPInstanceUID for source in sources
    ]
    assert "FailedSOPSequence" not in reply
    assert len(again.ReferencedSOPSequence) == 1
    assert states(store) == [WAITING, WAITING]
    with store.read() as session:
        files = [config.images / str(image.file) for image in session.scalars(select(Image).order_by(Image.id))]
    assert [pydicom.dcmread(file).PixelData for file in files] == [source.PixelData for source in sources]
    store.close()


def test_of_each_object_it_is_told_what_became_of_it(tmp_path: Path) -> None:
    good, elsewhere, scan = chest(), chest(StudyInstanceUID="1.2.3"), chest(SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    with opened(tmp_path) as (client, store):
        parts = [encoded(source) for source in (good, elsewhere, scan)]
        response = post(client, body(*parts, b"no DICOM"), f"/dicom-web/studies/{good.StudyInstanceUID}")
        assert response.status_code == 202
        assert response.headers["content-type"] == "application/dicom+json"
        reply = pydicom.Dataset.from_json(response.json())
        assert states(store) == [WAITING]
    assert [item.ReferencedSOPInstanceUID for item in reply.ReferencedSOPSequence] == [good.SOPInstanceUID]
    failed = {item.ReferencedSOPInstanceUID: item.FailureReason for item in reply.FailedSOPSequence}
    assert failed == {elsewhere.SOPInstanceUID: 0xA900, scan.SOPInstanceUID: 0x0122}
    assert [item.FailureReason for item in reply.OtherFailuresSequence] == [0xC000]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (body(b"no DICOM"), {}, 409),
        (body(b"{}", kind="application/dicom+json"), {}, 409),
        (body(b"x", end=b""), {}, 400),
        (b"", {}, 400),
        (b"no multipart at all", {}, 400),
        (body(b"x"), {"Content-Type": "multipart/form-data; boundary=B"}, 415),
        (body(b"x"), {"Content-Type": 'multipart/related; type="application/dicom+xml"; boundary=B'}, 415),
        (body(b"x"), {"Content-Type": 'multipart/related; type="application/dicom"'}, 400),
        (body(b"x"), {"Content-Type": f"multipart/related; boundary={'B' * 71}"}, 400),
        (body(*[b"x"] * 4), {}, 413),
        (body(bytes(2 << 20)), {}, 413),
    ],
    ids=["text", "json", "no-end", "empty", "no-parts", "form", "xml", "no-boundary", "long", "many", "large"],
)
def test_what_is_no_request_is_refused(tmp_path: Path, content: bytes, headers: dict[str, str], status: int) -> None:
    with opened(tmp_path, objects=3, request_mb=1) as (client, store):
        response = post(client, content, **headers)
        assert response.status_code == status, response.text
        assert states(store) == []


def test_without_a_token_only_this_machine_may_send(tmp_path: Path) -> None:
    with opened(tmp_path, host="192.0.2.7") as (client, store):
        assert post(client, body(encoded(chest()))).status_code == 403
        assert states(store) == []


def test_who_shows_the_token_may_send_from_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with opened(tmp_path / "gateway", host="192.0.2.7", token_file=str(file)) as (client, store):
        content = body(encoded(chest()))
        assert post(client, content).status_code == 401
        assert post(client, content, Authorization=f"Bearer {TOKEN[:-1]}x").status_code == 401
        assert states(store) == []
        assert post(client, content, Authorization=f"Bearer {TOKEN}").status_code == 200
        assert states(store) == [WAITING]
    file.write_text("short")
    with pytest.raises(ConfigError, match="too short"), opened(tmp_path / "gateway", token_file=str(file)):
        pass


def test_a_full_disk_is_told_to_the_sender(tmp_path: Path) -> None:
    config = gateway(tmp_path, stow={}, receive={"port": 0, "callers": ("A",), "free_mb": 1 << 40})
    config.images.mkdir()
    store = open_store(config.database, migrate=True)
    source = chest()
    with TestClient(create_app(config, store), client=("127.0.0.1", 1)) as client:
        response = post(client, body(encoded(source)))
    assert response.status_code == 503
    (failure,) = pydicom.Dataset.from_json(response.json()).FailedSOPSequence
    assert (failure.ReferencedSOPInstanceUID, failure.FailureReason) == (source.SOPInstanceUID, 0xA700)
    assert states(store) == []
    store.close()


@contextmanager
def full_beyond(most: int) -> Iterator[None]:
    """Let no file of this process grow over so many bytes, and find the disk full there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("sizes", "status"), [((5000, 5000), 503), ((5000,), 400), ((100_000,), 503)])
def test_a_disk_that_fills_up_in_a_part_is_told_and_nothing_stays(
    tmp_path: Path, sizes: tuple[int, ...], status: int
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield body(b"", end=b"")[:-2]
        for size in sizes:
            yield bytes(size)  # in pieces, so that the file holds some of them back

    async def send(application: Any) -> httpx.Response:
        transport = httpx.ASGITransport(application, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/dicom-web/studies", content=pieces(), headers={"Content-Type": KIND})

    with opened(tmp_path) as (client, store):
        with full_beyond(4096):
            response = asyncio.run(send(client.app))
        assert response.status_code == status
        assert states(store) == []


def test_where_it_is_not_configured_there_is_none(tmp_path: Path) -> None:
    config = gateway(tmp_path)
    store = open_store(config.database, migrate=True)
    with TestClient(create_app(config, store)) as client:
        assert post(client, body(encoded(chest()))).status_code == 404
    store.close()
