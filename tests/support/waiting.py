"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx


def until(what: Callable[[], bool], seconds: float = 120.0) -> None:
    """Ask until it is so; the time is a limit, not a wait."""
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False
