"""Removing lines from a journal, which is recorded: what a patient has a right to, and months into archives."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pneumoscope.journal.schema import GUARDS

_GIVEN = "SELECT value FROM json_each(?)"


@dataclass(frozen=True, slots=True)
class About:
    """Studies, by their pseudonyms, and answers, by their keys."""

    studies: frozenset[str] = frozenset()
    answers: frozenset[str] = frozenset()

    def __or__(self, other: About) -> About:
        return About(self.studies | other.studies, self.answers | other.answers)


def about(
    connection: sqlite3.Connection, patients: Iterable[str], studies: Iterable[str], answers: Iterable[str] = ()
) -> About:
    """Return the answers in a journal about patients and studies, or of these keys, and their studies."""
    which = f"patient IN ({_GIVEN}) OR study IN ({_GIVEN}) OR key IN ({_GIVEN})"
    values = [json.dumps(list(names)) for names in (patients, studies, answers)]
    rows = connection.execute(f"SELECT study, key FROM predictions WHERE {which}", values).fetchall()
    return About(frozenset(study for study, _ in rows if study), frozenset(key for _, key in rows))


def erase(connection: sqlite3.Connection, patients: Sequence[str] | None, known: About) -> tuple[int, int]:
    """Erase labels of studies and answers and, where `patients` are given, also these answers and all of theirs.

    Returns the numbers of answers and labels.
    """
    studies, answers = json.dumps(sorted(known.studies)), json.dumps(sorted(known.answers))
    with _unguarded(connection, "on request") as counts:
        query = f"DELETE FROM labels WHERE study IN ({_GIVEN}) OR answer IN ({_GIVEN})"
        counts[1] = connection.execute(query, [studies, answers]).rowcount
        if patients is not None:
            query = f"DELETE FROM predictions WHERE patient IN ({_GIVEN}) OR study IN ({_GIVEN}) OR key IN ({_GIVEN})"
            counts[0] = connection.execute(query, [json.dumps(list(patients)), studies, answers]).rowcount
    return counts[0], counts[1]


def archive_month(connection: sqlite3.Connection, archive: Path, month: str) -> int:
    """Move the answers of a month, and the labels of their studies, into another journal; returns how many lines."""
    moving = "FROM main.predictions WHERE substr(at, 1, 7) = :month"
    theirs = f"study IN (SELECT study {moving}) OR answer IN (SELECT key {moving})"
    connection.execute("ATTACH ? AS old", [str(archive)])
    connection.execute("PRAGMA old.synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    for table, rows in (("predictions", moving), ("labels", f"FROM main.labels WHERE {theirs}")):
        names = [row[1] for row in connection.execute(f"PRAGMA main.table_info({table})") if row[1] != "row"]
        columns = ", ".join(names)
        query = f"INSERT OR IGNORE INTO old.{table} ({columns}) SELECT {columns} {rows} ORDER BY row"
        connection.execute(query, {"month": month})
    connection.execute("COMMIT")
    with _unguarded(connection, f"archived in {archive.name}") as counts:
        copied = "key IN (SELECT key FROM old.predictions)"
        query = f"DELETE FROM main.predictions WHERE substr(at, 1, 7) = ? AND {copied}"
        counts[0] = connection.execute(query, [month]).rowcount
        gone = (
            "(study IS NULL OR study NOT IN (SELECT study FROM main.predictions WHERE study IS NOT NULL)) "
            "AND (answer IS NULL OR answer NOT IN (SELECT key FROM main.predictions))"
        )
        query = f"DELETE FROM main.labels WHERE key IN (SELECT key FROM old.labels) AND {gone}"
        counts[1] = connection.execute(query).rowcount
    return sum(counts)


@contextmanager
def _unguarded(connection: sqlite3.Connection, reason: str) -> Iterator[list[int]]:
    """Let lines be erased in one transaction, and record the counts of answers and labels that the caller sets."""
    counts = [0, 0]
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table in ("predictions", "labels"):
            connection.execute(f"DROP TRIGGER main.{table}_stay")
        yield counts
        if any(counts):
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            connection.execute("INSERT INTO main.erasures VALUES (?, ?, ?, ?)", [moment, reason, *counts])
        for guard in GUARDS:
            connection.execute(guard)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
