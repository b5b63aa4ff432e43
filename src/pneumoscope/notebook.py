"""Progress in a notebook; elsewhere silent."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pneumoscope.records import Progress

Item = TypeVar("Item")
_EVERY = 0.2  # seconds between two drawings


def in_notebook() -> bool:
    """Say whether this runs in a kernel that shows HTML, as Jupyter's; terminals and scripts are none."""
    shell = sys.modules.get("IPython")
    running = None if shell is None else shell.get_ipython()
    return running is not None and hasattr(running, "kernel")


def bar(label: str) -> Progress | None:
    """Return a function that draws (images done, images in all) below the cell; None outside a notebook."""
    if not in_notebook():
        return None
    from IPython.display import HTML, display

    handle: Any = display(HTML(""), display_id=True)
    drawn = 0.0

    def update(done: int, total: int | None) -> None:
        nonlocal drawn
        if done != total and time.monotonic() - drawn < _EVERY:
            return
        drawn = time.monotonic()
        known = "" if total is None else f' value="{done}" max="{total}"'
        of = "" if total is None else f" of {total}"
        handle.update(HTML(f"<progress{known}></progress> {label}: {done}{of}"))

    return update


def watched(things: Iterable[Item], total: int | None, label: str = "predicting") -> Iterator[Item]:
    """Yield what comes, with progress in a notebook."""
    update = bar(label)
    done = 0
    for done, thing in enumerate(things, start=1):
        if update is not None:
            update(done, total)
        yield thing
    if update is not None:
        update(done, done)
