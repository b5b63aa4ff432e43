"""`pneumoscope export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import Bundle


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(export)


def export(
    to: Annotated[str, typer.Option("--to", help="timm, onnx, or hf: a folder as a model hub takes it.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    bundle: Bundle = None,
) -> None:
    """Write a bundle's network for programs that know nothing of Pneumoscope, with its preprocessing described."""
    from pneumoscope.bundle.bundle import load_bundle
    from pneumoscope.bundle.exporting import export as export_bundle

    typer.echo(export_bundle(load_bundle(bundle), out, to))
