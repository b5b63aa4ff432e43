"""`pneumoscope monitor labels` and `decide`: what was true of images, and what was done about an alarm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import say

Journal = Annotated[Path, typer.Option("--journal", help="A journal of `predict` or of a gateway.")]
Key = Annotated[Path | None, typer.Option("--key", help="The key of its pseudonyms; by default the file beside it.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to `monitor`."""
    app.command()(labels)
    app.command()(decide)


def labels(
    table: Annotated[Path, typer.Argument(metavar="FILE.csv", help="One label a row; see the page on monitoring.")],
    journal: Journal,
    key: Key = None,
) -> None:
    """Add the labels of a table to a journal, all or none; the same table again adds nothing."""
    from pneumoscope.journal import journal as keeping
    from pneumoscope.journal.labelling import import_labels
    from pneumoscope.journal.pseudonyms import default_key

    _require(journal)
    done = import_labels(table, keeping.Journal(journal), key or default_key(journal))
    say(f"{done.rows} rows, {done.labels} labels, {done.new} of them new")


def decide(
    alarm: Annotated[str, typer.Argument(help="The key of the alarm, as monitoring.json has it.")],
    journal: Journal,
    decision: Annotated[
        str, typer.Option("--as", help="acknowledged, fixed, new reference or dismissed.", show_default=False)
    ],
    why: Annotated[str, typer.Option("--why", help="The reason, without a patient's name.", show_default=False)],
    who: Annotated[str, typer.Option("--by", help="Your name; it is kept as a pseudonym.", show_default=False)],
    key: Key = None,
) -> None:
    """Keep in the journal what was done about an alarm, and why."""
    import secrets
    from datetime import UTC, datetime

    from pneumoscope.journal import journal as keeping
    from pneumoscope.journal.entry import Decision
    from pneumoscope.journal.pseudonyms import Pseudonyms, default_key

    _require(journal)
    file = key or default_key(journal)
    _require(file)
    person = Pseudonyms.load(file).of("reader", who)
    made = Decision(secrets.token_hex(16), datetime.now(UTC), alarm, decision, why, person)
    keeping.Journal(journal).append_decision(made)
    say(f"alarm {alarm}: {decision}")


def _require(file: Path) -> None:
    from pneumoscope.errors import DataError

    if not file.is_file():
        raise DataError("there is no such file", path=file, remedy="give the journal of `predict` or of a gateway")
