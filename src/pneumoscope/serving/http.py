"""A client towards a server that speaks HTTP, as the configuration says."""

from __future__ import annotations

from pathlib import Path

import httpx

from pneumoscope.errors import ConfigError, storage_errors
from pneumoscope.serving.config import ClientTls
from pneumoscope.serving.tls import client_tls


def open_client(
    tls: ClientTls | None, seconds: float, *, token_file: Path | None = None, user_file: Path | None = None
) -> httpx.Client:
    """Return a client; `seconds`: how long the server may be silent.

    No proxy is taken from the environment, and no redirection is followed: what is sent goes where it was configured.

    Raises:
        ConfigError: a certificate or a secret cannot be used.
        StorageError: the file of a secret cannot be read.
    """
    headers, user = {}, None
    if token_file is not None:
        headers["Authorization"] = f"Bearer {_secret(token_file)}"
    if user_file is not None:
        name, colon, password = _secret(user_file).partition(":")
        if not colon:
            raise ConfigError("it holds no user", path=user_file, remedy="write name:password into it")
        user = httpx.BasicAuth(name, password)
    return httpx.Client(verify=client_tls(tls), timeout=seconds, trust_env=False, headers=headers, auth=user)


def _secret(path: Path) -> str:
    with storage_errors(path):
        text = path.read_bytes().strip()
    if not text or not text.isascii() or b"\n" in text:
        raise ConfigError("it is not one line of ASCII", path=path, remedy="write the secret alone into it")
    return text.decode("ascii")
