"""Sending: one thread per destination, so that one that is down delays no other.

Each way to send is a function from destination and parcel to an `Answer`; a new one is one line in `_WAYS`. The stored
bytes are sent, never an object encoded anew.
"""

from __future__ import annotations

import json
import random
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from pynetdicom.dsutils import split_dataset

from pneumoscope.errors import PneumoscopeError, StorageError
from pneumoscope.files import write_bytes
from pneumoscope.serving.delivery import assurance
from pneumoscope.serving.settings.neighbours import Destination
from pneumoscope.serving.store import outbox
from pneumoscope.serving.store.database import Store
from pneumoscope.serving.store.outbox import Answer, Outcome, Parcel
from pneumoscope.serving.watch import meters
from pneumoscope.serving.watch.logs import logger
from pneumoscope.serving.wire.association import associate
from pneumoscope.serving.wire.http import open_client
from pneumoscope.serving.wire.internals import send_files_as_they_are
from pneumoscope.serving.wire.tls import client_tls, reason_of, refusal

_IDLE = 0.1  # seconds between checks of an empty outbox
_STANDBY = 2.0  # seconds between checks whether another host still sends
_MOST = 5  # parcels at once, each some megabytes
_DOWN = timedelta(seconds=10)  # the longest pause before a destination that is down is tried again
_LOOK = 5.0  # seconds between requests for storage commitment
_ANSWER = 1 << 20  # bytes read of an HTTP answer, which is about one object
_FAILED, _REASON = "00081198", "00081197"  # Failed SOP Sequence, Failure Reason
_START, _END = b"\x0b", b"\x1c\x0d"  # HL7, transport specification: MLLP
DELIVERED = Answer(Outcome.DELIVERED)


def classify(status: int | None) -> Answer:
    """Return what a status of C-STORE means for the delivery (PS3.4, B.2.3; PS3.7, C).

    None, an empty status, is a peer that left or aborted. An object with a warning is stored.
    """
    if status is None:
        return Answer(Outcome.RETRY, "no answer: the association was aborted or lost")
    reason = f"status 0x{status:04X}"
    if status in (0x0000, 0x0001, 0x0107, 0x0116) or status & 0xF000 == 0xB000:
        return Answer(Outcome.DELIVERED, None if status == 0 else f"{reason}, stored with a warning")
    if status & 0xFF00 == 0xA900 or status & 0xF000 == 0xC000 or status == 0x0122:
        return Answer(Outcome.REFUSED, reason)
    return Answer(Outcome.RETRY, reason)


def classify_http(code: int) -> Answer:
    """Return what an HTTP status means for the delivery: refused if it will not change by itself."""
    if 200 <= code < 300:
        return DELIVERED
    passing = code >= 500 or code in (401, 403, 404, 408, 425, 429)  # such as a proxy or a key that is repaired later
    return Answer(Outcome.RETRY if passing else Outcome.REFUSED, f"HTTP {code}")


def c_store(to: Destination, parcel: Parcel) -> Answer:
    """Send over DICOM."""
    send_files_as_they_are()
    with tempfile.NamedTemporaryFile(suffix=".dcm") as stream:
        stream.write(parcel.data)
        stream.flush()
        file = Path(stream.name)
        meta, _ = split_dataset(file)
        association = associate(to, [(meta.MediaStorageSOPClassUID, [meta.TransferSyntaxUID])], to.seconds)
        if not association.is_established:
            if association.is_rejected:
                return Answer(Outcome.RETRY, "the association was rejected")
            if association.rejected_contexts:
                return Answer(Outcome.REFUSED, f"it does not take {meta.MediaStorageSOPClassUID.name}")
            fault = to.tls and refusal(str(to.host), int(to.port or 0), to.tls, to.seconds)
            return Answer(Outcome.RETRY, fault or "no association")
        try:
            status = association.send_c_store(file)
        finally:
            association.release()
    return classify(status.get("Status"))


def stow(to: Destination, parcel: Parcel) -> Answer:
    """Send over DICOMweb (PS3.18, 10.5); the body is built here, since dicomweb-client encodes anew."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = head + parcel.data + f"\r\n--{boundary}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    answer, code, reply = _post(to, f"{(to.url or '').rstrip('/')}/studies", body, kind, "application/dicom+json")
    if code == 409:
        return Answer(Outcome.REFUSED, "HTTP 409: it refused the object")
    return answer if answer.outcome is not Outcome.DELIVERED else _listed(reply) or answer


def _listed(reply: bytes) -> Answer | None:
    """Return the answer where DICOM JSON lists the object as failed, whatever the HTTP status (PS3.18, table 10.5.3-2).

    None where it does not: servers may answer in XML, or with nothing.
    """
    try:
        content = json.loads(reply)
    except (ValueError, RecursionError):  # also where the reply was too long and cut
        return None
    for each in content if isinstance(content, list) else [content]:
        if failures := _values(each, _FAILED):
            reason = next(iter(_values(failures[0], _REASON)), None)
            answer = classify(reason) if isinstance(reason, int) else DELIVERED
            if answer.outcome is Outcome.DELIVERED:  # a success among the failures has no meaning
                return Answer(Outcome.RETRY, "listed as failed, without a reason")
            return Answer(answer.outcome, f"listed as failed: {answer.reason}")
    return None


def _values(item: object, tag: str) -> list[Any]:
    """Return the values of an element in DICOM JSON (PS3.18, F.2), empty where there are none."""
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def fhir(to: Destination, parcel: Parcel) -> Answer:
    """Send a transaction to a FHIR server."""
    kind = "application/fhir+json"
    return _post(to, to.url or "", parcel.data, kind, kind)[0]


def hl7_file(to: Destination, parcel: Parcel) -> Answer:
    """Write a message into a folder that an interface engine reads."""
    assert to.folder is not None
    try:
        write_bytes(to.folder / f"{parcel.uid}.hl7", parcel.data)
    except StorageError as error:
        return Answer(Outcome.RETRY, error.what)
    return DELIVERED


def mllp(to: Destination, parcel: Parcel) -> Answer:
    """Send a message over MLLP and read its acknowledgment (HL7 v2.5.1, 2.9.2)."""
    assert to.host is not None
    try:
        with socket.create_connection((to.host, to.port or 0), to.seconds) as plain:
            context = None if to.tls is None else client_tls(to.tls)
            with plain if context is None else context.wrap_socket(plain, server_hostname=to.host) as link:
                link.sendall(_START + parcel.data + _END)
                reply = b""
                while _END not in reply and (chunk := link.recv(4096)) and len(reply) < 65536:
                    reply += chunk
    except OSError as error:
        return Answer(Outcome.RETRY, reason_of(error))
    if _END not in reply:  # half an acknowledgment may say the contrary
        return Answer(Outcome.RETRY, "the acknowledgment was cut off" if reply else "no acknowledgment")
    return _acknowledged(reply, parcel.uid)


def _acknowledged(reply: bytes, control: str) -> Answer:
    """Return what an acknowledgment means; `control`: the control ID of our message (MSH-10)."""
    segments = reply.strip(_START + _END).split(b"\r")
    fields = next((segment.split(b"|") for segment in segments if segment.startswith(b"MSA|")), [])
    code, about = ([field.decode("ascii", "replace").strip() for field in fields[1:]] + ["", ""])[:2]
    if about != control:
        return Answer(Outcome.RETRY, "the acknowledgment is about another message")
    if code in ("AA", "CA"):
        return DELIVERED
    return Answer(Outcome.REFUSED if code in ("AR", "CR") else Outcome.RETRY, f"acknowledged {code}")


_WAYS: Mapping[str, Callable[[Destination, Parcel], Answer]] = MappingProxyType(
    {"dicom": c_store, "stow": stow, "fhir": fhir, "hl7-file": hl7_file, "hl7-mllp": mllp}
)


def attempt(to: Destination, parcel: Parcel) -> Answer:
    """Send one parcel; an unusable certificate or secret may be repaired, so it is tried again."""
    try:
        return _WAYS[to.kind](to, parcel)
    except PneumoscopeError as error:
        return Answer(Outcome.RETRY, error.what)
    except (OSError, RuntimeError) as error:  # such as a full disk: other destinations go on
        return Answer(Outcome.RETRY, type(error).__name__)


def step(
    store: Store, to: Destination, chance: random.Random, stages: Callable[[str], None] = lambda stage: None
) -> int:
    """Send the due deliveries of a destination until one fails; returns how many were settled."""
    log = logger("send", destination=to.name)
    settled = 0
    for parcel in outbox.due(store, to.name, _MOST):
        stages("sending")
        started = time.perf_counter()
        answer = attempt(to, parcel)
        meters.took("send", time.perf_counter() - started, to.name)
        stages("sent")
        state = outbox.record(store, parcel, answer, timedelta(hours=to.give_up_hours), chance)
        write = log.info if answer.outcome is Outcome.DELIVERED else log.warning
        write(answer.outcome.value, delivery=parcel.delivery_id, kind=parcel.kind, state=state, reason=answer.reason)
        if answer.outcome is Outcome.DELIVERED and (age := outbox.way(store, parcel)) is not None:
            meters.took("whole", age, to.name)
        if answer.outcome is Outcome.RETRY:
            break  # the others would fail too
        settled += 1
    return settled


def run(store: Store, to: Destination, stop: threading.Event) -> None:
    """Send to one destination until `stop` is set; stand by while another host does."""
    chance = random.Random(uuid.uuid4().int)
    failed, look = 0, 0.0
    while not stop.is_set():
        with store.alone(f"send {to.name}") as mine:
            settled = step(store, to, chance) if mine else 0
            failed = failed + 1 if mine and not settled and outbox.is_due(store, to.name) else 0
            if to.commit and mine and not settled and not failed and time.monotonic() >= look:
                look = time.monotonic() + _LOOK
                settled = assurance.ask(store, to)
        if failed:  # it is down: the deliveries are not tried one by one
            stop.wait(outbox.delay(failed, chance, _DOWN).total_seconds())
        elif not settled:
            stop.wait(_IDLE if mine else _STANDBY)


def _post(to: Destination, url: str, body: bytes, kind: str, wanted: str) -> tuple[Answer, int, bytes]:
    """Send over HTTP; returns the answer, the HTTP status (0 for none), and the beginning of the reply."""
    headers = {"Content-Type": kind, "Accept": wanted, "Accept-Encoding": "identity"}
    reply = bytearray()
    try:
        with (
            open_client(to.tls, to.seconds, token_file=to.token_file) as client,
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            for chunk in response.iter_bytes():
                reply += chunk
                if len(reply) >= _ANSWER:
                    break
    except httpx.HTTPError as error:
        return Answer(Outcome.RETRY, reason_of(error)), 0, b""
    return classify_http(response.status_code), response.status_code, bytes(reply)
