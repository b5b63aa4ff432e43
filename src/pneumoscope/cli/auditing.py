"""`pneumoscope audit`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pneumoscope.cli.console import Bundle, Data, LabelMap, Out, Seed, opened, progress, say, say_overlap


def register(app: typer.Typer) -> None:
    """Add the verb of this module."""
    app.command()(audit)


def audit(
    data: Data,
    out: Out,
    bundle: Bundle = None,
    label_map: LabelMap = None,
    split: Annotated[str | None, typer.Option("--split", help="train, val or test; all images by default.")] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Images at most, drawn by seed.")] = 1000,
    cam_images: Annotated[
        int, typer.Option("--cam-images", min=1, help="Images for heat maps at most, of those called pneumonia.")
    ] = 200,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads that compute; as many as cores by default.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Test whether a network answers from the lungs: the shortcut card; exit 1 where it is red or void."""
    from pneumoscope.files import out_folder

    manifest = opened(data, label_map)
    if split is not None:
        manifest = manifest.select(split)
    out_folder(out)
    # Faults of the command are reported before these slow imports.
    from pneumoscope.lungs import LungSegmenter
    from pneumoscope.predict import Classifier
    from pneumoscope.report.audit_page import write
    from pneumoscope.shortcuts.shortcut_card import shortcut_card
    from pneumoscope.shortcuts.verdict import NOT_TESTED, RED

    classifier = Classifier.load(bundle, threads=threads)
    masks = LungSegmenter.load(threads=threads).masks
    with progress("auditing") as update:
        card = shortcut_card(
            classifier, manifest, out, masks=masks, images=images, cam_images=cam_images, seed=seed,
            asked=split in ("train", "val"), progress=update,
        )  # fmt: skip
    page = write(out)
    for item in card["items"]:
        figure = item["figure"]
        text = item["reason"] if item["light"] == NOT_TESTED or figure is None else figure_line(item["measure"], figure)
        say(f"{item['light']:10} {item['key'].replace('_', ' '):22} {text}")
    say(f"the card is {card['verdict']}")
    void = say_overlap(card)
    typer.echo(page)
    if void or card["verdict"] == RED:
        raise typer.Exit(1)


def figure_line(measure: str, figure: dict[str, Any]) -> str:
    """Return a figure with its interval in one line."""
    low, high = figure["ci95"]
    return f"{measure} {_number(figure['value'])}  95 % CI {_number(low)} to {_number(high)}"


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) and value == value else "undefined"  # noqa: PLR0124 - NaN
