"""TLS towards destinations and of the listener, and its errors in words without identity."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from pneumoscope.errors import ConfigError
from pneumoscope.serving.settings.neighbours import ClientTls, Tls


def client_tls(settings: ClientTls | None) -> ssl.SSLContext:
    """Return the TLS context towards a destination; raises `ConfigError` where a file cannot be used."""
    settings = settings or ClientTls()
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise _unusable("the certificates towards it", settings.certificate or settings.ca, error) from error
    return context


class _Unhurried(ssl.SSLContext):
    """Makes no handshake when a connection is accepted; see `greet`.

    pynetdicom accepts all connections in one thread, where a silent peer would delay the others.
    """

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(sock, *arguments, **{**options, "do_handshake_on_connect": False})


def server_tls(settings: Tls) -> ssl.SSLContext:
    """Return the TLS context of a listener; with `ca`, peers need a certificate of that authority.

    Raises:
        ConfigError: a file is missing or is no certificate.
    """
    context = _Unhurried(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.key)
        if settings.ca is not None:
            context.load_verify_locations(settings.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise _unusable("the certificate", settings.certificate, error) from error
    return context


def greet(link: socket.socket, seconds: float) -> str | None:
    """Make the handshake with a peer, and close the connection where it fails; returns the reason.

    `seconds`: how long the peer may be silent, from now on.
    """
    link.settimeout(seconds)
    if not isinstance(link, ssl.SSLSocket):
        return None
    try:
        link.do_handshake()
    except OSError as error:
        link.close()
        return reason_of(error)
    return None


def refusal(host: str, port: int, settings: ClientTls, seconds: float) -> str | None:
    """Return why TLS towards a peer fails, None where it works or the peer cannot be reached.

    A TLS 1.3 server refuses our certificate only after the handshake, so this waits for an answer.
    """
    try:
        with (
            socket.create_connection((host, port), seconds) as plain,
            client_tls(settings).wrap_socket(plain, server_hostname=host) as link,
        ):
            link.settimeout(min(1.0, seconds))
            link.recv(1)
    except ssl.SSLError as error:
        return reason_of(error)
    except OSError:
        return None
    return None


def reason_of(error: BaseException) -> str:
    """Return the reason of a connection error: of TLS in the library's words, else the name of its class.

    These words name no patient, host or certificate.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {_words(cause.verify_message)}"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return f"TLS failed: {_words(cause.reason)}"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _words(text: str) -> str:
    return text.partition(", certificate is not valid for")[0].replace("_", " ").lower()


def _unusable(subject: str, path: Path | None, error: OSError) -> ConfigError:
    return ConfigError(f"{subject} cannot be used ({error.strerror or error})", path=path, remedy="give PEM files")
