"""A process that stays warm between jobs and can be killed during one.

A hostile file may hang a decoder or a network, take all memory or end the process: here it only costs this child. The
parent waits for a limited time, kills it, and starts another.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serving.watch import meters

Factory = Callable[[Any], Callable[[Any], Any]]

_READY, _ANSWER, _REFUSED = "ready", "answer", "refused"


class ChildLostError(Exception):
    """The child hung, died or ran out of memory; the message says which. The next request starts another."""


class Child:
    """A warm child. `factory(settings)`, called in it once, returns the function that answers its requests."""

    def __init__(self, factory: Factory, settings: Any, *, memory_mb: int, start_seconds: float) -> None:
        self._start = (factory, settings, memory_mb)
        self._start_seconds = start_seconds
        self._process: Any = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process, None before the first request."""
        return None if self._process is None else self._process.pid

    def warm_up(self) -> None:
        """Start the child where none runs, and wait until it is ready.

        Raises:
            ChildLostError: it does not get ready.
            PneumoscopeError: raised by its factory.
        """
        if self._process is not None and self._process.is_alive():
            return
        self.close()
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        self._process = context.Process(target=_live, args=(remote, *self._start), daemon=True)
        self._process.start()
        remote.close()
        meters.process_started("analysis")
        self._receive(self._start_seconds, "it did not get ready")

    def ask(self, question: Any, seconds: float) -> Any:
        """Return the child's answer.

        Raises:
            ChildLostError: it took longer than `seconds`, or died.
            PneumoscopeError: raised by it; the child lives on.
        """
        self.warm_up()
        assert self._connection is not None
        try:
            self._connection.send(question)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._lost("the analysis process died") from error
        return self._receive(seconds, f"the analysis took longer than {seconds:g} s")

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _receive(self, seconds: float, timeout: str) -> Any:
        assert self._connection is not None
        try:
            if not self._connection.poll(seconds):
                raise self._lost(timeout)
            kind, value = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(5)
            code = self._process.exitcode
            cause = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            raise self._lost(f"the analysis process died {cause}") from error
        if kind == _REFUSED:
            assert isinstance(value, PneumoscopeError)
            raise value
        return value

    def _lost(self, reason: str) -> ChildLostError:
        self.close()
        return ChildLostError(reason)


def _live(connection: Connection, factory: Factory, settings: Any, memory_mb: int) -> None:
    """Run in the child: answer until the parent has ended."""
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with Discreet("analysis"):
        try:
            answer = factory(settings)
        except PneumoscopeError as error:
            connection.send((_REFUSED, error))
            return
        connection.send((_READY, None))
        while True:
            try:
                question = connection.recv()
            except EOFError:
                return
            try:
                reply = (_ANSWER, answer(question))
            except PneumoscopeError as error:
                reply = (_REFUSED, error)
            connection.send(reply)


class Discreet:
    """Ends the process on an error, and prints its class and line without the message.

    The message may quote a patient's header, and multiprocessing would print it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, SystemExit):
            return
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        line = "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        entry = {"event": "process failed", "process": self.name, "level": "error"}
        print(json.dumps({**entry, "error": kind.__name__, "place": line}), file=sys.stderr, flush=True)
        os._exit(1)
