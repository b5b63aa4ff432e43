"""Secrets of the configuration: each alone in a file of its own."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.errors import ConfigError, storage_errors


def read_secret(path: Path, *, shortest: int = 1) -> str:
    """Return the one line of a file.

    Raises:
        ConfigError: it is not one line of ASCII, or shorter than `shortest` characters.
        StorageError: the file cannot be read.
    """
    with storage_errors(path):
        text = path.read_bytes().strip()
    if not text or not text.isascii() or b"\n" in text:
        raise ConfigError("it is not one line of ASCII", path=path, remedy="write the secret alone into it")
    if len(text) < shortest:
        raise ConfigError("the secret is too short", path=path, remedy=f"give {shortest} characters or more")
    return text.decode("ascii")
