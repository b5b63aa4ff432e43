"""The page of the monitor says what the file says: state, alarm, what to do, what it cannot see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support import monitored
from tests.support.monitored import entries, facts, fill

from pneumoscope.errors import DataError
from pneumoscope.monitoring.monitor import monitor
from pneumoscope.monitoring.reference import write as write_reference
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.report.monitoring_page import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A month with labels, a gap of five days, and brighter images after it."""
    folder = tmp_path_factory.mktemp("monitored")
    before, after = facts(500, 1), facts(300, 2, first=700, bright=1.0)
    journal = fill(folder / "j.sqlite", entries(before), entries(after, device="d<2>"))
    journal.append_labels(monitored.labels(before))
    write_reference(monitored.reference(), folder / "r.json")
    monitor(folder / "j.sqlite", folder, reference=folder / "r.json")
    return folder


def test_the_page_says_what_moved_and_what_to_do(folder: Path) -> None:
    page = write(folder).read_text(encoding="utf-8")
    assert RESEARCH_ONLY in page
    assert "1 alarm is open" in page
    assert "have the device, its processing and its export checked" in page
    assert "The others did not move: " in page
    assert "d&lt;2&gt;" in page
    assert "<d<2>" not in page
    assert "not a sample" in page.lower()
    assert "Without labels nobody can see" in page
    assert "5.0 days" in page
    assert page.count("<svg") >= 6


def test_the_page_is_made_of_the_file_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "monitoring.json").write_bytes((folder / "monitoring.json").read_bytes())
    assert write(tmp_path).read_text() == write(folder).read_text()


def test_a_quiet_page_says_that_quiet_is_no_proof(folder: Path, tmp_path: Path) -> None:
    fill(tmp_path / "j.sqlite", entries(facts(100, 3)))
    monitor(tmp_path / "j.sqlite", tmp_path, reference=folder / "r.json")
    page = write(tmp_path).read_text(encoding="utf-8")
    assert "100 images wait for the first window" in page
    assert "it is no proof that all is well" in page
    assert "None so far." in page


def test_a_file_that_is_not_of_the_monitor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        write(tmp_path)
    (tmp_path / "monitoring.json").write_text(json.dumps({"status": "quiet"}))
    with pytest.raises(DataError, match="lacks"):
        write(tmp_path)
