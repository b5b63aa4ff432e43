"""`pneumoscope predict`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.console import Bundle, progress, say
from pneumoscope.cli.listing import FromFile, Paths, refuse_overwriting, wanted

if TYPE_CHECKING:
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
    """Add the verb of this module."""
    app.command()(predict)


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
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="With --journal: a source that names the patients of images without a header."),
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

    if manifest is not None and journal is None:
        raise ConfigError("a manifest names the patients of a journal's lines", remedy="give --journal, or no manifest")
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
        recorder = _recorder(classifier, journal, manifest)
        refused, failed = write_lines(classifier, files, jsonl, batch_size, recorder, append=append)
        if refused or failed:
            say(_summary(len(files), refused, failed))
    if failed:
        raise typer.Exit(3)


def _summary(count: int, refused: int, failed: int) -> str:
    images = f"{count} image{'' if count == 1 else 's'}"
    parts = {"answered": count - refused - failed, "not analysed": refused, "not read": failed}
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in parts.items() if number)
    return f"{images}: {outcomes}; the lines say why"


def _recorder(classifier: Classifier, journal: Path | None, manifest: Path | None) -> Recorder | None:
    if journal is None:
        return None
    from pneumoscope.data.sources import open_source
    from pneumoscope.journal.recording import Recorder

    samples = () if manifest is None else open_source(manifest).samples
    return Recorder(journal, classifier.bundle, classifier.operating_point, samples)


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
