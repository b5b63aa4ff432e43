"""PyTorch in a forked process: it waits for threads that only the parent has, for ever."""

from __future__ import annotations

import os
from functools import cache

from pneumoscope.errors import ConfigError


@cache
def _first() -> int:
    """Return the process that used PyTorch first; forks inherit what was cached."""
    return os.getpid()


def refuse_fork() -> None:
    """Raise `ConfigError` where PyTorch was used before this process was forked; to be called before each use."""
    if _first() != os.getpid():
        raise ConfigError(
            "PyTorch was used before this process was forked, and would never answer here",
            remedy='start it with multiprocessing.get_context("spawn"), or use the engine "openvino"',
        )
