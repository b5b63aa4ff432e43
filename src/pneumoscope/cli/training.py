"""`pneumoscope train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.console import Bundle, Data, LabelMap, Out, Seed, opened, progress, quiet_lightning, say

if TYPE_CHECKING:
    from pneumoscope.training.kept import Row


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(train)
    app.command()(quantise)


def train(
    config: Annotated[
        Path, typer.Argument(help="Experiment file, or a name of `pneumoscope list configs`, e.g. lite0-frozen.")
    ],
    data: Data,
    out: Out,
    label_map: LabelMap = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Overrides the seed of the experiment file.")
    ] = None,
    devices: Annotated[int, typer.Option("--devices", min=1, help="Processes (CPU) or accelerators to train on.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines, each started by torchrun.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    log: Annotated[
        str | None, typer.Option("--log", help="Also log to `tensorboard` or `mlflow`, below --out.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting in place of the file's, e.g. train.epochs=3; may be given again."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check settings, network, weights and division, and train nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what is wrong.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="A line for each epoch on a terminal too, not one bar.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the content of run.json, not the bundle's folder.")
    ] = False,
) -> None:
    """Train by an experiment file: a run folder with a bundle, validation metrics and all that repeats it."""
    from pneumoscope.config import load_experiment

    experiment = load_experiment(config, change or ())
    if seed is not None:
        experiment = experiment.model_copy(update={"seed": seed})
    manifest = opened(data, label_map)

    quiet_lightning()
    import json
    import sys

    from pneumoscope.files import plain
    from pneumoscope.training.experiment import Console, run_experiment
    from pneumoscope.training.fit import Hardware
    from pneumoscope.training.rehearsal import checked

    hardware = Hardware.here(devices, nodes)
    if dry_run:
        for line in checked(experiment, manifest):
            say(line)
        say("nothing was trained; leave --dry-run out")
        return
    loggers = make_logger(log, out) if hardware.rank == 0 else False
    with _reports(experiment.all_epochs, quiet=quiet, verbose=verbose or not sys.stderr.isatty()) as (report, update):
        console = Console(say=_warnings if quiet else say, report=report, progress=update, loggers=loggers)
        summary = run_experiment(
            experiment,
            manifest,
            out,
            name=out.resolve().name,
            hardware=hardware,
            resume=resume,
            console=console,
        )
    if hardware.rank:
        return
    if as_json:
        typer.echo(json.dumps(plain(summary), ensure_ascii=False))
        return
    for notice in summary["notices"]:
        say(f"notice: {notice}")
    say(f"{summary['name']}: best epoch {summary['best_epoch']} of {summary['epochs']}, {summary['seconds']} s")
    typer.echo(out / "bundle")


def _warnings(text: str) -> None:
    if text.startswith(("warning", "left out")):
        say(text)


@contextmanager
def _reports(epochs: int, *, quiet: bool, verbose: bool) -> Iterator[tuple[Any, Any]]:
    """Yield what reports an epoch and what reports preparation: a line each, one bar in all, or nothing."""
    if quiet:
        yield None, None
        return
    if verbose:
        with progress("preparing") as update:
            yield print_epoch, update
        return
    with progress("training") as step:
        done = 0

        def epoch(row: Row) -> None:
            nonlocal done
            done += 1
            step(done, epochs, f"training, {row['phase']}, validation AUROC {row['val_auroc']:.4f}")

        def prepare(at: int, total: int | None) -> None:
            step(done, epochs, f"preparing, {at} of {total or '?'} images")

        yield epoch, prepare


def quantise(
    data: Annotated[Path, typer.Option("--data", help="RUN/split.csv, the division that the bundle was trained on.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new bundle.")],
    bundle: Bundle = None,
    seed: Seed = 0,
) -> None:
    """Make a faster bundle, in eight-bit integers, and compare it with its original on validation images."""
    from pneumoscope.adaptation.quantise import quantise as quantise_bundle
    from pneumoscope.bundle.bundle import load_bundle
    from pneumoscope.data.sources import open_source

    card = quantise_bundle(load_bundle(bundle), open_source(data), out, name=out.resolve().name, seed=seed)
    differences = card["evidence"]["against_original"]["differences"]
    for name in ("accuracy", "auroc"):
        value, low, high = (signed(x) for x in (differences[name]["value"], *differences[name]["ci95"]))
        say(f"{name:9} {value} against the original, 95 % CI {low} to {high}, on validation images")
    typer.echo(out)


def signed(value: float | None) -> str:
    """Return a difference with its sign, or that it is undefined."""
    return "undefined" if value is None else f"{value:+.4f}"


def print_epoch(row: Row) -> None:
    """Print one line per epoch."""
    say(
        f"{row['phase']} {row['epoch']}: loss {row['train_loss']:.4f}, validation AUROC {row['val_auroc']:.4f}, "
        f"accuracy {row['val_accuracy']:.4f}, {row['seconds']:.1f} s, {row['images_per_second']:.0f} images/s"
    )


def make_logger(name: str | None, out: Path) -> Any:
    """Return Lightning's logger of that name, False for none; raises `ConfigError` where it is unknown or missing."""
    from pneumoscope.errors import ConfigError

    if name is None:
        return False
    if name not in ("tensorboard", "mlflow"):
        raise ConfigError(f"no logger is called {name!r}", remedy="use tensorboard or mlflow")
    try:
        if name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            return TensorBoardLogger(save_dir=out, name="tensorboard")
        from lightning.pytorch.loggers import MLFlowLogger

        return MLFlowLogger(experiment_name="pneumoscope", tracking_uri=f"file:{out / 'mlflow'}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name} is not installed", remedy='pip install "pneumoscope[track]"') from error
