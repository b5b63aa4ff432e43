"""`pneumoscope predict` and `explain`."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.console import Bundle, Out, Seed, progress, say

if TYPE_CHECKING:
    from pneumoscope.explanation.similar import Gallery
    from pneumoscope.journal.recording import Recorder
    from pneumoscope.predict import Classifier

Paths = Annotated[list[str], typer.Argument(help="Image files, folders or quoted globs.", show_default=False)]
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

_WORTH_A_WORD = 30.0  # seconds

Gate = Annotated[
    bool, typer.Option("--gate/--no-gate", help="Whether images unlike those the bundle learned from are refused.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    for command in (predict, explain):
        app.command()(command)


def predict(
    paths: Paths,
    bundle: Bundle = None,
    jsonl: Annotated[Path | None, typer.Option("--jsonl", help="Write the lines to this file, not to stdout.")] = None,
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
    from pneumoscope.images.find import expand
    from pneumoscope.predict import Classifier

    files = expand(paths)
    if manifest is not None and journal is None:
        raise ConfigError("a manifest names the patients of a journal's lines", remedy="give --journal, or no manifest")
    if engine == "ray":
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
        refused, failed = write_lines(classifier, files, jsonl, batch_size, _recorder(classifier, journal, manifest))
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
    classifier: Classifier, files: list[str], jsonl: Path | None, batch_size: int, recorder: Recorder | None = None
) -> tuple[int, int]:
    """Write one line per file to `jsonl`, or to standard output; return how many were not analysed, and not read.

    `recorder`: of the journal, if any; an answer is recorded before its line is written.
    """
    from pneumoscope.errors import storage_errors
    from pneumoscope.files import atomic_path
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
        nullcontext(jsonl) if special else atomic_path(jsonl) as target,
        target.open("w", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        stream.writelines(lines())
    return refused, failed


def explain(
    paths: Paths,
    out: Out,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Methods, separated by commas: gradcam, gradcam++, hirescam, layercam, integrated-gradients, "
            "occlusion, lime, shap, shap-partition.",
        ),
    ] = "gradcam",
    bundle: Bundle = None,
    layer: Annotated[
        str | None, typer.Option("--layer", help="For the CAM methods: a module; the last spatial map by default.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Changed images, or steps; as many as the method needs by default."),
    ] = None,
    seed: Seed = 0,
    segments: Annotated[
        str, typer.Option("--segments", help="For lime and shap: slic, grid, or zones of the lungs.")
    ] = "slic",
    fill: Annotated[
        str, typer.Option("--fill", help="What stands where parts are removed: normal, shuffle, mean, blur or black.")
    ] = "normal",
    check: Annotated[
        bool, typer.Option("--check", help="Test each map for stability and faithfulness; takes many times as long.")
    ] = False,
    zones: Annotated[
        bool, typer.Option(help="Find the lungs and ask what each zone is worth; some 150 answers an image.")
    ] = True,
    similar: Annotated[
        Path | None,
        typer.Option("--similar", help="Labelled images, such as the training data: show the nearest of them."),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option("--embeddings", help="Where those of --similar are kept; in the output folder by default."),
    ] = None,
    figures: Annotated[bool, typer.Option("--figures", help="Also one PDF for print for each image.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Explain so many of the images, evenly spread over them.")
    ] = None,
) -> None:
    """Write, for each image, a page that explains its score, and per method an overlay, the map and its facts."""
    from pneumoscope.explanation import Options
    from pneumoscope.images.find import expand

    files, methods = spread(expand(paths), limit), [name.strip() for name in method.split(",")]
    options = Options(seed=seed, samples=samples, layer=layer, segments=segments, fill=fill)
    _refuse_early(files, methods, out)
    # Faults of the command are reported before these slow imports.
    from pneumoscope.explanation.explain import explain_images
    from pneumoscope.predict import Classifier
    from pneumoscope.report import explanation_figure, explanation_page

    classifier = Classifier.load(bundle)
    gallery = None if similar is None else _gallery(classifier, similar, embeddings or out / "similar.safetensors")
    with progress("explaining", spoken=True) as update:
        entries = explain_images(
            classifier, files, methods, out, options=options, check=check, zones=zones, similar=gallery,
            progress=foretelling(update),
        )  # fmt: skip
    index = explanation_page.write(out)
    if figures:
        explanation_figure.write(out)
    failed = [entry for entry in entries if entry.get("error")]
    for entry in failed:
        say(str(entry["error"]))
    _score_table(entries)
    say(f"pages: {index}")
    typer.echo(out / "index.json")
    if failed:
        raise typer.Exit(3)


def spread(files: list[str], limit: int | None) -> list[str]:
    """Return `limit` of the files, evenly spread, or all of them where there are no more."""
    if limit is None or limit >= len(files):
        return files
    return [files[at * len(files) // limit] for at in range(limit)]


def foretelling(update: Callable[..., None]) -> Callable[[int, int | None], None]:
    """Return a progress that says once, after the first of several images, how long the others will take."""
    started, foretold = time.monotonic(), False

    from pneumoscope.numerals import duration

    def report(done: int, total: int | None) -> None:
        nonlocal foretold
        update(done, total)
        if done and total and total > done and not foretold:
            foretold = True
            left = (time.monotonic() - started) / done * (total - done)
            if left > _WORTH_A_WORD:
                say(f"{total - done} more images take about {duration(left)}; --limit {done + 9} would explain fewer")

    return report


def _refuse_early(files: list[str], methods: list[str], out: Path) -> None:
    """Raise `ConfigError`, `ImageError` or `StorageError` where there is no such method, no file, or no folder."""
    from pneumoscope.errors import ConfigError
    from pneumoscope.explanation import METHODS
    from pneumoscope.files import out_folder
    from pneumoscope.images.find import missing

    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(f"no method is called {unknown[0]!r}", remedy=f"use {', '.join(METHODS)}")
    absent = [missing(file) for file in files]
    if absent and absent[0] is not None and None not in absent:
        raise absent[0]
    out_folder(out)


def _gallery(classifier: Classifier, source: Path, cache: Path) -> Gallery | str:
    """Return the labelled images of a source with their embeddings, or the reason why the bundle has none."""
    from pneumoscope.data.sources import open_source
    from pneumoscope.errors import BundleError
    from pneumoscope.explanation.similar import open_gallery

    manifest = open_source(source)
    try:
        with progress("embedding") as update:
            return open_gallery(classifier, manifest, cache, progress=update)
    except BundleError as error:
        return f"not available, because the bundle holds no usable PyTorch weights: {error}"


def _score_table(entries: list[dict[str, Any]]) -> None:
    """Print scores, calls and verdicts on stderr, one row for each image; file names are never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pneumoscope.report.explanation_words import score as shown

    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        rows.setdefault(str(entry["path"]), []).append(entry)
    table = Table("image", "score", "called", "maps", caption="For research use only. Not for diagnosis.")
    for path, group in rows.items():
        first = group[0]
        score = first.get("probability")
        if score is None:
            cells = ("-", "NOT READ" if first.get("error") else "NOT ANALYSED", str(first.get("reason") or ""))
        else:
            verdicts = "; ".join(f"{entry['method']}: {entry['verdict']}" for entry in group)
            cells = (shown(score), str(first["label"]), verdicts)
        table.add_row(*(Text(text) for text in (Path(path).name, *cells)))
    console = Console(stderr=True)
    console.print(table)
