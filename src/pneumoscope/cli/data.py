"""`pneumoscope data`: look at a source, check it, fetch one, make a synthetic one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import LabelMap, Out, Seed, opened, progress, say

app = typer.Typer(help="Look at a data source, check it, fetch or make one.", no_args_is_help=True)
Source = Annotated[
    Path,
    typer.Argument(help="A Kaggle-style folder, a MedMNIST .npz, a CSV manifest, or a folder of DICOM files."),
]


@app.command()
def describe(source: Source, out: Out, label_map: LabelMap = None, seed: Seed = 0) -> None:
    """Count, measure and picture a source: describe.json and an HTML page."""
    from pneumoscope.data.describe import describe as describe_data
    from pneumoscope.report.data_page import write_page

    with progress("reading images") as update:
        describe_data(opened(source, label_map), out, seed=seed, progress=update)
    typer.echo(write_page(out))


@app.command()
def check(source: Source, out: Out, label_map: LabelMap = None) -> None:
    """Look for problems of a source: quality.json and an HTML page; exit 1 where a result would be void."""
    from pneumoscope.data.checks.quality import check as check_data
    from pneumoscope.data.checks.quality import voids_result
    from pneumoscope.lungs import boxes
    from pneumoscope.report.data_page import write_page

    with progress("reading images") as update:
        quality = check_data(opened(source, label_map), out, progress=update, boxes=boxes)
    for problem in quality["problems"]:
        say(f"{problem['severity']}: {problem['message']}")
    typer.echo(write_page(out))
    if voids_result(quality):
        raise typer.Exit(1)


@app.command()
def split(
    source: Source,
    config: Annotated[Path, typer.Option("--config", help="The experiment file whose division it is.")],
    out: Annotated[Path, typer.Option("--out", help="The CSV manifest to write; refused where it exists.")],
    by: Annotated[
        str | None, typer.Option("--by", help="`site`, or `cluster`: machines told apart by texture and overlays.")
    ] = None,
    test: Annotated[str, typer.Option("--test", help="With --by: the site or cluster that is the test part.")] = "",
    label_map: LabelMap = None,
) -> None:
    """Divide a source by patient as `train` would, or leave one site or machine out: a CSV manifest."""
    from collections import Counter

    from pneumoscope.config import load_experiment
    from pneumoscope.data.acquisition import with_machines
    from pneumoscope.data.copies import join_copies
    from pneumoscope.data.split import divide, divide_by_site
    from pneumoscope.errors import ConfigError, StorageError

    if out.exists():
        raise StorageError("exists already", path=out, remedy="choose another --out")
    if by not in (None, "site", "cluster"):
        raise ConfigError(f"--by {by} is unknown", remedy="give site or cluster")
    experiment = load_experiment(config)
    with progress("looking for copies") as update:
        manifest = opened(source, label_map)
        copies = join_copies(manifest.labelled() if by is None else manifest, progress=update)
    for doubt in copies.says:
        say(f"warning: {doubt}")
    manifest = copies.manifest
    if by == "cluster":
        with progress("reading images") as update:
            manifest = with_machines(manifest, seed=experiment.division_seed, progress=update)
    if by is None:
        divided = divide(manifest, experiment.data, experiment.division_seed)
    else:
        for name, images in manifest.frame().groupby("site"):
            say(f"{name}: {len(images)} images, {(images['label'] == 'PNEUMONIA').mean():.0%} with pneumonia")
        divided = divide_by_site(manifest, test or "cluster 1", experiment.data, experiment.division_seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    divided.write_csv(out)
    for reason, count in Counter(reason for _, reason in manifest.passed_over).items():
        say(f"warning: {count:,} files are left out: {reason}")
    for name, images in divided.frame().groupby("split", sort=False):
        say(f"{name}: {len(images)} images of {images['patient_id'].nunique()} patients")
    typer.echo(out)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Data set; `list` names them all.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to fetch into.")] = Path("data"),
) -> None:
    """Fetch a public data set from its home, resumably, and check it."""
    from pneumoscope.data.fetch.download import catalogue
    from pneumoscope.data.fetch.download import fetch as fetch_data

    if name == "list":
        for key, dataset in catalogue().items():
            typer.echo(f"{key:24} {dataset.title} ({dataset.licence})")
        return
    with progress(f"fetching {name}") as update:
        typer.echo(fetch_data(name, out, progress=update))


@app.command()
def synthesize(
    out: Out,
    patients: Annotated[int, typer.Option(min=10, help="How many patients to invent.")] = 400,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side in pixels.")] = 224,
    seed: Seed = 0,
) -> None:
    """Write synthetic radiographs with their ground truth, in the Kaggle layout."""
    from pneumoscope.phantom.synthetic import write_dataset

    typer.echo(write_dataset(out, patients=patients, seed=seed, size=size))
