"""A process that stays warm between jobs and can be killed during one.

What a hostile file may do to a decoder or a network, it does here: hang, take all memory, end the process. The
parent waits as long as it was told, kills, and starts another.
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
    """The child hung, died or ran out of memory; the message says which. The next question starts another one."""


class Child:
    """A warm child. `factory(settings)`, called in it once, gives the function that answers its questions."""

    def __init__(self, factory: Factory, settings: Any, *, memory_mb: int, start_seconds: float) -> None:
        self._start = (factory, settings, memory_mb)
        self._start_seconds = start_seconds
        self._process: Any = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs now, None before it is first asked."""
        return None if self._process is None else self._process.pid

    def warm_up(self) -> None:
        """Start the child where none runs, and wait until it can answer.

        Raises:
            ChildLostError: it does not get ready.
            PneumoscopeError: what its factory raises.
        """
        if self._process is not None and self._process.is_alive():
            return
        self.close()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(theirs, *self._start), daemon=True)
        self._process.start()
        theirs.close()
        meters.process_started("analysis")
        self._receive(self._start_seconds, "it did not get ready")

    def ask(self, question: Any, seconds: float) -> Any:
        """Return the child's answer.

        Raises:
            ChildLostError: it took longer than `seconds`, or died.
            PneumoscopeError: what it raised; the child lives on.
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

    def _receive(self, seconds: float, late: str) -> Any:
        assert self._connection is not None
        try:
            if not self._connection.poll(seconds):
                raise self._lost(late)
            kind, value = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(5)
            code = self._process.exitcode
            how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            raise self._lost(f"the analysis process died {how}") from error
        if kind == _REFUSED:
            assert isinstance(value, PneumoscopeError)
            raise value
        return value

    def _lost(self, why: str) -> ChildLostError:
        self.close()
        return ChildLostError(why)


def _live(connection: Connection, factory: Factory, settings: Any, memory_mb: int) -> None:
    """Run in the child: answer until the parent is gone."""
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
                told = (_ANSWER, answer(question))
            except PneumoscopeError as error:
                told = (_REFUSED, error)
            connection.send(told)


class Discreet:
    """Ends the process on an error, and says what it was and where, without its message.

    That may quote a patient's header, and multiprocessing would print it.
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
        place = "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        line = {
            "event": "process failed",
            "process": self.name,
            "level": "error",
            "error": kind.__name__,
            "place": place,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)
        os._exit(1)
