"""The journal: every answer, once, without identity, in an append-only file.

One SQLite file. Triggers refuse changes and deletions. A written entry is on the disk. An entry whose key exists is the
same answer repeated after a crash, and is ignored. Several processes may append at once. Patients can be identified
only with the key of the pseudonyms, which is another file.

Two operations remove lines and record how many: old months move into journals of their own (`archive`), and a patient
has a right to be erased (`erase`).

Monitoring reads nothing but this file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, StorageError, storage_errors
from pneumoscope.files import plain
from pneumoscope.journal.columns import ANSWERS, MOST, Column, read_columns
from pneumoscope.journal.entry import Entry, Label, pack_embedding, unpack_embedding
from pneumoscope.records import LABELS

SCHEMA = 2
_BUSY_SECONDS = 30
_JSON = ("subtype", "quality", "covariates", "embedding")
_TABLES = """
CREATE TABLE IF NOT EXISTS predictions (
    key TEXT PRIMARY KEY, at TEXT NOT NULL, study TEXT, patient TEXT, device TEXT, site TEXT, bundle TEXT NOT NULL,
    bundle_sha256 TEXT NOT NULL, probability REAL, calibrated INTEGER NOT NULL, threshold REAL NOT NULL, label TEXT,
    abstained INTEGER NOT NULL, reason TEXT, subtype TEXT NOT NULL, quality TEXT NOT NULL, covariates TEXT NOT NULL,
    embedding TEXT NOT NULL, milliseconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS labels (
    key TEXT PRIMARY KEY, at TEXT NOT NULL, study TEXT NOT NULL, label TEXT NOT NULL, source TEXT NOT NULL,
    note TEXT);
CREATE INDEX IF NOT EXISTS predictions_at ON predictions (at);
CREATE INDEX IF NOT EXISTS labels_study ON labels (study);
CREATE TABLE IF NOT EXISTS decisions (
    key TEXT PRIMARY KEY, at TEXT NOT NULL, alarm TEXT NOT NULL, decision TEXT NOT NULL, why TEXT, person TEXT);
CREATE TABLE IF NOT EXISTS erasures (at TEXT NOT NULL, reason TEXT NOT NULL, predictions INTEGER, labels INTEGER);
"""
_GUARDS = "".join(
    f"CREATE TRIGGER IF NOT EXISTS {table}_{name} BEFORE {verb} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'the journal is only appended to'); END;"
    for table in ("predictions", "labels", "decisions", "erasures")
    for name, verb in (("kept", "UPDATE"), ("stay", "DELETE"))
)


class Journal:
    """An open journal."""

    def __init__(self, path: Path) -> None:
        """Open or create a journal.

        Raises:
            DataError: the file is something else, or of a newer version.
            StorageError: it cannot be written.
        """
        self.path = path
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA:
                raise DataError(
                    f"was written in format {version}, this version knows {SCHEMA}",
                    path=path,
                    remedy="update Pneumoscope",
                )
            connection.executescript(f"BEGIN IMMEDIATE;{_TABLES}{_GUARDS}PRAGMA user_version = {SCHEMA};COMMIT;")

    def append(self, entry: Entry) -> bool:
        """Write an answer, on the disk when this returns; False where its key exists."""
        return self._insert("predictions", asdict(entry))

    def append_label(self, label: Label) -> bool:
        """Write the label of a study; False where its key exists. Raises `DataError` for another word."""
        if label.label not in LABELS:
            raise DataError(f"{label.label!r} is no label", path=self.path, remedy=f"use {' or '.join(LABELS)}")
        return self._insert("labels", asdict(label))

    def entries(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Entry]:
        """Yield answers, by time: all, or from `since` on and before `until`."""
        with self._open() as connection:
            for record in connection.execute(*_between("predictions", since, until)):
                row = {**dict(record), **{name: json.loads(record[name]) for name in _JSON}}
                row |= {name: bool(row[name]) for name in ("calibrated", "abstained")}
                embedding = unpack_embedding(row["embedding"])
                yield Entry(**{**row, "at": datetime.fromisoformat(row["at"]), "embedding": embedding})

    def columns(
        self, names: Sequence[str], *, after: int = 0, limit: int = MOST, of: str = ANSWERS
    ) -> dict[str, Column]:
        """Return columns of the rows that were appended after a row, in append order: the fast way to read.

        Late rows have early times, so whoever goes on later goes on after the last row, not after the last time.
        Numbers of rows only grow, and none is given twice; an archive counts its own.

        Args:
            names: as in `columns.TYPES[of]`: fields of `Entry`, `Label` or `Decision`, and facts of a mapping, such as
                `covariates.kvp` or `quality.contrast`.
            after: number of the last row seen, 0 from the start on.
            limit: of rows.
            of: `answers`, `labels` or `decisions`.

        Returns:
            `row`, int64 [n], and the columns by name: numbers float64 [n], NaN where absent; truths bool [n]; times
            datetime64[ms] [n] in UTC; texts `<U` [n], empty where absent; `embedding` float32 [n, k], k of the longest
            of these rows, NaN where absent.

        Raises:
            DataError: there is no such column, or an embedding cannot be read.

        >>> journal = Journal(Path("journal.sqlite"))
        >>> columns, after = ("at", "probability", "abstained", "covariates.view"), 0
        >>> while (rows := journal.columns(columns, after=after, limit=10_000)) and len(rows["row"]):
        ...     after = int(rows["row"][-1])
        >>> list(rows), rows["probability"].dtype
        (['row', 'at', 'probability', 'abstained', 'covariates.view'], dtype('float64'))
        """
        with self._open() as connection:
            return read_columns(connection, names, of, after, limit)

    def labels(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Label]:
        """Yield labels, by time: all, or from `since` on and before `until`."""
        with self._open() as connection:
            for row in connection.execute(*_between("labels", since, until)):
                yield Label(**{**dict(row), "at": datetime.fromisoformat(row["at"])})

    def erasures(self) -> list[tuple[datetime, str, int, int]]:
        """Return the removals: when, the reason, how many answers and labels."""
        with self._open() as connection:
            rows = connection.execute("SELECT at, reason, predictions, labels FROM erasures ORDER BY at")
            return [(datetime.fromisoformat(at), *rest) for at, *rest in rows]

    def erase(self, patients: Sequence[str], studies: Sequence[str] = ()) -> tuple[int, int]:
        """Erase the answers about patients and studies, given by their pseudonyms, and the labels of these studies.

        Returns the numbers of answers and labels erased; archives are journals of their own.
        """
        with self._open() as connection:
            connection.execute("CREATE TEMP TABLE gone AS SELECT value FROM json_each(?)", [json.dumps(list(studies))])
            given = "SELECT value FROM json_each(?)"
            with _unguarded(connection, "on request") as counts:
                studies_of = f"SELECT study FROM predictions WHERE study IS NOT NULL AND patient IN ({given})"
                connection.execute(f"INSERT INTO gone {studies_of}", [json.dumps(list(patients))])
                counts[1] = connection.execute("DELETE FROM labels WHERE study IN gone").rowcount
                which = f"patient IN ({given}) OR study IN gone"
                query = f"DELETE FROM predictions WHERE {which}"
                counts[0] = connection.execute(query, [json.dumps(list(patients))]).rowcount
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log still has the erased lines
            return counts[0], counts[1]

    def archive(self, before: datetime) -> int:
        """Move the answers of months that ended before a moment, with the labels of their studies, into journals.

        A line is erased only once its copy is on the disk: a crash loses nothing. Returns how many answers and labels
        moved. The journal no longer recognises a moved answer when it is repeated.
        """
        first = before.astimezone(UTC).strftime("%Y-%m")
        with self._open() as connection:
            query = "SELECT DISTINCT substr(at, 1, 7) FROM predictions WHERE at < ? ORDER BY 1"
            months = [month for (month,) in connection.execute(query, [first])]
        return sum(self._archive_month(month) for month in months)

    def _archive_month(self, month: str) -> int:
        archive = Journal(self.path.with_name(f"{self.path.stem}-{month}{self.path.suffix}")).path
        studies = "SELECT study FROM main.predictions WHERE substr(at, 1, 7) = ?"
        with self._open() as connection:
            connection.execute("ATTACH ? AS old", [str(archive)])
            connection.execute("PRAGMA old.synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            rows = "SELECT * FROM main.predictions WHERE substr(at, 1, 7) = ?"
            connection.execute(f"INSERT OR IGNORE INTO old.predictions {rows}", [month])
            rows = f"SELECT * FROM main.labels WHERE study IN ({studies})"
            connection.execute(f"INSERT OR IGNORE INTO old.labels {rows}", [month])
            connection.execute("COMMIT")
            with _unguarded(connection, f"archived in {archive.name}") as counts:
                copied = "key IN (SELECT key FROM old.predictions)"
                query = f"DELETE FROM main.predictions WHERE substr(at, 1, 7) = ? AND {copied}"
                counts[0] = connection.execute(query, [month]).rowcount
                copied = "key IN (SELECT key FROM old.labels)"
                gone = "study NOT IN (SELECT study FROM main.predictions WHERE study IS NOT NULL)"
                counts[1] = connection.execute(f"DELETE FROM main.labels WHERE {copied} AND {gone}").rowcount
            return sum(counts)

    def _insert(self, table: str, row: dict[str, Any]) -> bool:
        row["at"] = row["at"].astimezone(UTC).isoformat(timespec="milliseconds")
        if "embedding" in row:
            row["embedding"] = pack_embedding(row["embedding"])
        for name in _JSON:
            if name in row:
                row[name] = json.dumps(plain(row[name]), ensure_ascii=False, allow_nan=False)
        columns = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        with self._open() as connection:
            done = connection.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", row)
            return done.rowcount == 1

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA secure_delete = ON")
                yield connection
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"the journal cannot be used ({error})", path=self.path, remedy="check the disk and who owns the file"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"is no journal ({error})", path=self.path, remedy="choose another file") from error


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
        for guard in _GUARDS.split("END;")[:-1]:
            connection.execute(f"{guard}END")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _between(table: str, since: datetime | None, until: datetime | None) -> tuple[str, list[str]]:
    limits = [(sign, moment) for sign, moment in ((">=", since), ("<", until)) if moment is not None]
    where = "".join(f" AND at {sign} ?" for sign, _ in limits)
    values = [moment.astimezone(UTC).isoformat(timespec="milliseconds") for _, moment in limits]
    return f"SELECT * FROM {table} WHERE TRUE{where} ORDER BY at, key", values


def archives(journal: Path) -> list[Path]:
    """Return the journals of past months beside a journal, the oldest first."""
    return sorted(journal.parent.glob(f"{journal.stem}-[0-9][0-9][0-9][0-9]-[0-9][0-9]{journal.suffix}"))
