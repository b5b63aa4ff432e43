"""An Orthanc that answers wrongly on request: as much of its REST API as following its changes needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.servers import Handler, http_server

Fault = Callable[[Handler], None]


def status(code: int, body: bytes = b"") -> Fault:
    """Answer so, whatever was asked."""
    return lambda handler: handler.answer(code, body)


def cut(handler: Handler) -> None:
    """Promise more than is sent, and go."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(bytes(1000))


@dataclass
class FakeOrthanc:
    """`files`: of instances in order. `faults`: by the end of a path, used up one by one. `asked`: paths."""

    url: str = ""
    files: list[bytes] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    modality: str = "DX"

    @staticmethod
    def name(number: int) -> str:
        return f"{number:08x}" + "-00000000" * 4

    def answer(self, path: str) -> Any:
        parsed = urlsplit(path)
        query = parse_qs(parsed.query, keep_blank_values=True)
        _, room, *rest = parsed.path.split("/")
        if room == "system":
            return {"Version": "fake"}
        if room == "changes":
            changes = [
                {"Seq": n, "ChangeType": "NewInstance", "ID": self.name(n), "Date": f"20260101T{n:06d}"}
                for n in range(1, len(self.files) + 1)
            ]
            if "last" in query:
                return {"Changes": changes[-1:], "Done": True, "Last": len(changes)}
            since, limit = int(query["since"][0]), int(query["limit"][0])
            left = changes[since:]
            return {"Changes": left[:limit], "Done": len(left) <= limit, "Last": min(since + limit, len(changes))}
        if room == "series":
            return {"MainDicomTags": {"Modality": self.modality}}
        file = self.files[int(rest[0][:8], 16) - 1]
        return file if rest[1:] == ["file"] else {"ParentSeries": self.name(0), "FileSize": len(file)}


@contextmanager
def fake_orthanc(*files: bytes) -> Iterator[FakeOrthanc]:
    fake = FakeOrthanc(files=list(files))

    class Changes(Handler):
        def do_GET(self) -> None:
            fake.asked.append(self.path)
            for end, faults in fake.faults.items():
                if self.path.split("?")[0].endswith(end) and faults:
                    faults.pop(0)(self)
                    return
            content = fake.answer(self.path)
            self.answer(200, content if isinstance(content, bytes) else json.dumps(content).encode())

    with http_server(Changes) as fake.url:
        yield fake
