"""`pneumoscope monitor`: has anything moved? A reference, a look at the journal, a plan."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli import labelling
from pneumoscope.cli.console import Bundle, Seed, progress, say
from pneumoscope.errors import ConfigError

app = typer.Typer(help="Notice when the patients, the scanner or the truth has moved.", invoke_without_command=True)
labelling.register(app)
_DAY = ["%Y-%m-%d"]
Journal = Annotated[Path | None, typer.Option("--journal", help="A journal of `predict` or of a gateway; only read.")]
Ref = Annotated[Path | None, typer.Option("--reference", help="A file that `monitor fit` wrote.")]
Allowed = Annotated[
    float, typer.Option("--alarms-per-year", help="False alarms allowed in a year, all streams together.")
]
Pace = Annotated[
    float | None, typer.Option("--images-a-day", help="Planned; by default as in the reference's period, else 40.")
]
Size = Annotated[int, typer.Option("--window", help="Images of a window; a week closes one of 50 or more.")]


@app.callback()
def monitor(
    context: typer.Context,
    journal: Journal = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the monitor; it goes on from what lies there.")
    ] = None,
    reference: Ref = None,
    bundle: Bundle = None,
    alarms_per_year: Allowed = 1.0,
    images_a_day: Pace = None,
    size: Size = 250,
) -> None:
    """Look at what is new in a journal; exit 4 while an alarm is open, 0 where all is quiet.

    Writes monitoring.json, monitoring.html, alarms.jsonl and its own state. Without a reference the first 500 images of
    the journal are one.
    """
    if context.invoked_subcommand is not None:
        return
    if journal is None or out is None:
        raise ConfigError("the monitor needs a journal and a folder", remedy="give --journal and --out")
    from pneumoscope.monitoring.monitor import monitor as look
    from pneumoscope.report.monitoring_page import write

    result = look(
        journal,
        out,
        reference=reference,
        bundle=bundle,
        alarms_per_year=alarms_per_year,
        images_a_day=images_a_day,
        size=size,
    )
    page = write(out)
    say(f"reference: {result['reference']['source']}")
    for name, family in result["families"].items():
        say(f"{name:12} {family['state']:8} {family['line']}")
    for alarm in result["alarms"]:
        if alarm["alarm"] in result["open"]:
            say(f"alarm {alarm['alarm']}, {alarm['kind']}: {alarm['action']['words']}")
    if result["until"] and (silent := _days_since(result["until"])) >= 3:
        say(f"no image came for {silent:.0f} days: does the feed still run?")
    typer.echo(page)
    if result["status"] == "alarm":
        raise typer.Exit(4)


def _days_since(time: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds() / 86_400


@app.command("fit")
def fit(
    out: Annotated[Path, typer.Option("--out", help="File of the reference.")],
    journal: Journal = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Images instead of a journal; labels serve where there are any.")
    ] = None,
    bundle: Bundle = None,
    since: Annotated[datetime | None, typer.Option("--from", formats=_DAY, help="First day, UTC.")] = None,
    until: Annotated[datetime | None, typer.Option("--to", formats=_DAY, help="Last day, UTC.")] = None,
) -> None:
    """Keep what is usual: an accepted period of a journal, or images that a bundle answers now."""
    if (journal is None) == (data is None):
        raise ConfigError("a reference is made of a journal or of images", remedy="give --journal or --data")
    from pneumoscope.monitoring import fitting
    from pneumoscope.monitoring.reference import write

    if journal is not None:
        from pneumoscope.monitoring.stream import Stream

        reference = fitting.from_journal(Stream(journal), since, until, bundle)
    else:
        assert data is not None
        if since or until:
            raise ConfigError("images have no days of their own", remedy="leave out --from and --to")
        from pneumoscope.data.sources import open_source
        from pneumoscope.predict import Classifier

        with progress("answering") as update:
            reference = fitting.from_images(Classifier.load(bundle), open_source(data), update)
    write(reference, out)
    facts = reference.facts
    say(f"{facts['images']:,} images of {facts['patients']:,} patients, {facts['labelled']:,} with a label")
    typer.echo(out)


@app.command("plan")
def plan(
    reference: Annotated[Path, typer.Option("--reference", help="A file that `monitor fit` wrote.")],
    images_a_day: Pace = None,
    labels_a_day: Annotated[
        float, typer.Option("--labels-a-day", min=0, help="Unbiased labels; 0: without any.")
    ] = 0.0,
    alarms_per_year: Allowed = 1.0,
    size: Size = 250,
    draws: Annotated[int, typer.Option("--draws", min=5, help="Simulated beginnings of each change.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", help="A JSON file with the same figures.")] = None,
    seed: Seed = 0,
) -> None:
    """Say in how many days a change would be noticed, by simulation on the reference; some seconds for each row."""
    from pneumoscope.files import write_json
    from pneumoscope.monitoring.detector import DAY_OF_IMAGES, Budget
    from pneumoscope.monitoring.plan import plan as planned
    from pneumoscope.monitoring.reference import read

    usual = read(reference)
    pace = images_a_day or usual.facts.get("images_a_day") or DAY_OF_IMAGES
    labels_a_year = 365.25 * labels_a_day or 3_652.0
    budget = Budget(alarms_per_year, 365.25 * pace, labels_a_year, size)
    result = planned(usual, budget, labels_a_day=labels_a_day, draws=draws, seed=seed)
    typer.echo(f"{'change':42} {'by':7} {'days, median':>13} {'90 %':>7}")
    for row in result["rows"]:
        median, late = (f"over {row['horizon_days']:.0f}" if day is None else f"{day:.0f}" for day in _ends(row))
        typer.echo(f"{row['change']:42} {row['by']:7} {median:>13} {late:>7}")
    if out is not None:
        write_json(out, result)


def _ends(row: dict[str, float | None]) -> tuple[float | None, float | None]:
    return row["median"], row["p90"]
