"""A real Orthanc, the gateway in processes of its own, and senders: what the gateway's benchmarks share."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association
from tests.serving.orthanc import Orthanc, free_ports, start_orthanc
from tests.serving.radiographs import radiograph

from pneumoscope.images import read_image
from pneumoscope.serving.settings.gateway import Gateway, load_gateway

CALLER = "XRAYROOM1"
TOML = """
folder = "work"
[receive]
port = {dicom}
callers = ["{caller}"]
[web]
port = {web}
[logs]
file = "log.jsonl"
[[destination]]
name = "pacs"
kind = "dicom"
host = "127.0.0.1"
port = {pacs}
aet = "{title}"
"""


@dataclass
class Running:
    """A gateway in processes of its own."""

    file: Path
    config: Gateway
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "pneumoscope", "serve", "--config", str(self.file)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)

    def kill(self) -> None:
        """As if the power failed: SIGKILL to every process of the gateway."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(90)

    def ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.config.web.port}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def connect(self) -> Association:
        application = AE(ae_title=CALLER)
        application.maximum_pdu_size = 0
        application.add_requested_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
        return application.associate("127.0.0.1", self.config.receive.port, ae_title=self.config.receive.aet)

    def send(self, *sources: pydicom.Dataset) -> list[float | None]:
        """Send over one association; seconds from the request to the acknowledgment of each, None without one."""
        association = self.connect()
        if not association.is_established:
            return [None] * len(sources)
        taken: list[float | None] = []
        for source in sources:
            started = time.perf_counter()
            try:
                status = association.send_c_store(source).get("Status")
            except RuntimeError:  # the gateway went away in between
                status = None
            taken.append(time.perf_counter() - started if status == 0 else None)
        if association.is_established:
            association.release()
        return taken


Made = TypeVar("Made", bound=Running)


@dataclass
class Rig(Running):
    """A gateway that sends to an Orthanc."""

    orthanc: Orthanc = field(kw_only=True)
    seen: dict[str, tuple[str, str, float]] = field(default_factory=dict)  # by instance: study, modality, when
    since: int = 0

    def look(self) -> None:
        """Note what Orthanc has got since the last look."""
        changes = httpx.get(f"{self.orthanc.url}/changes", params={"since": self.since, "limit": 100}).json()
        moment = time.perf_counter()
        for change in changes["Changes"]:
            if change["ChangeType"] == "NewInstance":
                tags = httpx.get(f"{self.orthanc.url}/instances/{change['ID']}/simplified-tags").json()
                self.seen[change["ID"]] = (tags["StudyInstanceUID"], tags["Modality"], moment)
        self.since = changes["Last"]

    def results(self, study: str) -> list[str]:
        return sorted(modality for found, modality, _ in self.seen.values() if found == study)

    def complete(self, sources: list[pydicom.Dataset]) -> bool:
        self.look()
        return all(self.results(source.StudyInstanceUID) == ["OT", "SR"] for source in sources)


@contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    """Start Orthanc, and prepare a gateway with the shipped bundle that sends to it; killed at the end."""
    (folder / "orthanc").mkdir()
    with start_orthanc(folder / "orthanc") as orthanc:
        file = write_gateway(folder, orthanc.port, orthanc.title)
        with killed_at_the_end(Rig(file, load_gateway(file), orthanc=orthanc)) as made:
            yield made


def write_gateway(folder: Path, pacs: int, title: str, more: str = "") -> Path:
    """Write the file of a gateway that sends to a port of this machine; `more` sections."""
    dicom, web = free_ports(2)
    file = folder / "gateway.toml"
    text = TOML.format(dicom=dicom, web=web, caller=CALLER, pacs=pacs, title=title)
    file.write_text(text + more, encoding="utf-8")
    return file


@contextmanager
def killed_at_the_end(made: Made) -> Iterator[Made]:
    """Yield a gateway, and leave none of its processes."""
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.kill()


def chests(count: int, side: int, picture: Path | None = None) -> list[pydicom.Dataset]:
    """Radiographs of 16 bits a pixel, each a study of its own with the same pixels: those of `picture`, or computed.

    The shipped bundle's gate refuses the computed ones, so no heat map is made of them.
    """
    made = []
    pixels = None if picture is None else _enlarged(str(picture), side)
    for _ in range(count):
        uid = generate_uid()
        source = radiograph(side, SOPInstanceUID=uid, StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
        source.file_meta.MediaStorageSOPInstanceUID = uid
        if pixels is not None:
            source.PixelData = pixels
        made.append(source)
    return made


@cache
def _enlarged(picture: str, side: int) -> bytes:
    pixels = Image.fromarray(read_image(picture).pixels).resize((side, side), Image.Resampling.BICUBIC)
    return (np.clip(np.asarray(pixels), 0, 1) * 4095).astype("<u2").tobytes()


def until(what: Callable[[], bool], seconds: float, pause: float = 0.02) -> float:
    """Return how long it took until it was so; raises `TimeoutError` after `seconds`."""
    started = time.perf_counter()
    while not what():
        if time.perf_counter() - started > seconds:
            raise TimeoutError(f"it was not so within {seconds:g} seconds")
        time.sleep(pause)
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """What a figure depends on that the program does not choose."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()}
