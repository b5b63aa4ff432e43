"""`pneumoscope monitor labels`: what was true of answered images, out of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import say


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to `monitor`."""
    app.command()(labels)


def labels(
    table: Annotated[Path, typer.Argument(metavar="FILE.csv", help="One label a row; see the page on monitoring.")],
    journal: Annotated[Path, typer.Option("--journal", help="A journal of `predict` or of a gateway.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="The key of its pseudonyms; by default the file beside it.")
    ] = None,
) -> None:
    """Add the labels of a table to a journal, all or none; the same table again adds nothing."""
    from pneumoscope.errors import DataError
    from pneumoscope.journal.journal import Journal
    from pneumoscope.journal.labelling import import_labels
    from pneumoscope.journal.pseudonyms import default_key

    if not journal.is_file():
        raise DataError("there is no such file", path=journal, remedy="give the journal of `predict` or of a gateway")
    done = import_labels(table, Journal(journal), key or default_key(journal))
    say(f"{done.rows} rows, {done.labels} labels, {done.new} of them new")
