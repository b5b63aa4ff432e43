"""Whoever means harm: at every route, in headers of images, in what is uploaded, and at the DICOM port."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import socket
import ssl
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from sqlalchemy import select
from tests.support.certificates import Authority
from tests.support.dicom_files import encoded
from tests.support.gateway import CALLER, chest, gateway, receiving
from tests.support.web import HTML, PASSWORD, WebApp, answer, bring, events, opened, routes, secret_of, sign_in, upload

from pneumoscope.errors import ImageError
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.serving.people import trail
from pneumoscope.serving.settings.gateway import Logs
from pneumoscope.serving.store.database import now
from pneumoscope.serving.store.tables import DEAD, QUARANTINED, Delivery, Feedback, Image, Job, Object
from pneumoscope.serving.watch.logs import configure, logger
from pneumoscope.serving.web.guard import HEADERS, PUBLIC
from pneumoscope.serving.web.pixels import rendition

# Who may use a route at the least. A new route must be entered here.
NOBODY = {"GET /healthz", "GET /readyz", "GET /metrics", "GET /signin", "POST /signin"}
VIEWERS = {
    "GET /", "GET /api/openapi.json", "POST /signout", "GET /worklist", "GET /worklist/rows", "POST /worklist/search",
    "GET /api/worklist", "GET /study/1", "GET /study/1/pixels", "GET /study/1/overlay.png", "GET /api/studies/1",
}  # fmt: skip
READERS = {"GET /upload", "POST /upload", "POST /study/1/feedback", "GET /review", "POST /review/1"}
ADMINS = {
    "GET /technical", "GET /technical/rows", "GET /audit", "POST /technical/deliveries/1/replay",
    "POST /technical/jobs/1/again",
}  # fmt: skip
TAG = "<script>alert(1)</script>"
DROP = "'; DROP TABLE --"  # 16 characters, as an accession number may have
FORMAT = "{0.__class__}%s%n{{7*7}}"


def asked(browser: TestClient, route: str, secret: str) -> Any:
    method, path = route.split()
    form = {"form_secret": secret, "verdict": "agree", "key": "0" * 32, "text": "Doe"}
    return browser.request(method, path, data=form if method == "POST" else None)


def test_the_lists_above_name_every_route(web: WebApp) -> None:
    assert {f"{method} {path}" for method, path in routes(web)} == NOBODY | VIEWERS | READERS | ADMINS
    assert {route.split()[1] for route in NOBODY} == {
        path for path in PUBLIC if "oidc" not in path
    }  # not asked for here


def test_each_role_gets_as_far_as_its_own_routes(web: WebApp) -> None:
    answer(web, bring(web, chest()))
    nobody, (viewer, reader, admin) = web.browser(), map(web.as_, ("viewer", "reader", "admin"))
    secrets = {id(one): secret_of(one.get("/worklist").text) for one in (viewer, reader, admin)}
    for route in VIEWERS | READERS | ADMINS:
        answered = asked(nobody, route, "0" * 64)
        assert answered.status_code in (303, 401), route
        assert answered.status_code == 401 or answered.headers["location"].startswith("/signin"), route
        assert "Doe" not in answered.text
    pages = {route for route in READERS | ADMINS if route.startswith("GET")}
    for browser, within, beyond in (
        (viewer, VIEWERS, READERS | ADMINS),
        (reader, VIEWERS | (READERS & pages), ADMINS),
        (admin, VIEWERS | pages, set()),
    ):
        for route in beyond:
            assert asked(browser, route, secrets[id(browser)]).status_code == 403, route
        for route in within - {"POST /signout"}:
            none = {404} if route == "GET /review" else set()  # no queue is asked for here
            assert asked(browser, route, secrets[id(browser)]).status_code in {200, 303} | none, route
    with web.store.read() as session:
        assert session.scalars(select(Feedback)).all() == [], "who was refused changed nothing"
    for route in NOBODY:
        assert asked(nobody, route, "0" * 64).status_code in (200, 403, 503), route


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_a_fault_of_ours_says_nothing_and_is_dressed_like_every_answer(web: WebApp, accept: str) -> None:
    @web.app.get("/raises")
    def raises() -> None:
        raise RuntimeError("Doe^Jane at /secret/path")

    with TestClient(web.app, raise_server_exceptions=False, headers=HTML) as browser:
        sign_in(browser, "viewer")
        answered = browser.get("/raises", headers={"accept": accept})
    assert answered.status_code == 500
    for name, value in HEADERS.items():
        assert answered.headers[name] == value
    for secret in ("Doe", "/secret/path", "RuntimeError", "Traceback"):
        assert secret not in answered.text
    assert accept == "application/json" or RESEARCH_ONLY in answered.text


@pytest.mark.parametrize("value", ["..", "../1", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f1", "1%00", "1;ls", "%5c..%5c1"])
def test_no_parameter_of_a_path_leads_out(web: WebApp, value: str) -> None:
    browser = web.as_("admin")
    secret = secret_of(browser.get("/worklist").text)
    described = web.app.openapi()["paths"]
    parametrised = [(path, method.upper()) for path in described for method in described[path] if "{" in path]
    assert len(parametrised) >= 7
    for path, method in parametrised:
        filled = re.sub(r"\{\w+\}", value, path)
        answered = asked(browser, f"{method} {filled}", secret)
        assert answered.status_code in (303, 404, 405, 422), path
        assert "root:" not in answered.text
        assert answered.status_code != 303 or answered.headers["location"].startswith("/"), path


# --- what a header holds ----------------------------------------------------------------------------------


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Path]:
    """Where the logs of a gateway's process go; afterwards the test's own are back."""
    root, file = logging.getLogger(), tmp_path / "log.jsonl"
    before, level = list(root.handlers), root.level
    configure(Logs(level="info", file=file))
    yield file
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def test_what_a_header_holds_is_text_on_every_page_and_in_no_log(web: WebApp, logged: Path) -> None:
    source = chest(PatientName=TAG, PatientID=FORMAT, AccessionNumber=DROP, StudyDescription=f"{TAG}{FORMAT}",
                   Manufacturer=TAG, ManufacturerModelName=FORMAT, InstitutionName=TAG)  # fmt: skip
    image_id = bring(web, source)
    result_id, stuck = answer(web, image_id), bring(web, chest(PatientName=TAG))
    with web.store.write() as session:
        letter = Object(result_id=result_id, kind="sr", uid="1.2.3", sop_class=None, suffix=".dcm", data=b"x")
        moment = now()
        letter.deliveries.append(Delivery(destination="pacs", state=DEAD, attempts=1, created_at=moment,
                                          not_before=moment, reason=TAG))  # fmt: skip
        session.add(letter)
        job = session.scalars(select(Job).where(Job.image_id == stuck)).one()
        job.state, job.reason, job.ended_at = QUARANTINED, f"not analysed, because {TAG}{FORMAT}", moment
    logger("test").info("listening")
    browser = web.as_("admin")
    secret = secret_of(browser.get("/worklist").text)
    pages = [browser.get(path) for path in ("/worklist", "/worklist/rows", f"/study/{image_id}", f"/study/{stuck}",
                                            "/technical", "/technical/rows", "/upload", "/audit")]  # fmt: skip
    pages += [browser.post("/worklist/search", data={"form_secret": secret, "text": text}) for text in (TAG, DROP)]
    for answered in pages:
        assert answered.status_code == 200
        assert "<script>" not in answered.text
        assert "{{7*7}}" in answered.text or FORMAT not in answered.text
    assert "&lt;script&gt;" in pages[0].text
    assert "{{7*7}}" in pages[2].text, "nothing is computed"
    assert TAG not in pages[7].text
    assert "&lt;script" not in pages[7].text, "the audit trail names no patient"
    text = logged.read_text()
    assert [json.loads(line)["event"] for line in text.splitlines()]
    for word in ("script", "DROP", "__class__", "7*7"):
        assert word not in text
    with web.store.read() as session:
        assert session.get_one(Image, image_id).accession == DROP


@pytest.mark.parametrize("text", [DROP, "%%", "__", "' OR 1=1 --", "\\' OR ''='", FORMAT])
def test_a_search_is_no_pattern_and_no_statement(web: WebApp, text: str) -> None:
    bring(web, chest())
    browser = web.as_("viewer")
    secret = secret_of(browser.get("/worklist").text)
    answered = browser.post("/worklist/search", data={"form_secret": secret, "text": text})
    assert answered.status_code == 200
    assert "No image fits" in answered.text
    assert "Doe, Jane" in browser.get("/worklist").text


@pytest.mark.parametrize("text", ["", "x", "a\0b", "x" * 65, "  ", ", ^="])
def test_what_cannot_be_sought_is_refused(web: WebApp, text: str) -> None:
    browser = web.as_("viewer")
    secret = secret_of(browser.get("/worklist").text)
    assert browser.post("/worklist/search", data={"form_secret": secret, "text": text}).status_code == 422
    form = {"form_secret": secret_of(web.browser().get("/signin").text), "name": "a\0b", "password": PASSWORD}
    assert web.browser().post("/signin", data=form).status_code in (403, 422)


# --- what is uploaded -------------------------------------------------------------------------------------


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", encoded(chest()))
        archive.writestr("zeros", bytes(20 << 20))
    return buffer.getvalue()


def deflated(megabytes: int) -> bytes:
    """A file whose deflated data set is some thousand times as large as the file."""
    plain = chest()
    plain.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = encoded(plain)
    head = whole[: 144 + int.from_bytes(whole[140:144], "little")]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    element = b"\x10\x00\x10\x00OB\0\0" + (megabytes << 20).to_bytes(4, "little")
    packed = packer.compress(element)
    for _ in range(megabytes):
        packed += packer.compress(bytes(1 << 20))
    return head + packed + packer.flush()


def test_an_archive_is_no_image(web: WebApp) -> None:
    assert upload(web.as_("reader"), zipped()).status_code == 422
    assert list(web.config.incoming.iterdir()) == []


def test_a_deflated_bomb_is_refused_unless_it_is_an_image(web: WebApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.images.header.MAX_INFLATED", 8 << 20)
    bomb = deflated(9)
    assert len(bomb) < 16 << 10
    browser = web.as_("reader")
    answered = upload(browser, bomb)
    assert answered.status_code == 422
    assert "holds a deflated data set that is too large" in answered.text
    assert list(web.config.incoming.iterdir()) == []
    plain = chest()
    plain.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert upload(browser, encoded(plain)).status_code == 303


def test_huge_dimensions_are_not_believed(web: WebApp) -> None:
    image_id = bring(web, chest(Rows=65535, Columns=65535))
    browser = web.as_("reader")
    assert browser.get(f"/study/{image_id}/pixels", headers={"accept": "application/json"}).status_code == 422
    assert browser.get(f"/study/{image_id}").status_code == 200
    with web.store.read() as session:
        file = web.config.images / str(session.get_one(Image, image_id).file)
    with pytest.raises(ImageError):
        rendition(file)


def test_a_form_that_lies_about_its_size_is_cut_off(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users, web={"upload_mb": 1}) as web:
        browser = web.as_("reader")
        secret = secret_of(browser.get("/upload").text)
        chunks = (b"x" * 1024 for _ in range(4096))  # chunked: without a length
        assert browser.post("/upload", content=chunks, headers={"x-form-secret": secret}).status_code == 411


# --- at the DICOM port ------------------------------------------------------------------------------------


def greeted(port: int, calling: str, called: str, tls: ssl.SSLContext | None = None) -> bool:
    entity = AE(ae_title=calling)
    entity.add_requested_context(Verification)
    arguments: dict[str, Any] = {"tls_args": (tls, "127.0.0.1")} if tls else {}
    association = entity.associate("127.0.0.1", port, ae_title=called, **arguments)
    if not association.is_established:
        return False
    association.release()
    return True


def test_only_known_titles_are_associated(tmp_path: Path) -> None:
    with receiving(gateway(tmp_path)) as (receiver, store):
        assert greeted(receiver.port, CALLER, "PNEUMOSCOPE")
        assert not greeted(receiver.port, "STRANGER", "PNEUMOSCOPE")
        assert not greeted(receiver.port, CALLER, "ELSEWHERE")
        with store.read() as session:
            assert session.scalars(select(Image)).all() == []


def test_the_tls_port_turns_away_plain_text_and_who_shows_no_certificate(tmp_path: Path, authority: Authority) -> None:
    tls = {**authority.issue("listener"), "ca": authority.ca}
    receive = {"port": 0, "callers": (CALLER,), "free_mb": 0, "tls": tls}
    unknown = ssl.create_default_context(cafile=authority.ca)
    context = ssl.create_default_context(cafile=authority.ca)
    mine = authority.issue("modality")
    context.load_cert_chain(mine["certificate"], mine["key"])
    with receiving(gateway(tmp_path, receive=receive)) as (receiver, _):
        assert not greeted(receiver.port, CALLER, "PNEUMOSCOPE")
        assert not greeted(receiver.port, CALLER, "PNEUMOSCOPE", unknown)
        with socket.create_connection(("127.0.0.1", receiver.port)) as link:
            link.settimeout(60)
            link.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP" not in link.recv(4096)
        assert greeted(receiver.port, CALLER, "PNEUMOSCOPE", context)


# --- searching and paging ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["4711", "doe", "Doe, Jane", "jane DOE", "Doe^Jane"])
def test_a_patient_is_found_and_the_search_is_written_down_without_its_words(web: WebApp, text: str) -> None:
    wanted = bring(web, chest(AccessionNumber="A77"))
    bring(web, chest(PatientName="Roe^Richard", PatientID="0815", AccessionNumber="A78"))
    browser = web.as_("viewer")
    secret = secret_of(browser.get("/worklist").text)
    answered = browser.post("/worklist/search", data={"form_secret": secret, "text": text})
    assert re.findall(r'href="/study/(\d+)"', answered.text) == [str(wanted)]
    page = browser.post("/worklist/search", data={"form_secret": secret, "text": "a77"})
    assert re.findall(r'href="/study/(\d+)"', page.text) == [str(wanted)]
    written = events(web, trail.SEARCHED)
    assert [event.detail for event in written] == ["1 found"] * 2
    assert text not in web.as_("admin").get("/audit").text


def test_what_is_found_is_written_down_as_seen(web: WebApp) -> None:
    image_id = bring(web, chest())
    with web.store.write() as session:
        session.get_one(Image, image_id).received_at = now().replace(year=2020)
    browser = web.as_("viewer")
    text = browser.get("/worklist").text
    assert "No image fits" in text
    browser.post("/worklist/search", data={"form_secret": secret_of(text), "text": "Doe"})
    assert [event.image_id for event in events(web, trail.LISTED)] == [image_id]


def test_a_long_list_has_pages(web: WebApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.serving.web.worklist.MOST", 2)
    every = [bring(web, chest()) for _ in range(5)]
    browser = web.as_("viewer")
    seen = [line["image_id"] for n in (1, 2, 3) for line in browser.get(f"/api/worklist?page={n}").json()]
    assert seen == every
    text = browser.get("/worklist?hours=0&page=2").text
    assert "page 2 of 3" in text
    links = re.findall(r'id="(before|after)" href="([^"]+)"', text)
    assert [(name, address.replace("&amp;", "&")) for name, address in links] == [
        ("before", "/worklist?show=all&read=any&hours=0&page=1"),
        ("after", "/worklist?show=all&read=any&hours=0&page=3"),
    ]
    assert "page 3 of 3" in browser.get("/worklist?page=9").text
    assert browser.get("/worklist?page=0").status_code == 422
