"""`pneumoscope validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from pneumoscope.cli.console import Bundle, Data, LabelMap, Out, Seed, opened, progress, say
from pneumoscope.cli.evaluating import announced, refuse_run
from pneumoscope.cli.predicting import Computes, Gate, Point, Threads


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(validate)


def validate(
    data: Data,
    out: Out,
    bundle: Bundle = None,
    label_map: LabelMap = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, val or test; all labelled images by default.")
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="The column that names the hospital; `site` by default.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group", help="A further column to compare groups by; may be given again. Numbers are cut in quarters."
        ),
    ] = None,
    operating_point: Point = None,
    engine: Computes = "auto",
    threads: Threads = None,
    gate: Gate = True,
    official: Annotated[
        bool, typer.Option("--official", help="A locked test set: put this look on record before its labels are read.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Validate a bundle on other images, for a review board: sites, groups, threshold, calibration, checklist.

    Flags are on the page and do not change the exit code; 1 says that the result is void.
    """
    from pneumoscope.predict import Classifier
    from pneumoscope.report.validation_page import write
    from pneumoscope.validation.validate import validate as validate_bundle

    refuse_run(out, "validation")
    classifier = Classifier.load(bundle, operating_point=operating_point, engine=engine, threads=threads, gate=gate)
    look = announced(classifier, data, operating_point, out) if official else None
    manifest = opened(data, label_map)
    with progress("validating") as update:
        validation = validate_bundle(
            classifier,
            manifest,
            out,
            split=split,
            site=site,
            groups=group or (),
            seed=seed,
            progress=update,
            look=look,
        )
    pages = write(out)
    for reason in validation["void"]:
        say(f"void: {reason}")
    for flag in validation["flags"]:
        say(f"flag, {flag['kind']}: {flag['where']}: {flag['text']}")
    if not validation["flags"]:
        say("no flag was raised")
    for page in pages:
        typer.echo(page)
    if validation["void"]:
        raise typer.Exit(1)
