"""Findings about made radiographs, and the real PACS and validators."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.orthanc import Orthanc, start_orthanc

INSTALL = Path(__file__).parents[2] / "scripts" / "pacs" / "install"


@pytest.fixture(scope="session")
def pacs_tools() -> None:
    """Orthanc and the validators, installed where that is possible; else the test is skipped with the reason."""
    done = subprocess.run([str(INSTALL)], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(f"no real PACS: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def orthanc(pacs_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A real PACS on loopback, empty at first."""
    with start_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running
