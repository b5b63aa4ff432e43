"""`pneumoscope compare` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.console import Out, Seed, say


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    for command in (compare, report):
        app.command()(command)


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Two or more evaluations of the same images.", show_default=False)
    ],
    out: Out,
    seed: Seed = 0,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also on images that chose an epoch, and with one evaluation named twice.")
    ] = False,
) -> None:
    """Test every pair of evaluations: paired AUROC (DeLong or Obuchowski), McNemar, bootstrap differences.

    Images that a network learned from or was tuned on are refused.
    """
    from pneumoscope.evaluation.pairs import compare_folders

    result = compare_folders(folders, out, seed=seed, anyway=anyway)
    for doubt in result["doubts"]:
        say(f"warning: {doubt['dir']} {doubt['text']}")
    for pair in result["pairs"]:
        auroc, mcnemar = pair["auroc"], pair["mcnemar"]
        value, (low, high) = auroc["difference"]["value"], auroc["difference"]["ci95"]
        say(
            f"{pair['a']} - {pair['b']}: AUROC {value:+.4f} (95 % CI {low:+.4f} to {high:+.4f}), "
            f"p {auroc['p_holm']:.2g} after Holm; McNemar p {mcnemar['p_holm']:.2g} after Holm"
        )
    typer.echo(out / "comparison.json")


def report(
    runs: Annotated[list[Path], typer.Argument(help="One or more run folders.", show_default=False)],
    out: Out,
    comparison: Annotated[
        Path | None, typer.Option("--comparison", help="Folder of `compare` over the same runs.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data-page", help="Folder of `data describe`.")] = None,
) -> None:
    """Write one self-contained HTML page (and Markdown) for a run or a comparison of runs."""
    from pneumoscope.report.run_report import write

    typer.echo(write(runs, out, comparison, data))
