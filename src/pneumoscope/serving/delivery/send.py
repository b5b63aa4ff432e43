"""Sending: one thread per destination, so that one that is down holds up no other.

Each way to send is a function from destination and parcel to an `Answer`; a new one is one line in `_WAYS`. What is
sent are the persisted bytes, never an object encoded anew.
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

_IDLE = 0.1  # seconds between looks at an empty outbox
_STANDBY = 2.0  # seconds between looks at whether another host still sends
_MOST = 5  # parcels of one look, each some megabytes
_DOWN = timedelta(seconds=10)  # the longest pause before a destination that is down is tried again
_LOOK = 5.0  # seconds between looks at what a destination has not committed
_ANSWER = 1 << 20  # bytes of an answer over HTTP that are read: it is about one object
_FAILED, _REASON = "00081198", "00081197"  # Failed SOP Sequence, Failure Reason
_START, _END = b"\x0b", b"\x1c\x0d"  # HL7, transport specification: MLLP
DELIVERED = Answer(Outcome.DELIVERED)


def classify(status: int | None) -> Answer:
    """Say what a status of C-STORE means for what is owed (PS3.4, B.2.3; PS3.7, C).

    None, an empty status, is a peer that went away or aborted. Warnings are stored.
    """
    if status is None:
        return Answer(Outcome.RETRY, "no answer: the association was aborted or lost")
    told = f"status 0x{status:04X}"
    if status in (0x0000, 0x0001, 0x0107, 0x0116) or status & 0xF000 == 0xB000:
        return Answer(Outcome.DELIVERED, None if status == 0 else f"{told}, stored with a warning")
    if status & 0xFF00 == 0xA900 or status & 0xF000 == 0xC000 or status == 0x0122:
        return Answer(Outcome.REFUSED, told)
    return Answer(Outcome.RETRY, told)


def classify_http(code: int) -> Answer:
    """Say what a status of HTTP means: what will not change by itself is refused."""
    if 200 <= code < 300:
        return DELIVERED
    passing = code >= 500 or code in (401, 403, 404, 408, 425, 429)  # a proxy or a key that is put right later
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
    """Send over DICOMweb (PS3.18, 10.5); the body is put together here, since dicomweb-client encodes anew."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = head + parcel.data + f"\r\n--{boundary}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    answer, code, told = _post(to, f"{(to.url or '').rstrip('/')}/studies", body, kind, "application/dicom+json")
    if code == 409:
        return Answer(Outcome.REFUSED, "HTTP 409: it refused the object")
    return answer if answer.outcome is not Outcome.DELIVERED else _listed(told) or answer


def _listed(told: bytes) -> Answer | None:
    """Say why an answer in DICOM JSON lists the object as failed, whatever its status of HTTP (PS3.18, table 10.5.3-2).

    None where it does not: servers answer in XML as well, or with nothing.
    """
    try:
        found = json.loads(told)
    except (ValueError, RecursionError):  # or in half, where it is longer than is read
        return None
    for each in found if isinstance(found, list) else [found]:
        if failures := _values(each, _FAILED):
            reason = next(iter(_values(failures[0], _REASON)), None)
            answer = classify(reason) if isinstance(reason, int) else DELIVERED
            if answer.outcome is Outcome.DELIVERED:  # a success among the failures says nothing
                return Answer(Outcome.RETRY, "listed as failed, without a reason")
            return Answer(answer.outcome, f"listed as failed: {answer.reason}")
    return None


def _values(item: object, tag: str) -> list[Any]:
    """Return the values of an element in DICOM JSON (PS3.18, F.2); none where there is no such thing."""
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
    if _END not in reply:  # half of an answer may say the contrary of the whole one
        return Answer(Outcome.RETRY, "the acknowledgment was cut off" if reply else "no acknowledgment")
    return _acknowledged(reply, parcel.uid)


def _acknowledged(reply: bytes, control: str) -> Answer:
    """Say what an acknowledgment means; `control`: the number of the message that it must be about (MSH-10)."""
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
    """Send one parcel; a certificate or a secret that cannot be used may be put right, so it is tried again."""
    try:
        return _WAYS[to.kind](to, parcel)
    except PneumoscopeError as error:
        return Answer(Outcome.RETRY, error.what)
    except (OSError, RuntimeError) as error:  # a full disk, a peer that leaves at once: no other destination suffers
        return Answer(Outcome.RETRY, type(error).__name__)


def step(
    store: Store, to: Destination, chance: random.Random, stages: Callable[[str], None] = lambda stage: None
) -> int:
    """Try what is due at a destination, until it does not answer; returns how many parcels were settled."""
    log = logger("send", destination=to.name)
    settled = 0
    for parcel in outbox.due(store, to.name, _MOST):
        stages("sending")
        started = time.perf_counter()
        answer = attempt(to, parcel)
        meters.took("send", time.perf_counter() - started, to.name)
        stages("sent")
        state = outbox.record(store, parcel, answer, timedelta(hours=to.give_up_hours), chance)
        told = log.info if answer.outcome is Outcome.DELIVERED else log.warning
        told(answer.outcome.value, delivery=parcel.delivery_id, kind=parcel.kind, state=state, reason=answer.reason)
        if answer.outcome is Outcome.DELIVERED and (age := outbox.way(store, parcel)) is not None:
            meters.took("whole", age, to.name)
        if answer.outcome is Outcome.RETRY:
            break  # who is down for one is down for all
        settled += 1
    return settled


def run(store: Store, to: Destination, stop: threading.Event) -> None:
    """Send to one destination until told to stop; stand by while another host does."""
    chance = random.Random(uuid.uuid4().int)
    failed, look = 0, 0.0
    while not stop.is_set():
        with store.alone(f"send {to.name}") as mine:
            settled = step(store, to, chance) if mine else 0
            failed = failed + 1 if mine and not settled and outbox.is_due(store, to.name) else 0
            if to.commit and mine and not settled and not failed and time.monotonic() >= look:
                look = time.monotonic() + _LOOK
                settled = assurance.ask(store, to)
        if failed:  # it is down: what came in meanwhile is not tried one by one
            stop.wait(outbox.delay(failed, chance, _DOWN).total_seconds())
        elif not settled:
            stop.wait(_IDLE if mine else _STANDBY)


def _post(to: Destination, url: str, body: bytes, kind: str, wanted: str) -> tuple[Answer, int, bytes]:
    """Send over HTTP; returns what the status means, the status (0: there was none), and the answer's beginning."""
    headers = {"Content-Type": kind, "Accept": wanted, "Accept-Encoding": "identity"}
    told = bytearray()
    try:
        with (
            open_client(to.tls, to.seconds, token_file=to.token_file) as client,
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            for chunk in response.iter_bytes():
                told += chunk
                if len(told) >= _ANSWER:
                    break
    except httpx.HTTPError as error:
        return Answer(Outcome.RETRY, reason_of(error)), 0, b""
    return classify_http(response.status_code), response.status_code, bytes(told)
