"""The test lock: every official look at a test set is recorded before its labels are read.

One JSON object per line, only ever appended. Each holds the SHA-256 of the line before it, so a changed or removed line
shows; lines cut off the end show against `official.line` in the metrics files. `opened`: bundle, configuration and
source of a look to come. `measured`: its figures, and the fingerprint of the images. The best of many looks at one set
is better than it will be elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.errors import DataError, storage_errors
from pneumoscope.files import home, plain, sha256_bytes, sync_folder

_START = "0" * 64
_RECORDED = ("accuracy", "balanced_accuracy", "auroc")


@dataclass(frozen=True, slots=True)
class Looks:
    """Looks at one test set, this one included, and how many different bundles took them.

    `line`: SHA-256 of the ledger's last line, which shows whether the ledger was cut short.
    """

    looks: int
    bundles: int
    ledger: str
    line: str


@dataclass(frozen=True, slots=True)
class Look:
    """An announced look: the ledger, the SHA-256 of its line, and that of the source's path."""

    ledger: Path
    line: str
    source: str


def ledger_file() -> Path:
    """Return `$PNEUMOSCOPE_LEDGER`, or the file in the user's data folder."""
    if chosen := os.environ.get("PNEUMOSCOPE_LEDGER"):
        return Path(chosen)
    return Path(os.environ.get("XDG_DATA_HOME") or home() / ".local" / "share") / "pneumoscope" / "ledger.jsonl"


def announce(ledger: Path, source: Path, bundle: Bundle, operating_point: str) -> Look:
    """Record that a bundle is about to be measured on a locked test set; nothing of the set is read.

    Raises:
        DataError: the ledger was changed by other hands.
        StorageError: it cannot be written, so there is no look.
    """
    source_hash = hashlib.sha256(str(source.resolve()).encode()).hexdigest()
    config = json.dumps(plain(bundle.card.get("training", {}).get("config")), sort_keys=True)
    line = _append(
        ledger,
        {
            "kind": "opened",
            "source": source.name,
            "place": source_hash,
            "bundle": {"name": bundle.name, "sha256": bundle.sha256},
            "operating_point": operating_point,
            "config_sha256": sha256_bytes(config.encode()),
        },
    )
    return Look(ledger, line, source_hash)


def record(look: Look, metrics: Mapping[str, Any]) -> Looks:
    """Record the figures, and return how often this test set has been looked at.

    An announced look that was interrupted counts too.
    """
    figures = {name: metrics["metrics"][name]["value"] for name in _RECORDED}
    data = metrics["data"]["sha256"]
    line = _append(
        look.ledger, {"kind": "measured", "opened": look.line, "data": data, "n": metrics["n"], "metrics": figures}
    )
    return _count(look, data, line)


def _count(look: Look, data: str, last: str) -> Looks:
    lines = read_ledger(look.ledger)
    measured = {entry["opened"]: entry["data"] for entry, _ in lines if entry["kind"] == "measured"}
    bundles = [
        entry["bundle"]["sha256"]
        for entry, line in lines
        if entry["kind"] == "opened" and (measured[line] == data if line in measured else entry["place"] == look.source)
    ]
    return Looks(len(bundles), len(set(bundles)), str(look.ledger), last)


def read_ledger(ledger: Path) -> list[tuple[dict[str, Any], str]]:
    """Return the entries with their lines' SHA-256, oldest first; raises `DataError` where the chain is broken."""
    with storage_errors(ledger):
        # A full disk or a kill tore a line without its end: the next one is written over it.
        lines = [line.removesuffix(b"\n") for line in _lines(ledger) if line.endswith(b"\n")]
    entries, previous = [], _START
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            whole = entry["previous"] == previous and entry["kind"] in ("opened", "measured")
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            whole = False
        if not whole:
            raise DataError(
                f"line {number} does not follow from the one before it, so the ledger was changed",
                path=ledger,
                remedy="restore it from a backup, or name another file and say so beside the figures",
            )
        previous = sha256_bytes(line)
        entries.append((entry, previous))
    return entries


def _lines(ledger: Path) -> list[bytes]:
    return ledger.read_bytes().splitlines(keepends=True) if ledger.is_file() else []


def _append(ledger: Path, entry: dict[str, Any]) -> str:
    with storage_errors(ledger):
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{ledger}.lock"):
            entries = read_ledger(ledger)
            entry |= {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "previous": entries[-1][1] if entries else _START,
            }
            line = json.dumps(plain(entry), ensure_ascii=False).encode()
            whole = sum(len(part) for part in _lines(ledger) if part.endswith(b"\n"))
            with ledger.open("ab") as stream:
                stream.truncate(whole)
                stream.write(line + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            sync_folder(ledger.parent)
    return sha256_bytes(line)
