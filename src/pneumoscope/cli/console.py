"""Output of the commands: progress bars and messages on stderr, results on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pneumoscope.data.manifest import Manifest

Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle", help="A folder, or default or fast, which are shipped; default by default.", show_default=False
    ),
]
Data = Annotated[
    Path,
    typer.Option("--data", help="A Kaggle-style folder, a MedMNIST .npz, a CSV manifest, or a folder of DICOM files."),
]
LabelMap = Annotated[
    str | None,
    typer.Option("--label-map", help="What the source's own labels mean, such as 0=NORMAL,1=PNEUMONIA."),
]
Out = Annotated[Path, typer.Option("--out", help="Output folder.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]


def say(text: str) -> None:
    """Print a message for people on stderr."""
    typer.echo(text, err=True)


def say_overlap(result: Mapping[str, Any]) -> bool:
    """Print what the `overlap` of a result says; True where it makes the result void."""
    facts = result.get("overlap") or {}
    for key in ("void", "warning", "note"):
        if facts.get(key):
            say(f"{key}: {facts[key]}")
    return bool(facts.get("void"))


def opened(source: Path, label_map: str | None = None) -> Manifest:
    """Open a data source, and say which files of it were left out; raises as `open_source`."""
    from pneumoscope.data.sources import open_source
    from pneumoscope.images.find import left_out_text

    manifest = open_source(source, label_map)
    if manifest.passed_over:
        say(f"left out: {left_out_text(manifest.passed_over)}")
    return manifest


@contextmanager
def progress(label: str, *, spoken: bool = False) -> Iterator[Callable[..., None]]:
    """Yield `update(done, total, text="")`, a bar on a terminal; elsewhere silent or, `spoken`, a line a step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int | None, text: str = label) -> None:
            bar.update(task, completed=done, total=total, description=text)
            if spoken and not console.is_terminal and total is not None and total > 1:
                say(f"{label}: {done} of {total}")

        yield update


def quiet_lightning() -> None:
    """Keep Lightning's advice out of the user's terminal; its warnings still come through."""
    import logging
    import warnings

    import lightning.pytorch  # noqa: F401 - it sets its own level when imported

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Lightning 2.6 on newer releases of PyTorch: about its internals, nothing a user can fix.
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
