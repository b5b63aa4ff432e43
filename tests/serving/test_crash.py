"""Killed at every stage boundary, nothing is lost and nothing is doubled."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.killed import STAGES, killed_at


@pytest.mark.parametrize("stage", STAGES)
def test_one_report_and_one_picture_all_the_same(tmp_path: Path, database: dict[str, str], stage: str) -> None:
    killed_at(stage, tmp_path, database)
