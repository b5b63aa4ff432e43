"""The command line in this process, and what it said."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from pneumoscope.cli import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def call(*arguments: object) -> Done:
    """Run the command line in this process, where imports are paid for once."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["pneumoscope", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    code = stop.value.code
    return Done(code if isinstance(code, int) else int(bool(code)), out.getvalue(), err.getvalue())


def one_line(done: Done, code: int) -> str:
    """The one line of an error on stderr, and nothing on stdout."""
    assert done.code == code, done.err
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in done.err
    return lines[0]
