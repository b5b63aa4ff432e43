"""The command `pneumoscope`: its verbs, and how errors leave it."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from pneumoscope import __version__
from pneumoscope.cli import data, demo, predicting, reporting, training
from pneumoscope.errors import PneumoscopeError, StorageError, storage_errors

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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.add_typer(data.app, name="data")
for module in (training, predicting, reporting, demo):
    module.register(app)


def main() -> None:
    """Run the command line; a known error becomes one line on stderr and its exit code."""
    try:
        with storage_errors():
            app()
    except PneumoscopeError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        known = error.errno is not None and error.filename is not None
        if not known and error.errno != errno.EIO:
            raise
        _fail(str(StorageError(error.strerror or "cannot be used", path=str(error.filename))), 2)


def _fail(message: str, code: int) -> None:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)
