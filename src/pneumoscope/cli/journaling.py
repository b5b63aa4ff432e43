"""`pneumoscope journal`: export its answers, erase one patient."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import say
from pneumoscope.errors import ConfigError, DataError

app = typer.Typer(no_args_is_help=True, help="The record of answers that monitoring reads.")
_DAY = ["%Y-%m-%d"]


@app.command("export")
def export(
    journal: Annotated[Path, typer.Argument(help="The journal, or an archive of one of its months.")],
    out: Annotated[Path, typer.Option("--out", help="A file .csv or .jsonl.")],
    since: Annotated[datetime | None, typer.Option("--from", formats=_DAY, help="First day, UTC.")] = None,
    until: Annotated[datetime | None, typer.Option("--to", formats=_DAY, help="Last day, UTC.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="The labels given later, not the answers.")] = False,
    decisions: Annotated[bool, typer.Option("--decisions", help="What people did about alarms instead.")] = False,
) -> None:
    """Write the answers of a journal to a table, one row each."""
    from pneumoscope.journal.columns import ANSWERS, DECISIONS, LABELS
    from pneumoscope.journal.journal import Journal
    from pneumoscope.journal.recording import write_table

    _require_file(journal)
    first, last = (None if day is None else day.replace(tzinfo=UTC) for day in (since, until))
    if labels and decisions:
        raise ConfigError("one table holds labels or decisions", remedy="export them one after the other")
    of = LABELS if labels else DECISIONS if decisions else ANSWERS
    rows = write_table(Journal(journal), out, first, last, of=of)
    say(f"{rows} rows")
    typer.echo(out)


@app.command("erase")
def erase(
    config: Annotated[
        Path | None, typer.Option("--config", help="A gateway's TOML file: erase from its images and tables as well.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option("--journal", help="A journal that `predict` wrote, with its archives.")
    ] = None,
    issuer: Annotated[
        str | None, typer.Option("--issuer", help="Issuer of Patient ID; of a gateway every issuer by default.")
    ] = None,
    committed: Annotated[
        bool, typer.Option("--committed", help="Also images whose storage was committed: it may be the last copy.")
    ] = False,
) -> None:
    """Erase one patient, whose ID is asked for or read from standard input; exit 1 where images are kept for now."""
    if (config is None) == (journal is None):
        raise ConfigError("erase from a gateway or from a journal", remedy="give --config or --journal")
    if config is not None:
        _erase_from_gateway(config, issuer, committed)
        return
    assert journal is not None
    from pneumoscope.journal.journal import erase_everywhere
    from pneumoscope.journal.pseudonyms import Pseudonyms, default_key

    _require_file(journal)
    _require_file(default_key(journal))
    name = Pseudonyms.load(default_key(journal)).of("patient", issuer, _patient())
    answers, labels = erase_everywhere(journal, [str(name)])
    typer.echo(f"{answers} predictions, {labels} labels")


def _erase_from_gateway(config: Path, issuer: str | None, committed: bool) -> None:
    from pneumoscope.cli.serving import extra, opened

    with extra():
        from pneumoscope.serving.keeping.erasure import erase_patient
    with opened(config) as (gateway, store):
        counts = erase_patient(gateway, store, _patient(), issuer, committed=committed)
    typer.echo(str(counts))
    if counts.kept:
        say("kept: images that wait, are in analysis, have results to deliver, or were committed; run it again later")
        raise typer.Exit(1)


def _patient() -> str:
    """Return the ID from the terminal or standard input: an argument would stay in the shell's history."""
    text = str(typer.prompt("Patient ID")) if sys.stdin.isatty() else sys.stdin.readline()
    if not (patient_id := text.strip()):
        raise ConfigError("no Patient ID was given", remedy="give it on standard input")
    return patient_id


def _require_file(file: Path) -> None:
    if not file.is_file():
        raise DataError("there is no such file", path=file, remedy="give the journal of `predict` or of a gateway")
