"""What reaches into pynetdicom, tried on a real association of the version that it was written for."""

from __future__ import annotations

import re
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom import AE, _config, dimse_messages, evt
from tests.support.findings import radiograph

import pneumoscope
from pneumoscope.serving.wire import internals

SOURCES = Path(pneumoscope.__file__).parent
PRIVATE = re.compile(r"\bimport .*\b_config\b|\bdimse_messages\b|\.dul\b|\.dimse\b|\._(started_dul|data_?set_file)\b")


def test_it_was_looked_at_in_this_version() -> None:
    assert version("pynetdicom") == "3.0.4", "look through internals.py, then write the new version here"


def test_nothing_else_reaches_into_it() -> None:
    reaching = {file.name for file in SOURCES.rglob("*.py") if PRIVATE.search(file.read_text(encoding="utf-8"))}
    assert reaching == {"internals.py"}


def test_files_connections_and_ends_are_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in ("STORE_RECV_CHUNKED_DATASET", "STORE_SEND_CHUNKED_DATASET"):
        monkeypatch.setattr(_config, setting, False)
    monkeypatch.setattr(dimse_messages, "NamedTemporaryFile", dimse_messages.NamedTemporaryFile)
    made: list[Any] = []
    seen: dict[str, Any] = {}
    closed = threading.Event()
    ours = dimse_messages.NamedTemporaryFile

    def make(*given: Any, **options: Any) -> Any:
        made.append(ours(*given, dir=tmp_path, **options))
        return made[-1]

    def on_store(event: Any) -> int:
        seen["file"], seen["over"] = internals.file_of(event), internals.is_over(event.assoc)
        seen["link"] = internals.connection_of(event.assoc)
        seen["half"] = internals.half_sent(event.assoc)
        seen["bytes"] = event.dataset_path.read_bytes()
        return 0

    internals.receive_into(make)
    internals.send_files_as_they_are()
    listener = AE()
    listener.add_supported_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
    handlers = [(evt.EVT_C_STORE, on_store), (evt.EVT_CONN_CLOSE, lambda event: closed.set())]
    server = listener.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        sender = AE()
        sender.add_requested_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
        association = sender.associate(*server.socket.getsockname())
        file = tmp_path / "sent.dcm"
        radiograph().save_as(file, enforce_file_format=True)
        assert association.send_c_store(file).Status == 0
        assert not internals.is_over(association)
        association.release()
        assert closed.wait(10)
    finally:
        server.shutdown()
    assert seen["file"] is made[0]
    assert seen["bytes"][-4096:] == file.read_bytes()[-4096:]
    assert seen["link"].type.name == "SOCK_STREAM"
    assert (seen["over"], seen["half"]) == (False, None)
    association.join(10)
    assert internals.is_over(association)
