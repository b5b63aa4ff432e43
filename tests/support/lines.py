"""Senders over C-STORE: whole, cut off, dripping."""

from __future__ import annotations

import resource
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, _config
from scripts.pacs.gateway import CALLER
from tests.support.dicom_files import meta_of

TITLE = "PNEUMOSCOPE"


def send(data: bytes, port: int, *, calling: str = CALLER, called: str = TITLE, tls: Any = None, most: int = -1) -> str:
    """Send a file over C-STORE; returns the status, or what came instead of one.

    `most`: while it is sent, no file of this process may grow over so many bytes, as on a disk that is full.
    """
    meta = meta_of(data)
    application = AE(ae_title=calling)
    application.acse_timeout = application.dimse_timeout = application.network_timeout = 60
    application.add_requested_context(meta.MediaStorageSOPClassUID, UID(meta.TransferSyntaxUID))
    _config.STORE_SEND_CHUNKED_DATASET = True
    association = application.associate("127.0.0.1", port, ae_title=called, tls_args=tls)
    if not association.is_established:
        if association.rejected_contexts and not association.is_rejected:
            return "class or transfer syntax refused"
        return "association rejected" if association.is_rejected else "no association"
    with tempfile.NamedTemporaryFile(suffix=".dcm") as stream:
        stream.write(data)
        stream.flush()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if most < 0 else most, hard))
        try:
            status = association.send_c_store(Path(stream.name)).get("Status")
        except RuntimeError:
            status = None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if association.is_established:
        association.release()
    return "no status" if status is None else f"0x{status:04X}"


@contextmanager
def link(port: int, let_through: int, then: str) -> Iterator[int]:
    """Stand between a sender and the gateway: after so many bytes `cut` the line, or let them `drip`."""
    server = socket.create_server(("127.0.0.1", 0))

    def back(near: socket.socket, far: socket.socket) -> None:
        try:
            while data := far.recv(65536):
                near.sendall(data)
            near.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def forward() -> None:
        near, _ = server.accept()
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            threading.Thread(target=back, args=(near, far), daemon=True).start()
            passed = 0
            try:
                while data := near.recv(65536 if passed < let_through else 8):
                    if passed >= let_through:
                        if then == "cut":
                            far.shutdown(socket.SHUT_RDWR)  # to close it is not enough while the other thread reads
                            return
                        time.sleep(0.1)
                    far.sendall(data)
                    passed += len(data)
            except OSError:
                return

    threading.Thread(target=forward, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.close()
