"""What takes long to make is made once a session, whichever of its processes asks first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def once(base: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` has filled, now or in another process; read it, do not write into it.

    `base`: pytest's base temporary folder, which has one parent for all processes of a session under xdist.
    """
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, whole = root / f"shared-{name}", root / f"shared-{name}.whole"
    with FileLock(root / f"shared-{name}.lock"):
        if not whole.exists():
            folder.mkdir()  # fails where another process was cut off in it
            make(folder)
            whole.touch()
    return folder
