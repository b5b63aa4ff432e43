"""A small hub on this machine that speaks the protocol of huggingface.co."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import timm

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A hub on 127.0.0.1 with the files `{"owner/repo/name": bytes}`; `asked` lists its requests."""

    files: Mapping[str, bytes]
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """Return what makes a process use this hub alone, with an empty cache in `home`."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def serve_hub(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serve files at `/owner/repo/resolve/main/name` on a free port, with the headers that the hub's client wants."""
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)", self.path)
            data = files.get(f"{match[1]}/{match[2]}") if match else None
            self.send_response(404 if data is None else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if body and data:
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def hub_file(name: str, content: bytes) -> dict[str, bytes]:
    """Return the hub's file for timm's usual weights of a network."""
    return {f"{timm.get_pretrained_cfg(name).hf_hub_id}/model.safetensors": content}
