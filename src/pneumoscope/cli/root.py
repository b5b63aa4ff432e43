"""The command `pneumoscope`: its verbs, and its errors and exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pneumoscope.cli import (
    adapting,
    auditing,
    catalogue,
    data,
    demonstrating,
    evaluating,
    explaining,
    exporting,
    journaling,
    monitoring,
    predicting,
    reporting,
    serving,
    training,
    validating,
)
from pneumoscope.errors import PneumoscopeError, StorageError, storage_errors
from pneumoscope.version import __version__

app = typer.Typer(
    name="pneumoscope",
    help="Tell pneumonia from normal on chest radiographs, prove how well, and show why. For research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pneumoscope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.add_typer(data.app, name="data")
app.add_typer(journaling.app, name="journal")
app.add_typer(monitoring.app, name="monitor")
for module in (
    training,
    predicting,
    explaining,
    evaluating,
    exporting,
    auditing,
    validating,
    adapting,
    reporting,
    catalogue,
    serving,
    demonstrating,
):
    module.register(app)


def main() -> None:
    """Run the command line; a known error becomes one line on stderr and its exit code."""
    try:
        with storage_errors():
            try:
                app()
            finally:
                _flush()
    except PneumoscopeError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        pass  # The reader of the output closed it (`| head`).
    except OSError as error:
        if error.strerror is None or error.filename is None:
            raise
        _fail(str(StorageError(error.strerror, path=str(error.filename), remedy="check the path")), 2)


def _flush() -> None:
    """Flush stdout now, while a failure can still be reported."""
    try:
        with storage_errors("standard output"):
            sys.stdout.flush()
    except (BrokenPipeError, StorageError):
        # Python would try once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)
