"""`pneumoscope monitor`: labels for the journal."""

from __future__ import annotations

import typer

from pneumoscope.cli import labelling

app = typer.Typer(help="Notice when the patients, the scanner or the truth has moved.")


@app.callback()
def _monitor() -> None:
    pass


labelling.register(app)
