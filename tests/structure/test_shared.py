"""What is shared between the processes of a session is made once, and never half."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from tests.support.shared import once


def _slow(folder: Path) -> None:
    with (folder.parent / "calls").open("a") as stream:
        stream.write("x")
    (folder / "a").touch()


def _ask(base: Path) -> None:
    assert (once(base, "thing", _slow) / "a").exists()


def test_processes_that_ask_together_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    processes = [multiprocessing.get_context("spawn").Process(target=_ask, args=(tmp_path / f"gw{n}",)) for n in "01"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "calls").read_text() == "x"


def test_what_failed_half_way_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def broken(folder: Path) -> None:
        (folder / "a").touch()
        raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        once(tmp_path, "thing", broken)
    with pytest.raises(FileExistsError):
        once(tmp_path, "thing", _slow)
