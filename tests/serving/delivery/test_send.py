"""Every way out and in against a peer that others wrote, with certificates that fit and that do not."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from fhir.resources.R4B.bundle import Bundle
from hl7apy.mllp import AbstractHandler, MLLPServer
from hl7apy.parser import parse_message
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom import AE
from scripts.pacs.orthanc import PACS, Orthanc, free_ports
from sqlalchemy import select, update
from structlog.testing import capture_logs
from tests.support.certificates import Authority, server_side
from tests.support.delivery import queued, verify
from tests.support.dicom_files import encoded
from tests.support.gateway import CALLER, chest, gateway, only_job, receiving, sink
from tests.support.servers import Handler, serving
from tests.support.waiting import until

from pneumoscope.serving.delivery import send
from pneumoscope.serving.results import Encoded
from pneumoscope.serving.run.check import check
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.settings.neighbours import ClientTls
from pneumoscope.serving.store.database import Store, now
from pneumoscope.serving.store.tables import DEAD, SENT, WAITING, Delivery, Image
from pneumoscope.serving.web import technical

DICOM = ("sr", "sc", "gsps", "seg")
REFUSED = "its certificate is refused: "


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"))


def attempt(config: Gateway, store: Store) -> tuple[str, str | None]:
    """Try the queued delivery at once, whenever it is due; returns state and reason of the first delivery."""
    with store.write() as session:
        session.execute(update(Delivery).values(not_before=now()))
    with capture_logs() as logs:
        while send.step(store, config.destination[0], random.Random(0)):
            pass
    assert not any(secret in str(logs) for secret in ("Doe", "4711", "127.0.0.1"))
    with store.read() as session:
        first = session.scalars(select(Delivery).order_by(Delivery.id)).first()
        assert first is not None
        assert first.state != WAITING or any(line.get("reason") == first.reason for line in logs)
        return first.state, first.reason


def shown(config: Gateway, store: Store) -> dict[str, Any]:
    """What the technical page says of the destination."""
    site: Any = SimpleNamespace(config=config, store=store, bundle=SimpleNamespace(label="b"))
    (item,) = technical.content(site)["destinations"]
    return dict(item)


# STOW-RS


def test_a_pacs_keeps_what_came_over_the_web_and_gives_it_back(orthanc: Orthanc, tmp_path: Path) -> None:
    with queued(tmp_path, DICOM, kind="stow", url=orthanc.dicomweb, objects=DICOM) as (config, store, built):
        assert attempt(config, store) == (SENT, None)
        with store.read() as session:
            assert list(session.scalars(select(Delivery.state))) == [SENT] * 4
            study = str(session.scalar(select(Image.study_uid)))
    client = DICOMwebClient(orthanc.dicomweb)
    instances = client.search_for_instances(study_instance_uid=study)
    series = {item["00080018"]["Value"][0]: item["0020000E"]["Value"][0] for item in instances}
    assert set(series) == {item.uid for item in built}
    for item in built:
        again = client.retrieve_instance(study, series[item.uid], item.uid)
        data = encoded(again)
        assert verify(Encoded(item.kind, item.uid, item.sop_class, data, ".dcm"), tmp_path) == []
        if item.kind == "sr":
            report = highdicom.sr.srread(io.BytesIO(data))
            assert len(report.content.get_planar_roi_measurement_groups()) == 1
            command = ["dsr2html", "+U8", str(tmp_path / "sr.dcm")]
            page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "Pneumonia suspected" in page
        if item.kind == "seg":
            assert highdicom.seg.segread(io.BytesIO(data)).number_of_segments == 1
        if item.kind == "sc":
            assert again.pixel_array.ndim == 3


def failed(reason: object) -> str:
    """What a server answers that lists the object among the failed ones (PS3.18, table 10.5.3-2)."""
    item = {"00081155": {"vr": "UI", "Value": ["1.2"]}, "00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}})


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (200, "", (SENT, None)),
        (202, "<NativeDicomModel/>", (SENT, None)),
        (200, json.dumps({"00081199": {"vr": "SQ", "Value": [{}]}, "00081198": {"vr": "SQ"}}), (SENT, None)),
        (200, json.dumps({"00081198": {"vr": "SQ", "Value": []}}), (SENT, None)),
        (200, "[" * 100_000, (SENT, None)),
        (200, json.dumps([1, {"00081198": 2}]), (SENT, None)),
        (200, failed(0x0110), (WAITING, "listed as failed: status 0x0110")),
        (202, f"[{failed(0xA700)}]", (WAITING, "listed as failed: status 0xA700")),
        (200, failed(0x0122), (DEAD, "listed as failed: status 0x0122")),
        (200, failed(0xA900), (DEAD, "listed as failed: status 0xA900")),
        (200, failed(0xC000), (DEAD, "listed as failed: status 0xC000")),
        (200, failed(0), (WAITING, "listed as failed, without a reason")),
        (200, failed("soon"), (WAITING, "listed as failed, without a reason")),
        (200, json.dumps({"00081198": {"vr": "SQ", "Value": [{}]}}), (WAITING, "listed as failed, without a reason")),
    ],
    ids=[
        "no-body", "xml", "nothing-failed", "none-failed", "deep", "other", "processing", "no-room", "class",
        "mismatch", "not-understood", "success", "no-number", "no-reason",
    ],
)  # fmt: skip
def test_a_web_server_that_lists_the_object_as_failed_has_not_got_it(
    tmp_path: Path, code: int, body: str, expected: tuple[str, str | None]
) -> None:
    with posted(lambda handler, _: handler.answer(code, body.encode())) as port:
        to = {"kind": "stow", "url": f"http://127.0.0.1:{port}"}
        with queued(tmp_path, ("sr",), **to) as (config, store, _):
            assert attempt(config, store) == expected


def test_of_an_endless_answer_no_more_is_read_than_can_be_meant(tmp_path: Path) -> None:
    sent = 0

    def answer(handler: Handler, body: bytes) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            while sent < 1 << 28:
                handler.wfile.write(bytes(1 << 16))
                sent += 1 << 16

    with posted(answer) as port:
        to = {"kind": "stow", "url": f"http://127.0.0.1:{port}"}
        with queued(tmp_path, ("sr",), **to) as (config, store, _):
            assert attempt(config, store) == (SENT, None)
    assert sent < 1 << 26


# C-STORE over TLS


@pytest.mark.parametrize(
    ("peer", "mine", "expected"),
    [
        ("good", None, None),
        ("good", "good", None),
        ("asks", "good", None),
        ("asks", None, "TLS failed: "),
        ("asks", "expired", "TLS failed: "),
        ("asks", "other", "TLS failed: "),
        ("expired", None, f"{REFUSED}certificate has expired"),
        ("other", None, REFUSED),
        ("elsewhere", None, f"{REFUSED}ip address mismatch"),
        ("plain", None, ""),
    ],
)
def test_over_tls_a_pacs_gets_it_or_it_is_kept(
    tmp_path: Path, authority: Authority, other: Authority, peer: str, mine: str | None, expected: str | None
) -> None:
    pairs = {
        "good": authority.issue("good"),
        "asks": authority.issue("asks"),
        "expired": authority.issue("expired", expired=True),
        "elsewhere": authority.issue("elsewhere", "192.0.2.1"),
        "other": other.issue("other"),
    }
    context = None if peer == "plain" else server_side(pairs[peer], authority.ca if peer == "asks" else None)
    tls = {"ca": authority.ca, **(pairs[mine] if mine else {})}
    with sink(context) as pacs:
        to = {"kind": "dicom", "host": "127.0.0.1", "port": pacs.port, "aet": "SINK", "tls": tls}
        with queued(tmp_path, ("sr",), **to) as (config, store, (built,)):
            state, reason = attempt(config, store)
            if expected is None:
                assert (state, [item.SOPInstanceUID for item in pacs.objects]) == (SENT, [built.uid])
                return
            assert (state, pacs.objects) == (WAITING, [])
            assert str(reason).startswith(expected)
            assert shown(config, store)["reason"] == reason
            (result,) = [item for item in check(config) if item.subject == "destination peer"]
            assert result.fault in (reason, "does not answer")
            assert not result.fatal
            with sink(server_side(pairs["good"])) as mended:  # with a certificate that fits it gets what was kept
                tls = ClientTls(ca=Path(authority.ca))
                destination = config.destination[0].model_copy(update={"port": mended.port, "tls": tls})
                assert attempt(config.model_copy(update={"destination": (destination,)}), store)[0] == SENT
                assert [item.SOPInstanceUID for item in mended.objects] == [built.uid]


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[tuple[int, Path]]:
    """The receiver of dcmtk on a free loopback port, and where it puts what it gets."""
    shim, out = folder / "loopbind.so", folder / "out"
    out.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, PACS / "loopbind.c", "-ldl"], check=True)
    (port,) = free_ports(1)
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            ["storescp", "-aet", "DCMTK", "-od", str(out), *options, str(port)],
            env={**os.environ, "LD_PRELOAD": str(shim)}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        until(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "output").read_text()
        yield port, out
    finally:
        process.terminate()
        process.wait(30)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_dcmtk_takes_it_from_who_shows_a_certificate(pacs_tools: None, tmp_path: Path, authority: Authority) -> None:
    server, mine = authority.issue("dcmtk"), authority.issue("mine")
    options = ("+tls", server["key"], server["certificate"], "+cf", authority.ca, "-rc")
    to = {"kind": "dicom", "host": "127.0.0.1", "aet": "DCMTK", "objects": DICOM}
    with storescp(tmp_path, *options) as (port, out):
        tls: dict[str, str] = {"ca": authority.ca}
        with queued(tmp_path / "a", DICOM, **to, port=port, tls=tls) as (config, store, _):
            assert attempt(config, store)[0] == WAITING
            assert list(out.iterdir()) == []
        with queued(tmp_path / "b", DICOM, **to, port=port, tls=tls | mine) as (config, store, built):
            assert attempt(config, store) == (SENT, None)
            assert {pydicom.dcmread(file).SOPInstanceUID for file in out.iterdir()} == {item.uid for item in built}


# FHIR


@contextmanager
def posted(answer: Callable[[Handler, bytes], None], tls: Any = None) -> Iterator[int]:
    """Run a web server that answers what is posted; yields its port."""

    class Posts(Handler):
        def do_POST(self) -> None:
            answer(self, self.rfile.read(int(self.headers["Content-Length"])))

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            pass

    with serving(Server(("127.0.0.1", 0), Posts), tls) as server:
        yield server.server_address[1]


@pytest.mark.parametrize(
    ("codes", "states"),
    [
        ([200], [SENT]),
        ([201], [SENT]),
        ([400], [DEAD]),
        ([409], [DEAD]),
        ([422], [DEAD]),
        ([500, 200], [WAITING, SENT]),
        ([503, 429, 401, 200], [WAITING, WAITING, WAITING, SENT]),
    ],
)
def test_a_fhir_server_gets_a_valid_transaction_until_it_takes_it(
    tmp_path: Path, codes: list[int], states: list[str]
) -> None:
    bodies, kinds, left = [], set(), list(codes)

    def answer(handler: Handler, body: bytes) -> None:
        bodies.append(body)
        kinds.add((handler.headers["Content-Type"], handler.headers["Authorization"]))
        handler.answer(left.pop(0))

    token = tmp_path / "token"
    token.write_text("s3cret-of-the-gateway\n")
    with posted(answer) as port:
        to = {"kind": "fhir", "url": f"http://127.0.0.1:{port}/fhir", "token_file": str(token)}
        with queued(tmp_path / "g", ("fhir",), **to) as (config, store, (built,)):
            assert [attempt(config, store)[0] for _ in codes] == states
    assert set(bodies) == {built.data}
    assert kinds == {("application/fhir+json", "Bearer s3cret-of-the-gateway")}
    bundle = Bundle.model_validate(json.loads(bodies[0]))
    assert bundle.type == "transaction"
    assert {entry.resource.get_resource_type() for entry in bundle.entry} >= {"DiagnosticReport", "Observation", "Task"}


def test_a_fhir_server_that_is_silent_is_asked_again(tmp_path: Path) -> None:
    enough = threading.Event()

    def wait(handler: Handler, body: bytes) -> None:
        enough.wait(60)

    with posted(wait) as port:
        to = {"kind": "fhir", "url": f"http://127.0.0.1:{port}", "seconds": 0.2}
        with queued(tmp_path, ("fhir",), **to) as (config, store, _):
            assert attempt(config, store) == (WAITING, "ReadTimeout")
        enough.set()


def test_a_missing_secret_or_certificate_is_waited_for(tmp_path: Path, authority: Authority) -> None:
    got: list[bytes] = []

    def answer(handler: Handler, body: bytes) -> None:
        got.append(body)
        handler.answer(200)

    token = tmp_path / "token"
    with posted(answer, server_side(authority.issue("web"))) as port:
        to = {"kind": "fhir", "url": f"https://127.0.0.1:{port}", "token_file": str(token)}
        with queued(tmp_path / "g", ("fhir",), **to) as (config, store, _):
            assert attempt(config, store) == (WAITING, "no such file or folder")
            token.write_text("two\nlines")
            assert attempt(config, store) == (WAITING, "it is not one line of ASCII")
            token.write_text("secret")
            state, reason = attempt(config, store)
            assert (state, str(reason).startswith(REFUSED)) == (WAITING, True)
            for ca, expected in ((tmp_path / "absent.pem", WAITING), (Path(authority.ca), SENT)):
                destination = config.destination[0].model_copy(update={"tls": ClientTls(ca=ca)})
                assert attempt(config.model_copy(update={"destination": (destination,)}), store)[0] == expected
    assert len(got) == 1


# MLLP


def acknowledgment(code: str, control: str) -> str:
    return f"\x0bMSH|^~\\&|||||2026||ACK^R01^ACK|1|P|2.5.1\rMSA|{code}|{control}\r\x1c\r"


class Acknowledging(AbstractHandler):
    """Parses what it gets, and answers with the code; where there is none it fails."""

    def __init__(self, message: str, code: str | None, got: list[str]) -> None:
        super().__init__(message)
        self.code, self.got = code, got

    def reply(self) -> str:
        message = parse_message(self.incoming_message.strip("\r") + "\r", find_groups=True)
        assert message.validate()
        self.got.append(message.msh.msh_10.value)
        if self.code is None:
            raise RuntimeError("no answer")
        return acknowledgment(self.code, message.msh.msh_10.value)


@contextmanager
def engine(code: str | None, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    """An interface engine, and the numbers of the messages that it got."""
    got: list[str] = []
    with serving(MLLPServer("127.0.0.1", 0, {"ORU^R01^ORU_R01": (Acknowledging, code, got)}), tls) as server:
        yield server.server_address[1], got


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AA", (SENT, None)),
        ("CA", (SENT, None)),
        ("AE", (WAITING, "acknowledged AE")),
        ("AR", (DEAD, "acknowledged AR")),
        (None, (WAITING, "no acknowledgment")),
    ],
)
def test_an_interface_engine_acknowledges_or_gets_it_again(
    tmp_path: Path, code: str | None, expected: tuple[str, str | None]
) -> None:
    with engine(code) as (port, got):
        to = {"kind": "hl7-mllp", "host": "127.0.0.1", "port": port}
        with queued(tmp_path, ("hl7",), **to) as (config, store, (built,)):
            assert attempt(config, store) == expected
            assert got == [built.uid]
            if expected[0] == WAITING:
                attempt(config, store)
                assert got == [built.uid] * 2


def test_over_tls_an_interface_engine_is_recognised(tmp_path: Path, authority: Authority, other: Authority) -> None:
    for number, ca in enumerate((other.ca, authority.ca)):
        with engine("AA", server_side(authority.issue("engine"))) as (port, got):
            to = {"kind": "hl7-mllp", "host": "127.0.0.1", "port": port, "tls": {"ca": ca}}
            with queued(tmp_path / str(number), ("hl7",), **to) as (config, store, _):
                state, reason = attempt(config, store)
                assert state == (SENT if number else WAITING)
                assert number or str(reason).startswith(REFUSED)
                assert len(got) == number


ANOTHER = "the acknowledgment is about another message"
CUT = "the acknowledgment was cut off"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("\x0bMSH|^~\\&|||||2026||ACK^R01^ACK|1|P|2.5.1\rMSA|AA|{uid}", CUT),
        ("\x0b", CUT),
        ("", "no acknowledgment"),
        (acknowledgment("AA", "another"), ANOTHER),
        (acknowledgment("AR", "another"), ANOTHER),
        ("\x0bMSH|^~\\&\rMSA\r\x1c\r", ANOTHER),
        ("\x0b\xff\x1c\r", ANOTHER),
    ],
    ids=["cut", "begun", "nothing", "other-yes", "other-no", "no-code", "noise"],
)
def test_half_an_answer_and_the_answer_to_another_are_none(tmp_path: Path, answer: str, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = {"kind": "hl7-mllp", "host": "127.0.0.1", "port": server.getsockname()[1]}
        with queued(tmp_path, ("hl7",), **to) as (config, store, (built,)):

            def serve() -> None:
                link, _ = server.accept()
                with link:
                    received = b""
                    while not received.endswith(b"\x1c\r"):
                        received += link.recv(65536)
                    link.sendall(answer.replace("{uid}", built.uid).encode("latin-1"))

            thread = threading.Thread(target=serve)
            thread.start()
            assert attempt(config, store) == (WAITING, reason)
            thread.join()


# Receiving over TLS


def offer(port: int, tls: ssl.SSLContext | None) -> int | None:
    """Send a radiograph; returns the status, None where no association came about."""
    application = AE(ae_title=CALLER)
    application.acse_timeout = application.connection_timeout = application.network_timeout = 60
    application.add_requested_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
    association = application.associate(
        "127.0.0.1", port, ae_title="PNEUMOSCOPE", tls_args=None if tls is None else (tls, "127.0.0.1")
    )
    if not association.is_established:
        return None
    status = association.send_c_store(chest()).get("Status")
    association.release()
    return None if status is None else int(status)


def client_side(ca: str, pair: dict[str, str] | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if pair is not None:
        context.load_cert_chain(pair["certificate"], pair["key"])
    return context


@pytest.mark.parametrize(
    ("asked", "mine", "expected"),
    [
        (False, None, None),
        (True, "good", None),
        (True, None, "TLS failed: peer did not return a certificate"),
        (True, "expired", f"{REFUSED}certificate has expired"),
        (True, "other", REFUSED),
        (False, "plain", "TLS failed: "),
    ],
)
def test_who_shows_what_is_asked_for_may_send(
    tmp_path: Path, authority: Authority, other: Authority, asked: bool, mine: str | None, expected: str | None
) -> None:
    pairs = {
        "good": authority.issue("sender"),
        "expired": authority.issue("old", expired=True),
        "other": other.issue("sender"),
    }
    tls = {**authority.issue("gateway"), **({"ca": authority.ca} if asked else {})}
    config = gateway(tmp_path, receive={"port": 0, "callers": (CALLER,), "free_mb": 0, "tls": tls})
    with capture_logs() as logs, receiving(config) as (receiver, store):

        def refused() -> list[Any]:
            return [line for line in logs if line["event"] == "connection refused"]

        context = None if mine == "plain" else client_side(authority.ca, pairs[mine] if mine else None)
        status = offer(receiver.port, context)
        if expected is None:
            assert status == 0
            assert only_job(store).state == WAITING
            assert refused() == []
            return
        assert status is None
        until(lambda: bool(refused()))
        assert refused()[0]["reason"].startswith(expected)
        assert "127.0.0.1" not in str(logs)
        assert offer(receiver.port, client_side(authority.ca, pairs["good"])) == 0, "others are not disturbed"


@pytest.mark.parametrize("secured", [True, False])
def test_who_says_nothing_stops_nobody_and_is_sent_away(tmp_path: Path, authority: Authority, secured: bool) -> None:
    receive: dict[str, Any] = {"port": 0, "callers": (CALLER,), "free_mb": 0, "seconds": 5.0}
    if secured:
        receive["tls"] = authority.issue("gateway")
    with receiving(gateway(tmp_path, receive=receive)) as (receiver, store):
        silent = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(3)]
        silent[0].sendall(b"\x01\x00\x00\x00")  # the beginning of an A-ASSOCIATE-RQ, PS3.8, 9.3.2
        assert offer(receiver.port, client_side(authority.ca, None) if secured else None) == 0
        assert only_job(store).state == WAITING
        for link in silent:
            link.settimeout(120)
            try:
                while link.recv(100):
                    pass
            except ConnectionResetError:
                pass
            link.close()


def test_dcmtk_sends_over_tls(pacs_tools: None, tmp_path: Path, authority: Authority) -> None:
    tls = {**authority.issue("gateway"), "ca": authority.ca}
    mine = authority.issue("modality")
    file = tmp_path / "chest.dcm"
    chest().save_as(file, enforce_file_format=True)
    config = gateway(tmp_path / "g", receive={"port": 0, "callers": (CALLER,), "free_mb": 0, "tls": tls})
    with receiving(config) as (receiver, store):

        def storescu(*options: str) -> subprocess.CompletedProcess[str]:
            command = ["storescu", "-aet", CALLER, "-aec", "PNEUMOSCOPE", *options, "+cf", authority.ca]
            command += ["127.0.0.1", str(receiver.port), str(file)]
            return subprocess.run(command, capture_output=True, check=False, text=True, timeout=120)

        assert storescu("+tla").returncode != 0
        sent = storescu("+tls", mine["key"], mine["certificate"])
        assert sent.returncode == 0, sent.stderr
        assert only_job(store).state == WAITING
