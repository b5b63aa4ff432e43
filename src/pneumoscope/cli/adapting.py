"""`pneumoscope adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import Bundle, Data, LabelMap, Seed, opened, say


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(adapt)


def adapt(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder of the new bundle.")],
    bundle: Bundle = None,
    label_map: LabelMap = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, val or test; all labelled images by default.")
    ] = None,
    labels: Annotated[
        int | None,
        typer.Option(
            "--labels", min=0, help="How many labelled images may fit it, the others measure; 0: none. All by default."
        ),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option("--original", help="Labelled images of the population that the bundle was made for."),
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", help="Of AUROC, that may be lost on the original population.")
    ] = 0.02,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="A candidate to try; may be given again. All by default.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Fit a bundle to a site: calibration, thresholds, batch norm, head; only what is shown to be better is kept.

    Writes a new bundle and OUT.adaptation.json, the evidence. Where nothing is shown to be better, only the evidence,
    and the exit code is 1.
    """
    from pneumoscope.adaptation.adapt import Settings, evidence_file
    from pneumoscope.adaptation.adapt import adapt as adapt_bundle
    from pneumoscope.adaptation.methods import METHODS
    from pneumoscope.bundle.bundle import load_bundle
    from pneumoscope.data.sources import open_source

    manifest = opened(data, label_map)
    if split is not None:
        manifest = manifest.select(split)
    evidence = adapt_bundle(
        load_bundle(bundle),
        manifest,
        out,
        Settings(labels=labels, methods=tuple(method or METHODS), margin=margin, seed=seed),
        original=None if original is None else open_source(original),
        say=say,
    )
    for candidate in evidence["candidates"]:
        gains = "  ".join(f"{name} {_gain(gain)}" for name, gain in candidate["gains"].items())
        say(f"{candidate['name']:34} {gains}{'' if candidate['refused'] else '  passes'}")
    say(evidence["statement"])
    typer.echo(evidence_file(out))
    if evidence["adopted"] is None:
        raise typer.Exit(1)
    typer.echo(out)


def _gain(gain: dict[str, object]) -> str:
    value, low = gain["value"], gain["low"]
    return f"{value:+.3f} (at least {low:+.3f})" if isinstance(value, float) and isinstance(low, float) else "undefined"
