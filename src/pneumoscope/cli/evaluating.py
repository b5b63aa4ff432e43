"""`pneumoscope evaluate`, and what `validate` shares with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.console import Bundle, Data, LabelMap, Out, Seed, opened, progress, say, say_overlap
from pneumoscope.cli.predicting import Computes, Gate, Point, Threads

if TYPE_CHECKING:
    from pneumoscope.evaluation.ledger import Look
    from pneumoscope.predict import Classifier


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(evaluate)


def evaluate(
    data: Data,
    out: Out,
    bundle: Bundle = None,
    label_map: LabelMap = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, val or test; all labelled images by default.")
    ] = None,
    operating_point: Point = None,
    engine: Computes = "auto",
    threads: Threads = None,
    official: Annotated[
        bool, typer.Option("--official", help="A locked test set: put this look on record before its labels are read.")
    ] = False,
    explanations: Annotated[int, typer.Option(min=0, max=50, help="Images to explain of each kind of answer.")] = 3,
    stress: Annotated[
        int,
        typer.Option(min=0, max=20, help="Measure each image so often in the style and framing of the other class."),
    ] = 0,
    seed: Seed = 0,
    gate: Gate = True,
) -> None:
    """Score a bundle on labelled images: metrics.json, predictions.csv, figures, and an HTML page.

    Images that the bundle learned from are counted: exit 1 where they make the figures void.
    """
    from pneumoscope.evaluation.evaluate import evaluate as evaluate_bundle
    from pneumoscope.evaluation.stress import STRESSES
    from pneumoscope.predict import Classifier

    refuse_run(out, "test")
    classifier = Classifier.load(bundle, operating_point=operating_point, engine=engine, threads=threads, gate=gate)
    look = announced(classifier, data, operating_point, out) if official else None
    manifest = opened(data, label_map)
    if split is not None:
        manifest = manifest.select(split)
    with progress("evaluating") as update:
        metrics = evaluate_bundle(
            classifier, manifest, out, seed=seed, progress=update, look=look, stress=stress,
            asked=split in ("train", "val"),
        )  # fmt: skip
    if explanations:
        say("explaining some of each kind of answer")
        from pneumoscope.explanation.explain import explain_evaluation

        explain_evaluation(classifier, out, explanations)
    from pneumoscope.report.evaluation_report import write

    page = write(out, classifier.bundle.name)
    for name in ("accuracy", "balanced_accuracy", "auroc", "recall", "specificity", "precision"):
        figure = metrics["metrics"][name]
        low, high = figure["ci95"]
        say(f"{name:18} {_number(figure['value'])}  95 % CI {_number(low)} to {_number(high)}")
    for name in ("none", *STRESSES) if stress else ():
        figures = {key: _number(metrics["stressed"][name][key]["value"]) for key in ("auroc", "recall", "specificity")}
        say(f"stress {name:11} " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    if metrics["not_analysed"]:
        say(f"not analysed: {metrics['not_analysed']}; predictions.csv says why")
    if look is not None:
        looks = metrics["official"]
        say(
            f"look {looks['looks']} at this test set, {looks['bundles']} bundles in all; on record in {looks['ledger']}"
        )
    void = say_overlap(metrics)
    typer.echo(page)
    if void:
        raise typer.Exit(1)
    if metrics["failed"]:
        raise typer.Exit(3)


def refuse_run(out: Path, instead: str) -> None:
    """Raise `ConfigError` where figures would overwrite a run's own."""
    from pneumoscope.errors import ConfigError

    if (out / "run.json").is_file():
        raise ConfigError(
            "is the folder of a run, whose own figures would be lost", path=out, remedy=f"--out {out}/{instead}"
        )


def announced(classifier: Classifier, data: Path, operating_point: str | None, out: Path) -> Look | None:
    """Record a look at a locked test set; None where there is no data.

    Raises `ConfigError` where something would be chosen on it, and `StorageError` where `out` cannot be written, before
    the look counts.
    """
    from pneumoscope.errors import ConfigError
    from pneumoscope.evaluation.ledger import announce, ledger_file
    from pneumoscope.files import out_folder

    if not data.exists():
        return None
    out_folder(out)
    if operating_point is not None:
        raise ConfigError(
            "an official test is made at the bundle's own operating point", remedy="leave --operating-point out"
        )
    return announce(ledger_file(), data, classifier.bundle, classifier.operating_point)


def _number(value: float) -> str:
    return "undefined" if value != value else f"{value:.4f}"  # noqa: PLR0124 - NaN
