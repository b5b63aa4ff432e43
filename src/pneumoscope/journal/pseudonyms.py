"""Pseudonyms: the same for the same person, meaningless without the secret, a file beside the journal."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from pneumoscope.errors import DataError, storage_errors
from pneumoscope.files import sync_folder


class Pseudonyms:
    """Keys that are the same for the same person, study, device or site, and meaningless without the secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def load(cls, path: Path) -> Pseudonyms:
        """Read the secret, or make one that only its owner may read; raises `DataError` where it is too short."""
        with storage_errors(path):
            if not path.exists():
                _begin_secret(path)
            secret = path.read_bytes().strip()
        if len(secret) < 32:
            raise DataError("the secret of the pseudonyms is too short", path=path, remedy="give 32 characters or more")
        return cls(secret)

    def of(self, kind: str, *parts: str | None) -> str | None:
        """Return a pseudonym of 24 hex digits (HMAC-SHA-256), None where all parts are empty."""
        if not any(parts):
            return None
        message = json.dumps([kind, *parts]).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:24]


def _begin_secret(path: Path) -> None:
    """Make a secret, or keep the one that another process made meanwhile: both must use the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as made:  # its owner's alone
        made.write(secrets.token_hex(32).encode("ascii"))
        made.flush()
        os.fsync(made.fileno())
        with suppress(FileExistsError):
            os.link(made.name, path)
    sync_folder(path.parent)


def default_key(journal: Path) -> Path:
    """Return the default path of the secret of a journal's pseudonyms."""
    return journal.with_name(journal.name + ".key")
