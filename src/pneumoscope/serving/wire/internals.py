"""Everything that reaches into pynetdicom past its public face; looked at again with each version of it (see the test).

Two things it has no public way to: a file of our own for what comes in, and the end of a connection that it waits for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from pynetdicom import _config, dimse_messages
from pynetdicom.association import Association


def send_files_as_they_are() -> None:
    """Have this process send a file's own bytes, not an object encoded anew."""
    _config.STORE_SEND_CHUNKED_DATASET = True


def receive_into(make: Callable[..., Any]) -> None:
    """Have this process write what comes in to what `make` returns, which is asked as `NamedTemporaryFile` is."""
    _config.STORE_RECV_CHUNKED_DATASET = True
    vars(dimse_messages)["NamedTemporaryFile"] = make


def file_of(event: Any) -> object:
    """Return what the object of a C-STORE was written to."""
    return event.request._dataset_file


def half_sent(association: Association) -> object:
    """Return what an object is written to that has not come in whole, None where there is none."""
    message = association.dimse.message
    return None if message is None else message._data_set_file


def is_over(association: Association) -> bool:
    """Say whether an association has ended, or its connection; one that has not begun has not."""
    begun = association._started_dul and association.ident is not None
    return begun and not (association.is_alive() and association.dul.is_alive())


def connection_of(association: Association) -> socket.socket | None:
    """Return the connection of an association, None where it has none any more."""
    wrapped = association.dul.socket
    return None if wrapped is None else wrapped.socket


def end_waiting(association: Association) -> None:
    """End an association that has lost its connection and would wait for a request for as long as a peer may."""
    if association.is_alive() and association.requestor.primitive is None:
        association.dul.to_user_queue.put(None)  # type: ignore[arg-type]
