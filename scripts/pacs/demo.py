"""A day of invented patients: modalities, the gateway and a real PACS, all on this machine's loopback.

`make pacs-demo` runs it. Where Orthanc is missing a receiver of our own takes its place, and that is said.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, JPEGLosslessSV1, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from scripts.pacs.gateway import CALLER, Running, killed_at_the_end, until, write_gateway
from scripts.pacs.orthanc import free_ports, start_orthanc
from scripts.pacs.radiographs import radiograph
from sqlalchemy import func, select

from pneumoscope.phantom.synthetic import render
from pneumoscope.serving.settings.gateway import load_gateway
from pneumoscope.serving.store.database import Store, open_store
from pneumoscope.serving.store.tables import RUNNING, WAITING, Delivery, Image, Job, Object, Result

TITLE = "TESTPACS"
SIDE = 512
_SECONDS = 900  # until all is answered and sent
Stored = Callable[[], Counter[str]]  # objects in the PACS by study

# What is told of it, kind of the drawing, whether an adult is drawn, what differs in the header.
DAY: tuple[tuple[str, str, bool, dict[str, Any]], ...] = (
    ("child", "bacterial", False, {"PatientAge": "003Y"}),
    ("child", "viral", False, {"PatientAge": "004Y"}),
    ("child", "normal", False, {"PatientAge": "002Y"}),
    ("child, urgent", "bacterial", False, {"PatientAge": "003Y", "RequestedProcedurePriority": "STAT"}),
    ("child, name in Cyrillic", "normal", False, {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Иванова^Анна"}),
    (
        "child, name in kanji", "viral", False,
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Yamada^Hana=山田^花=やまだ^はな"},
    ),
    ("newborn", "normal", False, {"PatientAge": "003W"}),
    ("adult", "bacterial", True, {"PatientAge": "045Y", "PatientBirthDate": "19810203"}),
    ("lateral view", "normal", False, {"ViewPosition": "LL"}),
    ("abdomen", "normal", False, {"BodyPartExamined": "ABDOMEN"}),
    ("secondary capture", "normal", False, {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"}),
    ("CT slice", "normal", False, {"SOPClassUID": CTImageStorage, "Modality": "CT"}),
    ("damaged pixels", "normal", False, {}),
)  # fmt: skip


def patients(seed: int = 0) -> Iterator[tuple[str, pydicom.Dataset]]:
    """Yield what is told of a patient, and the radiograph."""
    for number, (told, kind, adult, changes) in enumerate(DAY):
        image = radiograph(
            SIDE,
            **{"PatientID": f"DEMO{number:03}", "PatientName": f"Demo^{number:03}", "AccessionNumber": f"D{number:03}"}
            | {key: generate_uid() for key in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")}
            | changes,
        )
        pixels = render(np.random.default_rng(seed + number), kind=kind, size=SIDE, adult=adult).pixels
        image.PixelData = (pixels.astype(np.uint16) * 16).tobytes()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        if told == "damaged pixels":
            image.file_meta.TransferSyntaxUID = JPEGLosslessSV1
            image.PixelData = encapsulate([np.random.default_rng(seed).bytes(4096)])
            image["PixelData"].is_undefined_length = True
        yield told, image


def send(gateway: Running, image: pydicom.Dataset) -> bool:
    """Send one image as a modality does; False where it is not acknowledged."""
    modality = AE(ae_title=CALLER)
    modality.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
    link = modality.associate("127.0.0.1", gateway.config.receive.port, ae_title=gateway.config.receive.aet)
    if not link.is_established:
        return False
    try:
        return link.send_c_store(image).get("Status") == 0 if link.accepted_contexts else False
    finally:
        link.release()


@contextmanager
def pacs(folder: Path) -> Iterator[tuple[str, int, Stored]]:
    """Run Orthanc, or where it is missing a receiver that counts; yield its name, its port and what it holds."""
    if shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/sbin:/bin") is None or shutil.which("cc") is None:
        print("Orthanc cannot be run here (scripts/pacs/install): a receiver of our own takes its place", flush=True)
        with sink() as (port, held):
            yield "a receiver of our own", port, lambda: Counter(held)
        return
    (folder / "orthanc").mkdir()
    with start_orthanc(folder / "orthanc", TITLE) as orthanc:

        def stored() -> Counter[str]:
            studies = httpx.get(f"{orthanc.url}/studies?expand").json()
            size = {s["ID"]: httpx.get(f"{orthanc.url}/studies/{s['ID']}/statistics").json() for s in studies}
            return Counter({
                s["MainDicomTags"]["StudyInstanceUID"]: int(size[s["ID"]]["CountInstances"]) for s in studies
            })  # fmt: skip

        yield f"Orthanc, {orthanc.url}", orthanc.port, stored


@contextmanager
def sink() -> Iterator[tuple[int, Counter[str]]]:
    """Listen for objects, and count them by study."""
    held: Counter[str] = Counter()

    def on_store(event: Any) -> int:
        held[str(event.dataset.StudyInstanceUID)] += 1
        return 0x0000

    archive = AE(ae_title=TITLE)
    archive.supported_contexts = AllStoragePresentationContexts
    (port,) = free_ports(1)
    server = archive.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    assert server is not None
    try:
        yield port, held
    finally:
        server.shutdown()


def drained(store: Store) -> bool:
    """Whether nothing waits, neither to be analysed nor to be sent."""
    with store.read() as session:
        jobs = session.scalar(select(func.count()).select_from(Job).where(Job.state.in_((WAITING, RUNNING))))
        owed = session.scalar(select(func.count()).select_from(Delivery).where(Delivery.state == WAITING))
    return not jobs and not owed


def outcome(store: Store, uid: str) -> str:
    """Say what became of an image."""
    with store.read() as session:
        query = select(Job.state, Job.reason, Result.reason, Result.label).outerjoin(Job.result).join(Job.image)
        row = session.execute(query.where(Image.sop_uid == uid)).one_or_none()
        if row is None:
            return "not taken"
        state, why, declined, label = row
        return str(declined or why or (f"analysed: {label}" if label else state))


def table(store: Store, day: list[tuple[str, pydicom.Dataset, bool]], held: Counter[str]) -> str:
    """Return the day as a table and its sums: sent, acknowledged, analysed, in the PACS."""
    lines = [f"{'image':26}{'acknowledged':14}{'in the PACS':13}what became of it"]
    became = []
    for told, image, taken in day:
        became.append(outcome(store, image.SOPInstanceUID) if taken else "refused: this kind of object is not taken")
        lines.append(f"{told:26}{'yes' if taken else 'no':14}{held[image.StudyInstanceUID]:<13}{became[-1]}")
    analysed = sum(what.startswith("analysed") for what in became)
    with store.read() as session:
        built = session.scalar(select(func.count()).select_from(Object))
    lines.append(
        f"\nsent {len(day)}, acknowledged {sum(taken for *_, taken in day)}, analysed {analysed}, "
        f"not analysed {len(day) - analysed}; objects built {built}, in the PACS {held.total()}"
    )
    return "\n".join(lines)


def add_user(file: Path) -> str:
    """Add an administrator; return the password, which nothing else keeps."""
    password = secrets.token_urlsafe(15)
    command = [sys.executable, "-m", "pneumoscope", "users", "add", "demo", "--role", "admin", "--config", str(file)]
    subprocess.run(command, input=password + "\n", text=True, check=True, stdout=subprocess.DEVNULL)
    return password


def main() -> int:
    """Run the day; return 0 where every built object is in the PACS."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/pacs-demo"), help="made anew")
    options.add_argument("--once", action="store_true", help="end when all is done")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(chosen.out, ignore_errors=True)
    chosen.out.mkdir(parents=True)
    folder = chosen.out.resolve()
    try:
        with pacs(folder) as (name, port, stored):
            return day(folder, name, port, stored, once=chosen.once)
    except KeyboardInterrupt:
        print("\nended")
        return 0


def day(folder: Path, name: str, port: int, stored: Stored, *, once: bool) -> int:
    """Start the gateway, send all patients, wait and tell."""
    file = write_gateway(folder, port, TITLE)
    gateway = Running(file, load_gateway(file))
    password = add_user(file)
    with killed_at_the_end(gateway):
        try:
            gateway.start()
            print(f"PACS: {name}\ngateway: http://127.0.0.1:{gateway.config.web.port}", flush=True)
            print(f"sign in as demo, password {password}\nFOR RESEARCH USE ONLY. NOT FOR DIAGNOSIS.", flush=True)
            until(gateway.ready, _SECONDS, 0.5)
            done = [(told, image, send(gateway, image)) for told, image in patients()]
            store = open_store(gateway.config.database)
            try:
                until(lambda: drained(store), _SECONDS, 0.5)
                held = stored()
                print(table(store, done, held), flush=True)
                with store.read() as session:
                    built = session.scalar(select(func.count()).select_from(Object))
            finally:
                store.close()
            if not once:
                print("Ctrl-C ends it", flush=True)
                signal.pause()
            return int(held.total() != built)
        finally:
            if gateway.process is not None and gateway.process.poll() is None:
                gateway.stop()


if __name__ == "__main__":
    sys.exit(main())
