"""`pneumoscope predict`, `evaluate`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.console import Bundle, Data, LabelMap, Out, Seed, opened, progress, say
from pneumoscope.cli.listing import FromFile, Paths, refuse_overwriting, wanted

if TYPE_CHECKING:
    from pneumoscope.evaluation.ledger import Look
    from pneumoscope.journal.recording import Recorder
    from pneumoscope.predict import Classifier

Point = Annotated[
    str | None,
    typer.Option("--operating-point", help="balanced, triage or rule-in; the bundle's own by default."),
]
Computes = Annotated[
    str, typer.Option("--engine", help="auto (OpenVINO where it can be had), openvino or torch.", show_default=True)
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads that compute; as many as cores by default.")
]

Gate = Annotated[
    bool, typer.Option("--gate/--no-gate", help="Whether images unlike those the bundle learned from are refused.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    for command in (predict, evaluate):
        app.command()(command)


def predict(
    paths: Paths = None,
    from_file: FromFile = None,
    bundle: Bundle = None,
    jsonl: Annotated[
        Path | None, typer.Option("--jsonl", help="Write the lines to this file, which must be new, not to stdout.")
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add the lines to those that --jsonl holds.")] = False,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", help="Also add each answer, once and without identity, to this file for monitoring."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Images per step.")] = 16,
    operating_point: Point = None,
    engine: Annotated[
        str,
        typer.Option("--engine", help="auto (OpenVINO where it can be had), openvino, torch, or ray for an archive."),
    ] = "auto",
    threads: Threads = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="With ray: processes that score; one per core by default.")
    ] = None,
    shard_size: Annotated[
        int, typer.Option("--shard-size", min=1, help="With ray: images that are lost where a worker dies.")
    ] = 1000,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="With ray: an existing cluster, not one of this machine.")
    ] = None,
    gate: Gate = True,
) -> None:
    """Print one JSON line per image, in input order; exit 3 where some could not be read."""
    from pneumoscope.errors import ConfigError
    from pneumoscope.predict import Classifier

    refuse_overwriting(jsonl, append)
    files = wanted(paths, from_file)
    if engine == "ray":
        if append:
            raise ConfigError("an archive is scored into a file of its own", remedy="leave --append out")
        if jsonl is None:
            raise ConfigError("an archive is scored into a file", remedy="give --jsonl FILE")
        if threads is not None:
            raise ConfigError("Ray's workers share the cores", remedy="give --workers in place of --threads")
        if journal is not None:
            raise ConfigError("Ray's workers write no journal", remedy="leave --engine ray out")
        from pneumoscope.archive.scoring import score_archive
        from pneumoscope.bundle.bundle import load_bundle

        with progress("predicting") as update:
            failed = score_archive(
                files,
                jsonl,
                load_bundle(bundle),
                operating_point=operating_point,
                batch_size=batch_size,
                shard_size=shard_size,
                workers=workers,
                address=ray_address,
                gate=gate,
                progress=update,
            )
        if failed:
            say(f"{failed} of {len(files)} images could not be read; their lines say why")
    else:
        from pneumoscope.bundle.runtime import ENGINES

        if engine not in ENGINES:
            raise ConfigError(f"no engine is called {engine!r}", remedy=f"use one of {', '.join(ENGINES)}, ray")
        classifier = Classifier.load(bundle, operating_point=operating_point, engine=engine, threads=threads, gate=gate)
        refused, failed = write_lines(
            classifier, files, jsonl, batch_size, _recorder(classifier, journal), append=append
        )
        if refused or failed:
            say(_summary(len(files), refused, failed))
    if failed:
        raise typer.Exit(3)


def _summary(count: int, refused: int, failed: int) -> str:
    images = f"{count} image{'' if count == 1 else 's'}"
    parts = {"answered": count - refused - failed, "not analysed": refused, "not read": failed}
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in parts.items() if number)
    return f"{images}: {outcomes}; the lines say why"


def _recorder(classifier: Classifier, journal: Path | None) -> Recorder | None:
    if journal is None:
        return None
    from pneumoscope.journal.recording import Recorder

    return Recorder(journal, classifier.bundle, classifier.operating_point)


def write_lines(
    classifier: Classifier,
    files: list[str],
    jsonl: Path | None,
    batch_size: int,
    recorder: Recorder | None = None,
    *,
    append: bool = False,
) -> tuple[int, int]:
    """Write one line per file to `jsonl`, or to standard output; return how many were not analysed, and not read.

    `recorder`: of the journal, if any; an answer is recorded before its line is written. `append`: to what the file
    holds, all lines at once, also where several processes do.
    """
    from pneumoscope.errors import storage_errors
    from pneumoscope.files import appending, atomic_path
    from pneumoscope.predict import as_line

    refused = failed = 0

    def lines() -> Iterator[str]:
        nonlocal refused, failed
        with progress("predicting") as update:
            for done, prediction in enumerate(classifier.predict(files, batch_size=batch_size), start=1):
                refused += prediction.abstained
                failed += prediction.error is not None
                update(done, len(files))
                if recorder is not None:
                    recorder.record(prediction)
                yield as_line(prediction)

    if jsonl is None:
        with storage_errors("standard output"):
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
            for line in lines():
                sys.stdout.write(line)
        return refused, failed
    special = jsonl.exists() and not jsonl.is_file() and not jsonl.is_dir()  # a pipe or a device is not replaced
    with (
        storage_errors(jsonl),
        nullcontext(jsonl) if special else (appending if append else atomic_path)(jsonl) as target,
        target.open("w", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        stream.writelines(lines())
    return refused, failed


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
    """Score a bundle on labelled images: metrics.json, predictions.csv, figures, and an HTML page."""
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
        metrics = evaluate_bundle(classifier, manifest, out, seed=seed, progress=update, look=look, stress=stress)
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
    typer.echo(page)
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
