"""Connected peers: one that is too slow or has too many connections is cut off.

pynetdicom checks its timers between two PDUs, and waits for the rest of one without limit. Shutting down the
connection ends that wait.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom import evt
from pynetdicom.association import Association

from pneumoscope.serving.settings.gateway import Receive
from pneumoscope.serving.watch.logs import logger
from pneumoscope.serving.wire.internals import connection_of, end_waiting, is_over

_LOOK = 0.5  # seconds between two looks


@dataclass
class _Line:
    """A connection. `moved`, `began`: time of its last complete PDU and message, or of its opening."""

    host: str
    moved: float
    began: float
    cut: bool = False


class Peers:
    """The connections of a listener. `clock`: seconds, of any origin."""

    def __init__(self, settings: Receive, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.clock = settings, clock
        self._lines: dict[Association, _Line] = {}
        self._lock = threading.Lock()
        self._log = logger("receive")

    @property
    def handlers(self) -> list[tuple[evt.NotificationEvent, Callable[[Any], None]]]:
        """Handlers of the listener's events."""
        return [
            (evt.EVT_CONN_OPEN, lambda event: self.opened(event.assoc, str(event.address[0]))),
            (evt.EVT_PDU_RECV, lambda event: self._advanced(event.assoc, message=False)),
            (evt.EVT_ESTABLISHED, lambda event: self._advanced(event.assoc)),
            (evt.EVT_DIMSE_RECV, lambda event: self._advanced(event.assoc)),
            (evt.EVT_DIMSE_SENT, lambda event: self._advanced(event.assoc)),
        ]

    def opened(self, association: Association, host: str) -> None:
        """Add a connection; cut it off where its host has too many."""
        moment = self.clock()
        with self._lock:
            count = sum(line.host == host and not line.cut and not is_over(one) for one, line in self._lines.items())
            self._lines[association] = _Line(host, moment, moment)
        if count >= self.settings.peer_associations:
            self._cut(association, f"its host has {count} associations already")

    def look(self) -> None:
        """Cut off peers that take too long, and drop connections that have ended."""
        moment = self.clock()
        with self._lock:
            lines = dict(self._lines)
        for association, line in lines.items():
            if is_over(association):
                self._let_go(association)
            elif line.cut:
                continue
            elif moment - line.moved > self.settings.seconds:
                self._cut(association, f"silent or too slow for {self.settings.seconds:g} s")
            elif moment - line.began > self.settings.object_seconds:
                self._cut(association, f"one object took longer than {self.settings.object_seconds:g} s")

    def watch(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        while not stop.wait(_LOOK):
            self.look()

    def _advanced(self, association: Association, *, message: bool = True) -> None:
        with self._lock:
            if (line := self._lines.get(association)) is not None:
                line.moved = self.clock()
                if message:
                    line.began = line.moved

    def _cut(self, association: Association, reason: str) -> None:
        with self._lock:
            self._lines[association].cut = True
        self._log.warning("cut off", caller=str(association.requestor.ae_title), reason=reason)
        _shut(association)

    def _let_go(self, association: Association) -> None:
        with self._lock:
            del self._lines[association]
        _shut(association)  # pynetdicom leaves it open after a command that cannot be decoded
        end_waiting(association)  # it would count as an association until its timeout


def _shut(association: Association) -> None:
    plain = connection_of(association)
    if plain is None:
        return
    try:
        # Not the method of the TLS class, which would wait for a closing message.
        socket.socket.shutdown(plain, socket.SHUT_RDWR)
    except OSError:  # the peer was faster
        return
