"""A small hub on this machine that speaks the protocol of huggingface.co."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import timm
from tests.support.servers import Handler, http_server

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

    class Files(Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)", self.path)
            data = files.get(f"{match[1]}/{match[2]}") if match else None
            if data is None:
                self.answer(404, X_Repo_Commit=COMMIT, X_Error_Code="EntryNotFound")
            else:
                self.answer(200, data, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(data).hexdigest()}"')

        do_HEAD = do_GET

    with http_server(Files) as hub.endpoint:
        yield hub


def hub_file(name: str, content: bytes) -> dict[str, bytes]:
    """Return the hub's file for timm's usual weights of a network."""
    return {f"{timm.get_pretrained_cfg(name).hf_hub_id}/model.safetensors": content}
