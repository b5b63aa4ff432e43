"""`pneumoscope explain`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.console import Bundle, Out, Seed, progress, say
from pneumoscope.cli.listing import FromFile, Paths, wanted

if TYPE_CHECKING:
    from pneumoscope.explanation.similar import Gallery
    from pneumoscope.predict import Classifier

_WORTH_A_WORD = 30.0  # seconds


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(explain)


def explain(
    out: Out,
    paths: Paths = None,
    from_file: FromFile = None,
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

    files, methods = spread(wanted(paths, from_file), limit), [name.strip() for name in method.split(",")]
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
