"""`pneumoscope serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import say


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(serve)


def serve(
    config: Annotated[Path, typer.Option("--config", help="The gateway's TOML file.")],
    check: Annotated[bool, typer.Option("--check", help="Look for what would stop it, and do not start.")] = False,
) -> None:
    """Work beside a PACS: receive radiographs, analyse them, send results. Needs the extra `serve`."""
    from pneumoscope.errors import ConfigError
    from pneumoscope.records import RESEARCH_ONLY

    try:
        from pneumoscope.serving.config import load_gateway
        from pneumoscope.serving.supervisor import serve as run
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the gateway needs {error.name}, which is not installed", remedy="pip install 'pneumoscope[serve]'"
        ) from error

    found = load_gateway(config)
    say(RESEARCH_ONLY)
    if not check:
        run(found)
        return
    from pneumoscope.serving.check import check as look

    fatal = False
    for item in look(found):
        mark = "ok" if item.fault is None else "FAULT" if item.fatal else "note"
        typer.echo(f"{mark:5}  {item.what}: {item.told}")
        fatal |= item.fault is not None and item.fatal
    if fatal:
        raise typer.Exit(1)
