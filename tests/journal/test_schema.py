"""Older journals are brought to this format: nothing is lost, and a crash leaves the file as it was."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.entries import entry

from pneumoscope.errors import DataError
from pneumoscope.journal import schema
from pneumoscope.journal.entry import ANALYSED, DECLINED, QUARANTINED
from pneumoscope.journal.journal import Journal, format_of
from pneumoscope.journal.schema import SCHEMA

# The tables as versions 0.1 wrote them.
FORMAT_1 = """
CREATE TABLE predictions (
    key TEXT PRIMARY KEY, at TEXT NOT NULL, study TEXT, patient TEXT, device TEXT, site TEXT, bundle TEXT NOT NULL,
    bundle_sha256 TEXT NOT NULL, probability REAL, calibrated INTEGER NOT NULL, threshold REAL NOT NULL, label TEXT,
    abstained INTEGER NOT NULL, reason TEXT, subtype TEXT NOT NULL, quality TEXT NOT NULL, covariates TEXT NOT NULL,
    embedding TEXT NOT NULL, milliseconds REAL NOT NULL);
CREATE TABLE labels (
    key TEXT PRIMARY KEY, at TEXT NOT NULL, study TEXT NOT NULL, label TEXT NOT NULL, source TEXT NOT NULL, note TEXT);
CREATE INDEX predictions_at ON predictions (at);
CREATE INDEX labels_study ON labels (study);
CREATE TRIGGER predictions_kept BEFORE UPDATE ON predictions BEGIN SELECT RAISE(ABORT, 'appended to'); END;
CREATE TRIGGER predictions_stay BEFORE DELETE ON predictions BEGIN SELECT RAISE(ABORT, 'appended to'); END;
CREATE TRIGGER labels_kept BEFORE UPDATE ON labels BEGIN SELECT RAISE(ABORT, 'appended to'); END;
CREATE TRIGGER labels_stay BEFORE DELETE ON labels BEGIN SELECT RAISE(ABORT, 'appended to'); END;
"""
FORMAT_2 = (
    FORMAT_1
    + """
CREATE TABLE erasures (at TEXT NOT NULL, reason TEXT NOT NULL, predictions INTEGER, labels INTEGER);
CREATE TRIGGER erasures_stay BEFORE DELETE ON erasures BEGIN SELECT RAISE(ABORT, 'appended to'); END;
INSERT INTO erasures VALUES ('2026-01-05T00:00:00.000+00:00', 'on request', 4, 1);
"""
)
ROWS = """
INSERT INTO predictions VALUES
    ('b', '2026-01-02T03:04:05.678+00:00', 's1', 'p1', 'd', NULL, 'b@1', 'aa', 0.75, 1, 0.5, 'PNEUMONIA', 0, NULL,
     '{"viral": 0.25}', '{"mean": 0.4}', '{"view": "PA"}', :embedding, 12.5),
    ('a', '2026-01-01T00:00:00.000+00:00', 's2', 'p2', 'd', NULL, 'b@1', 'aa', NULL, 1, 0.5, NULL, 1, 'not analysed',
     'null', '{"mean": null, "refused_by": "view"}', '{"view": "LATERAL"}', 'null', 3.0),
    ('c', '2026-01-03T00:00:00.000+00:00', NULL, NULL, NULL, NULL, 'b@1', 'aa', NULL, 1, 0.5, NULL, 0,
     'could not be read', 'null', '{}', '{}', 'null', 1.0);
"""
LABEL = "INSERT INTO labels VALUES ('l', '2026-01-04T00:00:00.000+00:00', 's1', 'NORMAL', 'page', 'disagree');"
PACKED = """'{"version": 1, "float16": "ADgAvg=="}'"""


def older(path: Path, version: int) -> Path:
    tables, embedding = {1: (FORMAT_1, "'[0.5, -1.5]'"), 2: (FORMAT_2, PACKED)}[version]
    with sqlite3.connect(path) as connection:
        connection.executescript(
            f"{tables}{ROWS.replace(':embedding', embedding)}{LABEL}PRAGMA user_version = {version};"
        )
    connection.close()
    return path


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_journal_says_the_same_in_this_format(tmp_path: Path, version: int) -> None:
    journal = Journal(older(tmp_path / "j.sqlite", version))
    refused, answered, unreadable = journal.entries()
    assert (answered.probability, answered.subtype, answered.embedding) == (0.75, {"viral": 0.25}, (0.5, -1.5))
    assert (answered.logit, answered.shown, answered.acquired_on, answered.version) == (None, None, None, None)
    assert [item.state for item in (answered, refused, unreadable)] == [ANALYSED, DECLINED, QUARANTINED]
    assert list(journal.columns(("key",))["key"]) == ["b", "a", "c"], "in the order in which they were appended"
    assert journal.columns(("embedding",))["embedding"][0].tolist() == [0.5, -1.5]
    (label,) = journal.labels()
    assert (label.note, label.blind, label.certainty, label.answer) == ("disagree", False, "sure", None)
    assert [counts for _, _, *counts in journal.erasures()] == ([[4, 1]] if version == 2 else [])
    assert [journal.append(entry("b")), journal.append(entry("new"))] == [False, True]
    assert list(journal.columns(("key",), after=3)["key"]) == ["new"]
    with sqlite3.connect(journal.path) as connection, pytest.raises(sqlite3.IntegrityError, match="only appended"):
        connection.execute("DELETE FROM labels")
    assert journal.erase(["p1"]) == (1, 1)


def test_an_older_and_a_new_journal_have_the_same_tables(tmp_path: Path) -> None:
    def tables(path: Path) -> set[tuple[str, ...]]:
        with sqlite3.connect(Journal(path).path) as connection:
            return set(connection.execute("SELECT type, name, replace(sql, char(34), '') FROM sqlite_master"))

    new = tables(tmp_path / "new.sqlite")
    assert len(new) > 15
    assert tables(older(tmp_path / "1.sqlite", 1)) == tables(older(tmp_path / "2.sqlite", 2)) == new


def test_a_crash_in_the_middle_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = older(tmp_path / "j.sqlite", 2)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "GUARDS", ("this is no SQL",))
        with pytest.raises(Exception, match="syntax error"):
            Journal(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM predictions").fetchone() == (3,)
    assert len(list(Journal(path).entries())) == 3


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    path = older(tmp_path / "j.sqlite", 1)
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: Journal(path), range(8)))
    assert len(list(opened[0].entries())) == 3


def test_an_open_process_of_the_version_before_may_still_write(tmp_path: Path) -> None:
    path = older(tmp_path / "j.sqlite", 2)
    Journal(path)
    with sqlite3.connect(path) as connection:  # by the names of its columns, as that version does
        connection.execute(
            "INSERT OR IGNORE INTO predictions (key, at, bundle, bundle_sha256, calibrated, threshold, abstained, "
            "subtype, quality, covariates, embedding, milliseconds) VALUES ('old', '2026-02-01T00:00:00.000+00:00', "
            "'b', 'aa', 1, 0.5, 0, 'null', '{}', '{}', 'null', 1)"
        )
    connection.close()
    assert [item.state for item in Journal(path).entries() if item.key == "old"] == [ANALYSED]


def test_a_look_at_the_format_changes_nothing(tmp_path: Path) -> None:
    path = older(tmp_path / "j.sqlite", 1)
    assert [format_of(path), format_of(path), format_of(Journal(path).path)] == [1, 1, SCHEMA]


def test_a_newer_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "new.sqlite") as connection:
        connection.execute("CREATE TABLE predictions (something TEXT)")
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    for look in (Journal, format_of):
        with pytest.raises(DataError, match=f"format {SCHEMA + 1}"):
            look(tmp_path / "new.sqlite")
    with sqlite3.connect(tmp_path / "new.sqlite") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("predictions",)]
