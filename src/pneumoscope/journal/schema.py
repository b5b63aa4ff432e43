"""The tables of the journal, format 3, and how older files are brought to it.

    1   answers and labels
    2   embeddings packed, erasures counted
    3   rows numbered in append order; what was not analysed; circumstances of answers and labels; decisions

Rows are numbered by AUTOINCREMENT: the number of an erased row is never given again, so a reader that goes on after
the last row it saw misses none.
"""

from __future__ import annotations

import sqlite3

from pneumoscope.journal.entry import ANALYSED, DECLINED, PAGE, QUARANTINED, SURE

SCHEMA = 3
_NUMBERED = "row INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, at TEXT NOT NULL"
TABLES = {
    "predictions": (
        f"{_NUMBERED}, state TEXT NOT NULL DEFAULT '{ANALYSED}', study TEXT, patient TEXT, device TEXT, site TEXT, "
        "feed TEXT, acquired_on TEXT, received_at TEXT, shown INTEGER, bundle TEXT, bundle_sha256 TEXT, "
        "operating_point TEXT, version TEXT, probability REAL, logit REAL, calibrated INTEGER NOT NULL, "
        "threshold REAL, label TEXT, abstained INTEGER NOT NULL, reason TEXT, subtype TEXT NOT NULL, "
        "quality TEXT NOT NULL, covariates TEXT NOT NULL, embedding TEXT NOT NULL, milliseconds REAL"
    ),
    "labels": (
        f"{_NUMBERED}, study TEXT, answer TEXT, label TEXT, certainty TEXT NOT NULL DEFAULT '{SURE}', "
        "source TEXT NOT NULL, blind INTEGER, reader TEXT, sample TEXT, inclusion_probability REAL, note TEXT"
    ),
    "decisions": f"{_NUMBERED}, alarm TEXT NOT NULL, decision TEXT NOT NULL, why TEXT NOT NULL, person TEXT",
    "erasures": "at TEXT NOT NULL, reason TEXT NOT NULL, predictions INTEGER, labels INTEGER",
}
_INDICES = ("predictions (at)", "predictions (study)", "predictions (patient)", "labels (study)", "labels (answer)")
GUARDS = tuple(
    f"CREATE TRIGGER IF NOT EXISTS {table}_{name} BEFORE {verb} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'the journal is only appended to'); END"
    for table in TABLES
    for name, verb in (("kept", "UPDATE"), ("stay", "DELETE"))
)


def prepare(connection: sqlite3.Connection) -> int:
    """Make the tables, or bring older ones to this format, all or nothing; returns the format that is there.

    A newer format is left as it is. Several processes may do so at once.
    """
    if (version := stored(connection)) >= SCHEMA:
        return version
    connection.execute("BEGIN IMMEDIATE")
    try:
        if (version := stored(connection)) < SCHEMA:
            older = {table: _columns(connection, table) for table in TABLES if version}
            for table in filter(older.get, TABLES):
                connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
            for table, columns in TABLES.items():
                connection.execute(f"CREATE TABLE {table} ({columns})")
                if older.get(table):
                    _copy(connection, table, older[table])
            for index in _INDICES:
                name = index.replace(" (", "_").rstrip(")")
                connection.execute(f"CREATE INDEX {name} ON {index}")
            for guard in GUARDS:
                connection.execute(guard)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return max(version, SCHEMA)


def stored(connection: sqlite3.Connection) -> int:
    """Return the format of an open file, 0 of an empty one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def _copy(connection: sqlite3.Connection, table: str, columns: list[str]) -> None:
    """Move the rows of an older table over in the order in which they were appended; its triggers and indices go."""
    into, values = list(columns), list(columns)
    for name, value in _FORMERLY.get(table, {}).items():
        into.append(name)
        values.append(value)
    if "row" not in columns and "key" in columns:
        into.append("row")
        values.append("rowid")
    query = f"INSERT INTO {table} ({', '.join(into)}) SELECT {', '.join(values)} FROM old_{table} ORDER BY rowid"
    connection.execute(query)
    connection.execute(f"DROP TABLE old_{table}")


# What older formats say of the new columns. There the only label was a reader's who saw the answer.
_FORMERLY = {
    "predictions": {
        "state": (
            f"CASE WHEN reason = 'could not be read' AND NOT abstained THEN '{QUARANTINED}' "
            f"WHEN abstained AND json_extract(quality, '$.mean') IS NULL THEN '{DECLINED}' ELSE '{ANALYSED}' END"
        )
    },
    "labels": {"blind": f"CASE source WHEN '{PAGE}' THEN 0 END"},
}
