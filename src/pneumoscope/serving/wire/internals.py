"""Every use of pynetdicom's private parts; its test pins the version, so each new one is checked.

pynetdicom has no public way to receive into a file of our own, nor to end a connection that it waits for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from pynetdicom import _config, dimse_messages
from pynetdicom.association import Association


def send_files_as_they_are() -> None:
    """Let this process send the bytes of a file as they are, not encoded anew."""
    _config.STORE_SEND_CHUNKED_DATASET = True


def receive_into(make: Callable[..., Any]) -> None:
    """Let this process write received objects into files from `make`, called like `NamedTemporaryFile`."""
    _config.STORE_RECV_CHUNKED_DATASET = True
    vars(dimse_messages)["NamedTemporaryFile"] = make


def file_of(event: Any) -> object:
    """Return the file into which a C-STORE was written."""
    return event.request._dataset_file


def half_sent(association: Association) -> object:
    """Return the file of an object that is still coming in, None where there is none."""
    message = association.dimse.message
    return None if message is None else message._data_set_file


def is_over(association: Association) -> bool:
    """Say whether an association or its connection has ended; one that has not begun has not."""
    begun = association._started_dul and association.ident is not None
    return begun and not (association.is_alive() and association.dul.is_alive())


def connection_of(association: Association) -> socket.socket | None:
    """Return the connection of an association, None once it is closed."""
    wrapped = association.dul.socket
    return None if wrapped is None else wrapped.socket


def end_waiting(association: Association) -> None:
    """End an association without a connection, which would wait for a request until its timeout."""
    if association.is_alive() and association.requestor.primitive is None:
        association.dul.to_user_queue.put(None)  # type: ignore[arg-type]
