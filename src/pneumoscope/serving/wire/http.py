"""HTTP clients, as the configuration says."""

from __future__ import annotations

from pathlib import Path

import httpx

from pneumoscope.errors import ConfigError
from pneumoscope.serving.settings.neighbours import ClientTls
from pneumoscope.serving.settings.secret import read_secret
from pneumoscope.serving.wire.tls import client_tls


def open_client(
    tls: ClientTls | None, seconds: float, *, token_file: Path | None = None, user_file: Path | None = None
) -> httpx.Client:
    """Return a client; `seconds`: how long the server may be silent.

    Proxies of the environment and redirections are ignored: data go to the configured server alone.

    Raises:
        ConfigError: a certificate or a secret cannot be used.
        StorageError: the file of a secret cannot be read.
    """
    headers, user = {}, None
    if token_file is not None:
        headers["Authorization"] = f"Bearer {read_secret(token_file)}"
    if user_file is not None:
        name, colon, password = read_secret(user_file).partition(":")
        if not colon:
            raise ConfigError("it holds no user", path=user_file, remedy="write name:password into it")
        user = httpx.BasicAuth(name, password)
    return httpx.Client(verify=client_tls(tls), timeout=seconds, trust_env=False, headers=headers, auth=user)
