"""Certificates that a private authority signs."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import trustme


class Authority:
    """Makes PEM files, as the configuration names them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, trustme.CA()
        self.ca = str(folder / "ca.pem")
        self.root.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, host: str = "127.0.0.1", *, expired: bool = False) -> dict[str, str]:
        times = {"not_before": datetime(2000, 1, 1, tzinfo=UTC), "not_after": datetime(2001, 1, 1, tzinfo=UTC)}
        made = self.root.issue_cert(host, **(times if expired else {}))
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        made.private_key_pem.write_to_path(str(key))
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        return {"certificate": str(certificate), "key": str(key)}


def server_side(pair: dict[str, str], ca: str | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair["certificate"], pair["key"])
    if ca is not None:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
