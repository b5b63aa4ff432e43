"""Failures around a gateway that are no image: peers, disks, clocks, children, certificates, destinations."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme
from benchmarks.gateway.one_process import Place
from pydicom.uid import ComputedRadiographyImageStorage
from pynetdicom import AE, evt
from sqlalchemy import event as events
from sqlalchemy import func, select, update
from tests.support.dicom_files import chest, encoded
from tests.support.findings import finding
from tests.support.killed import STAGES, killed_at
from tests.support.lines import CALLER, link, send

from pneumoscope.serving.analysis.task import Analysis, Task
from pneumoscope.serving.analysis.worker import Worker
from pneumoscope.serving.delivery import send as sending
from pneumoscope.serving.intake.listener import Receiver, start_receiver
from pneumoscope.serving.intake.receipt import open_intake
from pneumoscope.serving.results import encode
from pneumoscope.serving.settings.gateway import Receive
from pneumoscope.serving.settings.neighbours import Destination, Tls
from pneumoscope.serving.store import outbox
from pneumoscope.serving.store.database import now
from pneumoscope.serving.store.tables import Image, Job
from pneumoscope.serving.wire.spool import spool_into

Told = tuple[str, str]  # what came back; state and reason


@dataclass(frozen=True)
class Scene:
    """A failure that is played. `answer`, `says`: what must come back, and what state and reason must hold."""

    title: str
    sent: str
    play: Callable[[Place], Told]
    answer: str
    says: str


# --- peers ------------------------------------------------------------------------------------------------


@contextmanager
def listener(place: Place, **settings: Any) -> Iterator[Receiver]:
    """Start another listener of the same gateway."""
    receive = Receive.model_validate({"port": 0, "callers": (CALLER,), "free_mb": 0, **settings})
    config = place.config.model_copy(update={"receive": receive})
    receiver = start_receiver(config, open_intake(config, place.store))
    try:
        yield receiver
    finally:
        receiver.close()
        # What comes in is written as the listener that was started last says; there is one in a gateway.
        spool_into(config.incoming, place.config.receive.object_mb << 20, place.receiver.intake.room)


def _kept(place: Place, uid: str) -> str:
    found = place.find(uid)
    left = len(list(place.config.incoming.glob("*.dcm")))
    kept = "not kept" if found is None else f"{found.state}: {found.reason or found.answer}"
    return kept if not left else f"{kept}; {left} files left in incoming"


def cut(place: Place) -> Told:
    source = chest()
    with link(place.receiver.port, 60_000, "cut") as port:
        answer = send(encoded(source), port)
    time.sleep(1.0)
    return answer, _kept(place, source.SOPInstanceUID)


def drip(place: Place) -> Told:
    slow, quick = chest(), chest()
    with (
        listener(place, seconds=2.0, object_seconds=5.0) as receiver,
        link(receiver.port, 60_000, "drip") as port,
        ThreadPoolExecutor(1) as pool,
    ):
        dripping = pool.submit(send, encoded(slow), port)
        beside = send(encoded(quick), receiver.port)
        answer = dripping.result(60)
    time.sleep(1.0)
    return f"{answer}; another sender meanwhile {beside}", _kept(place, slow.SOPInstanceUID)


def silent(place: Place) -> Told:
    with listener(place, seconds=2.0) as receiver, socket.create_connection(("127.0.0.1", receiver.port)) as peer:
        peer.settimeout(30)
        return ("closed" if peer.recv(100) == b"" else "answered"), "no association"


def many(place: Place) -> Told:
    with listener(place, peer_associations=3) as receiver:
        held = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(3)]
        time.sleep(0.5)
        source = chest()
        answer = send(encoded(source), receiver.port)
        for peer in held:
            peer.close()
    return answer, _kept(place, source.SOPInstanceUID)


def _called(title: str, sent: str, **titles: str) -> Scene:
    def play(place: Place) -> Told:
        source = chest()
        return place.send(encoded(source), **titles), _kept(place, source.SOPInstanceUID)

    return Scene(title, sent, play, "association rejected", "not kept")


def long_title(place: Place) -> Told:
    try:
        Receive(callers=("SEVENTEEN_LETTERS",))
    except ValueError as error:
        return "the file is refused", str(error).splitlines()[2].strip()
    return "taken", ""


def other_class(place: Place) -> Told:
    source = chest(SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    source.file_meta.MediaStorageSOPClassUID = source.SOPClassUID
    return place.send(encoded(source)), _kept(place, source.SOPInstanceUID)


def garbled_command(place: Place) -> Told:
    """A message whose command set is noise: pynetdicom ends the association, and leaves the connection open."""
    application = AE(ae_title=CALLER)
    application.add_requested_context(ComputedRadiographyImageStorage)
    with listener(place) as receiver:
        association = application.associate("127.0.0.1", receiver.port, ae_title="PNEUMOSCOPE")
        body = b"\x01\x03" + os.urandom(64)
        part = len(body).to_bytes(4) + body
        association.dul.socket.send(b"\x04\x00" + len(part).to_bytes(4) + part)
        until = time.monotonic() + 20
        while not association.is_aborted and time.monotonic() < until:
            time.sleep(0.1)
        ended = "aborted" if association.is_aborted else "still open"
    source = chest()
    return ended, f"the next image {place.send(encoded(source))}"


# --- the same again ---------------------------------------------------------------------------------------


def five(place: Place) -> Told:
    source = chest()
    data = encoded(source)
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: place.send(data), range(5)))
    place.work()
    with place.store.read() as session:
        rows = session.scalar(select(func.count()).select_from(Image).where(Image.sop_uid == source.SOPInstanceUID))
    return " ".join(answers), f"{rows} image; {_kept(place, source.SOPInstanceUID)}"


def again(**changes: Any) -> Callable[[Place], Told]:
    def play(place: Place) -> Told:
        source = chest()
        place.send(encoded(source))
        place.work()
        for name, value in changes.items():
            setattr(source, name, value)
        return place.send(encoded(source)), _kept(place, source.SOPInstanceUID)

    return play


# --- disk and database ------------------------------------------------------------------------------------


def full_before(place: Place) -> Told:
    source = chest()
    with listener(place, free_mb=1 << 40) as receiver:
        return send(encoded(source), receiver.port), _kept(place, source.SOPInstanceUID)


def full_within(place: Place) -> Told:
    """No file may grow over 64 kB: what a write meets on a full disk, only with another number."""
    source = chest()
    answer = send(encoded(source), place.receiver.port, most=65536)
    return f"{answer}; again {place.send(encoded(source))}", _kept(place, source.SOPInstanceUID)


def database(place: Place) -> Told:
    source = chest()

    def read_only(connection: Any, record: Any, proxy: Any) -> None:
        connection.execute("PRAGMA query_only = ON")

    events.listen(place.store.engine, "checkout", read_only)
    try:
        answer = place.send(encoded(source))
    finally:
        events.remove(place.store.engine, "checkout", read_only)
        place.store.engine.dispose()
    return f"{answer}; again {place.send(encoded(source))}", _kept(place, source.SOPInstanceUID)


def clock(place: Place) -> Told:
    source = chest()
    answer = place.send(encoded(source))
    hour = datetime.now(UTC) + timedelta(hours=1)
    with place.store.write() as session:
        session.execute(update(Job).values(created_at=hour, not_before=hour).where(Job.state == "waiting"))
    place.work()
    return answer, _kept(place, source.SOPInstanceUID)


# --- the child --------------------------------------------------------------------------------------------


def naughty(settings: Any) -> Callable[[Task], Analysis]:
    """A child's factory: what the bundle's path says, it does."""

    def answer(task: Task) -> Analysis:
        deed = Path(settings.path).name
        if deed == "hang":
            time.sleep(600)
        if deed == "eat":
            kept = [bytearray(64 << 20) for _ in range(100)]
            raise AssertionError(len(kept))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    return answer


def _child(title: str, sent: str, deed: str, says: str) -> Scene:
    def play(place: Place) -> Told:
        source = chest()
        answer = place.send(encoded(source))
        limits = place.config.worker.model_copy(update={"seconds": 5.0, "memory_mb": 1024, "attempts": 1})
        choice = place.config.bundle.model_copy(update={"path": Path(deed)})
        config = place.config.model_copy(update={"worker": limits, "bundle": choice})
        worker = Worker(config, place.store, "worker-2", factory=naughty)
        try:
            worker.child.warm_up()
            worker.step()
        finally:
            worker.child.close()
        return answer, _kept(place, source.SOPInstanceUID)

    return Scene(title, sent, play, "0x0000", says)


# --- certificates -----------------------------------------------------------------------------------------


def _certificates(folder: Path, **dates: Any) -> tuple[Path, Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", **dates)
    paths = (folder / "certificate.pem", folder / "key.pem", folder / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(paths[0])
    issued.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    return paths


def _tls(title: str, sent: str, who: str, answer: str) -> Scene:
    def play(place: Place) -> Told:
        folder = place.config.folder.parent / f"tls-{who.replace(' ', '-')}"
        old = datetime.now(UTC) - timedelta(days=1)
        dates = {"not_after": old} if who == "expired" else {}
        certificate, key, ca = _certificates(folder, **dates)
        context = ssl.create_default_context(cafile=str(ca))
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the client's side is not what is tried
        if who != "none":
            context.load_cert_chain(certificate, key)
        tls = Tls(certificate=certificate, key=key, ca=ca)
        source = chest()
        with listener(place, tls=tls) as receiver:
            if who == "silent neighbour":
                with socket.create_connection(("127.0.0.1", receiver.port)):
                    time.sleep(0.5)
                    told = send(encoded(source), receiver.port, tls=(context, None))
            else:
                told = send(encoded(source), receiver.port, tls=(context, None))
        return told, _kept(place, source.SOPInstanceUID)

    return Scene(title, sent, play, answer, "waiting" if answer == "0x0000" else "not kept")


# --- destinations -----------------------------------------------------------------------------------------


def _pacs(title: str, sent: str, status: int | str | None, says: str) -> Scene:
    """Send a report to a PACS that answers so; None is down, `abort` goes away, `silent` says nothing."""

    def play(place: Place) -> Told:
        (built,) = encode(finding(chest()), ("sr",), now())
        parcel = outbox.Parcel(0, 0, now(), "sr", built.uid, built.sop_class, ".dcm", built.data)
        application = AE(ae_title="SINK")
        application.add_supported_context(str(built.sop_class))

        def on_store(event: Any) -> int:
            if status == "abort":
                event.assoc.abort()
            if status == "silent":
                time.sleep(5)
            return status if isinstance(status, int) else 0

        server = application.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
        port = server.socket.getsockname()[1]
        if status is None:
            server.shutdown()
        to = Destination(name="pacs", kind="dicom", host="127.0.0.1", port=port, aet="SINK", seconds=2.0)
        try:
            answer = sending.c_store(to, parcel)
        finally:
            if status is not None:
                server.shutdown()
        return answer.reason or "0x0000", answer.outcome.value

    return Scene(title, sent, play, "", says)


# --- crash points -----------------------------------------------------------------------------------------


def _crash(stage: str) -> Scene:
    def play(place: Place) -> Told:
        try:
            killed_at(stage, place.config.folder.parent / f"crash-{stage}", {})  # {}: SQLite
        except AssertionError as error:
            return "something is missing or double", str(error).splitlines()[0]
        return "one report, one picture", "done, one result, one line in the journal"

    return Scene(f"killed when {stage}", "SIGKILL, then started again", play, "one report, one picture", "done")


SCENES = (
    Scene("association cut in mid-transfer", "60 kB of 132, then the line is cut", cut, "no status", "not kept"),
    Scene("slow-drip sender", "60 kB of 132, then 80 bytes a second", drip, "sender meanwhile 0x0000", "not kept"),
    Scene("silent connection", "nothing", silent, "closed", ""),
    Scene("a peer with many connections", "a fourth of three allowed", many, "no association", "not kept"),
    _called("unknown calling title", "from STRANGER", calling="STRANGER"),
    _called("unknown called title", "to NOBODY", called="NOBODY"),
    Scene("title over 16 characters", "17 characters in the file", long_title, "the file is refused", "16"),
    Scene("unknown SOP class", "a CT image", other_class, "class or transfer syntax refused", "not kept"),
    Scene("garbled command", "64 random bytes as a command", garbled_command, "aborted", "0x0000"),
    Scene("the same instance five times at once", "one file, five associations", five, "0x0000 " * 4, "1 image; done"),
    Scene("the same again", "the same file later", again(), "0x0000", "done"),
    Scene("same UID, other pixels", "zeros", again(PixelData=bytes(2 * 256 * 256)), "0x0000", "other pixels"),
    Scene("patient merged after the result", "another PatientID, same pixels", again(PatientID="4712"), "0x0000",
          "another header under the same SOP Instance UID"),
    Scene("disk full before", "less left than free_mb", full_before, "0xA700", "not kept"),
    Scene("disk full in mid-transfer", "no room after 64 kB", full_within, "0xA700; again 0x0000", "waiting"),
    Scene("database cannot write", "read-only, then well again", database, "0xA700; again 0x0000", "waiting"),
    Scene("clock of the gateway set back an hour", "a job of the future", clock, "0x0000", "done"),
    _child("model hangs", "an analysis of ten minutes", "hang", "took longer than 5 s"),
    _child("out of memory", "an analysis that takes 6 GB", "eat", "died with exit code 1"),
    _child("child killed", "SIGKILL", "die", "by signal 9"),
    _tls("TLS with a client certificate", "signed by the authority", "known", "0x0000"),
    _tls("TLS without a client certificate", "none", "none", "no association"),
    _tls("expired certificate", "of yesterday", "expired", "no association"),
    _tls("TLS beside a silent connection", "another peer never shakes hands", "silent neighbour", "0x0000"),
    _pacs("PACS down", "a report", None, "retry"),
    _pacs("PACS aborts", "a report", "abort", "retry"),
    _pacs("PACS never answers", "a report", "silent", "retry"),
    _pacs("PACS is full", "a report", 0xA700, "retry"),
    _pacs("PACS warns", "a report", 0xB007, "delivered"),
    _pacs("PACS refuses the data set", "a report", 0xA900, "refused"),
    _pacs("PACS cannot understand", "a report", 0xC001, "refused"),
    _pacs("PACS does not know the class", "a report", 0x0122, "refused"),
    *map(_crash, STAGES),
)  # fmt: skip
