"""The child may hang, die or eat all memory: the worker goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pneumoscope.errors import ImageError
from pneumoscope.serving.analysis.child import Child, ChildLostError


def obedient(settings: Any) -> Callable[[Any], Any]:
    """A factory whose function does what it is asked, good or bad."""

    def answer(question: str) -> Any:
        if question == "hang":
            time.sleep(600)
        if question == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if question == "eat":
            return len([bytearray(64 << 20) for _ in range(100)])
        if question == "refuse":
            raise ImageError("damaged", path="a.dcm")
        if question == "break":
            raise ZeroDivisionError("Doe^Jane")
        return f"{settings} {question}"

    return answer


def slow_to_start(settings: Any) -> Callable[[Any], Any]:
    time.sleep(600)
    raise AssertionError


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child(obedient, "well", memory_mb=1024, start_seconds=60)
    yield made
    made.close()


def test_it_stays_warm(child: Child) -> None:
    assert child.ask("one", 10) == "well one"
    first = child.pid
    with pytest.raises(ImageError, match="damaged"):
        child.ask("refuse", 10)
    assert child.ask("two", 10) == "well two"
    assert child.pid == first


@pytest.mark.parametrize(
    ("question", "reason"),
    [("hang", "took longer"), ("die", "by signal 9"), ("eat", "exit code 1"), ("break", "exit code 1")],
)
def test_it_is_replaced(child: Child, question: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildLostError, match=reason):
        child.ask(question, 1 if question == "hang" else 60)
    assert child.ask("again", 60) == "well again"
    assert "Doe" not in capfd.readouterr().err


def test_one_that_never_gets_ready_is_told() -> None:
    child = Child(slow_to_start, None, memory_mb=1024, start_seconds=1)
    with pytest.raises(ChildLostError, match="did not get ready"):
        child.warm_up()
    child.close()
