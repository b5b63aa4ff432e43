"""`pneumoscope demo`: the main job from end to end on synthetic radiographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import Seed, progress, quiet_lightning, say


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("runs/demo"),
    patients: Annotated[int, typer.Option(min=40, help="Synthetic patients.")] = 700,
    seed: Seed = 0,
) -> None:
    """Make synthetic radiographs, compare three networks on them, explain, and write the report."""
    quiet_lightning()
    from pneumoscope.cli.training import print_epoch
    from pneumoscope.demo import run_demo
    from pneumoscope.training.experiment import Console

    with progress("working") as update:
        page = run_demo(
            out, patients=patients, seed=seed, console=Console(say=say, report=print_epoch, progress=update)
        )
    say("The report, open it in a browser:")
    typer.echo(page)
