"""Associations with destinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association

from pneumoscope.serving.settings.neighbours import Destination
from pneumoscope.serving.wire.tls import client_tls

VERIFICATION = UID("1.2.840.10008.1.1")  # PS3.4, annex A
COMMITMENT = UID("1.2.840.10008.1.20.1")  # PS3.4, annex J: storage commitment push model
INSTANCE = UID("1.2.840.10008.1.20.1.1")  # its well-known instance
SUCCESS, NO_SUCH_ACTION, INVALID_ARGUMENT, NOT_AUTHORIZED = 0x0000, 0x0123, 0x0115, 0x0124  # PS3.7, annex C
TITLE = "PNEUMOSCOPE"


def associate(
    to: Destination,
    contexts: Sequence[tuple[UID, Sequence[str]]],
    seconds: float,
    *,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Association:
    """Request an association; the caller checks whether it is established.

    `contexts`: SOP class and transfer syntaxes. `seconds`: how long the destination may be silent. `roles`: unusual
    roles to request (PS3.7, D.3.3.4). `handlers`: of pynetdicom's events.

    Raises:
        ConfigError: a certificate cannot be used.
    """
    application = AE(ae_title=to.calling or TITLE)
    application.connection_timeout = application.acse_timeout = seconds
    application.dimse_timeout = application.network_timeout = seconds
    for uid, syntaxes in contexts:
        application.add_requested_context(uid, list(syntaxes))
    tls = None if to.tls is None else (client_tls(to.tls), str(to.host))
    return application.associate(
        str(to.host),
        int(to.port or 0),
        ae_title=str(to.aet),
        tls_args=tls,
        ext_neg=list(roles),
        evt_handlers=list(handlers),
    )
