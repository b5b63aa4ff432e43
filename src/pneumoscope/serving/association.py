"""An association with a destination, as its configuration says."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association

from pneumoscope.errors import ConfigError
from pneumoscope.serving.config import ClientTls, Destination

VERIFICATION = UID("1.2.840.10008.1.1")  # PS3.4, annex A
COMMITMENT = UID("1.2.840.10008.1.20.1")  # PS3.4, annex J: storage commitment push model
TITLE = "PNEUMOSCOPE"


def associate(to: Destination, contexts: Sequence[tuple[UID, Sequence[str]]], seconds: float) -> Association:
    """Ask for an association; the caller looks whether it is established.

    `contexts`: SOP class and transfer syntaxes. `seconds`: how long the destination may be silent.

    Raises:
        ConfigError: a certificate cannot be used.
    """
    application = AE(ae_title=to.calling or TITLE)
    application.connection_timeout = application.acse_timeout = seconds
    application.dimse_timeout = application.network_timeout = seconds
    for uid, syntaxes in contexts:
        application.add_requested_context(uid, list(syntaxes))
    tls = None if to.tls is None else (client_tls(to.tls), str(to.host))
    return application.associate(str(to.host), int(to.port or 0), ae_title=str(to.aet), tls_args=tls)


def client_tls(settings: ClientTls | None) -> ssl.SSLContext:
    """Return the TLS context towards a destination; raises `ConfigError` where a file cannot be used."""
    settings = settings or ClientTls()
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificates towards it cannot be used ({error.strerror or error})",
            path=settings.certificate or settings.ca,
            remedy="give PEM files",
        ) from error
    return context
