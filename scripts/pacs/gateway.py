"""The gateway in processes of its own, started from a file and ended like a power failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import pydicom
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from scripts.pacs.orthanc import free_ports

from pneumoscope.serving.settings.gateway import Gateway

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
        """Start it; it is ready later."""
        command = [sys.executable, "-m", "pneumoscope", "serve", "--config", str(self.file)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)

    def kill(self) -> None:
        """As if the power failed: SIGKILL to every process of the gateway."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(90)

    def ready(self) -> bool:
        """Whether it says that it can work."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.config.web.port}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def connect(self) -> Association:
        """Open an association for radiographs."""
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


def until(what: Callable[[], bool], seconds: float, pause: float = 0.02) -> float:
    """Return how long it took until it was so; raises `TimeoutError` after `seconds`."""
    started = time.perf_counter()
    while not what():
        if time.perf_counter() - started > seconds:
            raise TimeoutError(f"it was not so within {seconds:g} seconds")
        time.sleep(pause)
    return time.perf_counter() - started
