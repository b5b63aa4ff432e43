"""A real Orthanc for tests: free loopback ports, a storage that is thrown away, DICOM and DICOMweb."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PACS = Path(__file__).parent
_READY = re.compile(r"Orthanc has started")
_SECONDS = 60


@dataclass(frozen=True)
class Orthanc:
    """Where a running Orthanc listens; it takes objects from anybody who calls it by `title`."""

    host: str
    port: int
    http_port: int
    title: str
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """Root of its REST API."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def dicomweb(self) -> str:
        """Root of its DICOMweb."""
        return f"{self.url}/dicom-web"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on; all are held until all are known, so they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


@contextmanager
def start_orthanc(folder: Path, title: str = "TESTPACS", **options: Any) -> Iterator[Orthanc]:
    """Start Orthanc with its storage below `folder`, yield it once it says that it is ready, stop it at the end.

    `options` are merged over `scripts/pacs/orthanc.json`, such as `DicomModalities` to send to.
    """
    shim = folder / "loopbind.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, PACS / "loopbind.c", "-ldl"], check=True)
    for _ in range(3):  # another process may take a port between its choice and Orthanc's start
        port, http_port = free_ports(2)
        process = _launch(folder, shim, {"DicomAet": title, "DicomPort": port, "HttpPort": http_port, **options})
        try:
            lines = _until_ready(process)
            if process.poll() is None:
                yield Orthanc("127.0.0.1", port, http_port, title, process)
                return
            if "in use" not in lines:
                raise RuntimeError(f"Orthanc did not start:\n{lines}")
        finally:
            process.terminate()
            process.wait(_SECONDS)
    raise RuntimeError("Orthanc found no free port three times")


def _launch(folder: Path, shim: Path, options: Mapping[str, Any]) -> subprocess.Popen[str]:
    config = json.loads((PACS / "orthanc.json").read_text(encoding="utf-8"))
    storage = str(folder / "storage")
    config |= {"StorageDirectory": storage, "IndexDirectory": storage, **options}
    file = folder / "orthanc.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return subprocess.Popen(
        ["Orthanc", str(file)],
        env={"LD_PRELOAD": str(shim), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _drain(stream: IO[str]) -> None:
    with stream:
        stream.read()


def _until_ready(process: subprocess.Popen[str]) -> str:
    """Read the log until it says that Orthanc has started, or ended; read on, or a full pipe would stop it."""
    assert process.stderr is not None
    watchdog = threading.Timer(_SECONDS, process.kill)
    watchdog.start()
    lines = []
    for line in process.stderr:
        lines.append(line)
        if _READY.search(line):
            break
    else:
        process.wait(_SECONDS)
    watchdog.cancel()
    threading.Thread(target=_drain, args=[process.stderr], daemon=True).start()
    return "".join(lines)
