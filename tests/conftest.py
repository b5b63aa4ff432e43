"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real radiographs; the test is skipped where they are absent."""
    folder = Path(os.environ.get("PNEUMOSCOPE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real radiographs are not at {folder}; set PNEUMOSCOPE_DATA to their folder")
    return folder
