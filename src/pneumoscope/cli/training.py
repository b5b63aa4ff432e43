"""`pneumoscope train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.console import Bundle, Data, LabelMap, Out, Seed, opened, progress, quiet_lightning, say

if TYPE_CHECKING:
    from pneumoscope.training.fit import Row


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command()(train)
    app.command()(quantise)


def train(
    config: Annotated[Path, typer.Argument(help="Experiment file, e.g. configs/lite0-finetuned.toml.")],
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
) -> None:
    """Train by an experiment file: a run folder with a bundle, validation metrics and all that repeats it."""
    from pneumoscope.config import load_experiment

    experiment = load_experiment(config)
    if seed is not None:
        experiment = experiment.model_copy(update={"seed": seed})
    manifest = opened(data, label_map)

    quiet_lightning()
    import sys

    from pneumoscope.training.experiment import Console, run_experiment
    from pneumoscope.training.fit import Hardware

    hardware = Hardware.here(devices, nodes)
    loggers = make_logger(log, out) if hardware.rank == 0 else False
    with progress("preparing") as update:
        console = Console(say=say, report=print_epoch, progress=update, loggers=loggers, bar=sys.stderr.isatty())
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
    say(f"{summary['name']}: best epoch {summary['best_epoch']} of {summary['epochs']}, {summary['seconds']} s")
    typer.echo(out / "bundle")


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
