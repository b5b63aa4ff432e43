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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, StorageError, storage_errors
from pneumoscope.files import plain
from pneumoscope.journal.columns import ANSWERS, MOST, Column, read_columns
from pneumoscope.journal.embedding import pack_embedding, unpack_embedding
from pneumoscope.journal.entry import SOURCES, Decision, Entry, Label
from pneumoscope.journal.removal import About, about, archive_month, erase
from pneumoscope.journal.schema import SCHEMA, prepare, stored

_BUSY_SECONDS = 30
_JSON = ("subtype", "quality", "covariates", "embedding")
_TRUTHS = ("calibrated", "abstained", "shown", "blind")


class Journal:
    """An open journal."""

    def __init__(self, path: Path) -> None:
        """Open or create a journal; an older format is brought up to date.

        Raises:
            DataError: the file is something else, or of a newer version.
            StorageError: it cannot be written.
        """
        self.path = path
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path) as connection:
            _require_known(prepare(connection), path)

    def append(self, entry: Entry) -> bool:
        """Write an answer, on the disk when this returns; False where its key exists."""
        return self._insert("predictions", [entry]) == 1

    def append_label(self, label: Label) -> bool:
        """Write a label; False where its key exists. Raises `DataError` for another kind of truth."""
        return self.append_labels([label]) == 1

    def append_labels(self, labels: Iterable[Label]) -> int:
        """Write labels, all or none; returns how many were new. Raises `DataError` for another kind of truth."""
        written = list(labels)
        if odd := [label.source for label in written if label.source not in SOURCES]:
            raise DataError(
                f"{odd[0]!r} is no kind of truth", path=self.path, remedy=f"use one of {', '.join(SOURCES)}"
            )
        return self._insert("labels", written)

    def append_decision(self, decision: Decision) -> bool:
        """Write what a person did about an alarm; False where its key exists."""
        return self._insert("decisions", [decision]) == 1

    def entries(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Entry]:
        """Yield answers, by time: all, or from `since` on and before `until`."""
        for row in self._rows("predictions", since, until):
            row |= {name: json.loads(row[name]) for name in _JSON}
            yield Entry(**{**row, "embedding": unpack_embedding(row["embedding"])})

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
            `row`, int64 [n], and the columns by name: numbers, and truths that may be absent, float64 [n], NaN where
            absent; other truths bool [n]; times datetime64[ms] [n] in UTC, days datetime64[D], NaT where absent; texts
            `<U` [n], empty where absent; `embedding` float32 [n, k], k of the longest of these rows, NaN where absent.

        Raises:
            DataError: there is no such column, or an embedding cannot be read.

        >>> journal = Journal(Path("journal.sqlite"))
        >>> columns, after = ("at", "state", "probability", "abstained", "covariates.view"), 0
        >>> while (rows := journal.columns(columns, after=after, limit=10_000)) and len(rows["row"]):
        ...     after = int(rows["row"][-1])
        >>> list(rows), rows["probability"].dtype
        (['row', 'at', 'state', 'probability', 'abstained', 'covariates.view'], dtype('float64'))
        """
        with self._open() as connection:
            return read_columns(connection, names, of, after, limit)

    def labels(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Label]:
        """Yield labels, by time: all, or from `since` on and before `until`."""
        for row in self._rows("labels", since, until):
            yield Label(**row)

    def decisions(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Decision]:
        """Yield decisions about alarms, by time: all, or from `since` on and before `until`."""
        for row in self._rows("decisions", since, until):
            yield Decision(**row)

    def erasures(self) -> list[tuple[datetime, str, int, int]]:
        """Return the removals: when, the reason, how many answers and labels."""
        with self._open() as connection:
            rows = connection.execute("SELECT at, reason, predictions, labels FROM erasures ORDER BY at")
            return [(datetime.fromisoformat(at), *rest) for at, *rest in rows]

    def days(self, names: Iterable[str]) -> dict[str, date | None]:
        """Return those of these answers and studies that are there, each with the latest day on which it was taken."""
        query = (
            "WITH asked AS (SELECT value FROM json_each(:names)) "
            "SELECT key, acquired_on FROM predictions WHERE key IN asked UNION ALL "
            "SELECT study, max(acquired_on) FROM predictions WHERE study IN asked GROUP BY study"
        )
        with self._open() as connection:
            rows = connection.execute(query, {"names": json.dumps(sorted(names))}).fetchall()
        return {name: None if day is None else date.fromisoformat(day) for name, day in rows}

    def makers(self) -> list[tuple[str, str | None]]:
        """Return the SHA-256 of each bundle that answered, with its operating point where that is known."""
        query = "SELECT DISTINCT bundle_sha256, operating_point FROM predictions WHERE bundle_sha256 IS NOT NULL"
        with self._open() as connection:
            return [(str(bundle), point) for bundle, point in connection.execute(query)]

    def about(self, patients: Iterable[str] = (), studies: Iterable[str] = (), answers: Iterable[str] = ()) -> About:
        """Return which of these studies and answers there are, and those of these patients, all as pseudonyms."""
        with self._open() as connection:
            return about(connection, patients, studies, answers)

    def erase(self, patients: Sequence[str], studies: Sequence[str] = ()) -> tuple[int, int]:
        """Erase the answers about patients and studies, given by their pseudonyms, and the labels of these studies.

        Returns the numbers of answers and labels erased; archives are journals of their own, see `erase_everywhere`.
        """
        with self._open() as connection:
            counts = erase(connection, patients, about(connection, patients, studies) | About(frozenset(studies)))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log still has the erased lines
            return counts

    def archive(self, before: datetime) -> int:
        """Move the answers of months that ended before a moment, with the labels of their studies, into journals.

        A line is erased only once its copy is on the disk: a crash loses nothing. Returns how many answers and labels
        moved. The journal no longer recognises a moved answer when it is repeated.
        """
        first = before.astimezone(UTC).strftime("%Y-%m")
        with self._open() as connection:
            query = "SELECT DISTINCT substr(at, 1, 7) FROM predictions WHERE at < ? ORDER BY 1"
            months = [month for (month,) in connection.execute(query, [first])]
        moved = 0
        for month in months:
            archive = Journal(self.path.with_name(f"{self.path.stem}-{month}{self.path.suffix}")).path
            with self._open() as connection:
                moved += archive_month(connection, archive, month)
        return moved

    def _insert(self, table: str, items: Sequence[Entry | Label | Decision]) -> int:
        """Insert rows in one transaction; returns how many are new."""
        rows = [_stored(item) for item in items]
        if not rows:
            return 0
        columns = ", ".join(rows[0])
        marks = ", ".join(f":{name}" for name in rows[0])
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            query = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
            done = sum(connection.execute(query, row).rowcount for row in rows)
            connection.execute("COMMIT")
            return done

    def _rows(self, table: str, since: datetime | None, until: datetime | None) -> Iterator[dict[str, Any]]:
        limits = [(sign, moment) for sign, moment in ((">=", since), ("<", until)) if moment is not None]
        where = "".join(f" AND at {sign} ?" for sign, _ in limits)
        values = [_instant(moment) for _, moment in limits]
        with self._open() as connection:
            for record in connection.execute(f"SELECT * FROM {table} WHERE TRUE{where} ORDER BY at, key", values):
                row = dict(record)
                del row["row"]
                for name in ("at", "received_at"):
                    if row.get(name):
                        row[name] = datetime.fromisoformat(row[name])
                if row.get("acquired_on"):
                    row["acquired_on"] = date.fromisoformat(row["acquired_on"])
                yield row | {name: bool(row[name]) for name in _TRUTHS if row.get(name) is not None}

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return _opened(self.path)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            yield connection
    except sqlite3.OperationalError as error:
        raise StorageError(
            f"the journal cannot be used ({error})", path=path, remedy="check the disk and who owns the file"
        ) from error
    except sqlite3.DatabaseError as error:
        raise DataError(f"is no journal ({error})", path=path, remedy="choose another file") from error


def _require_known(version: int, path: Path) -> None:
    if version > SCHEMA:
        raise DataError(
            f"was written in format {version}, this version knows {SCHEMA}", path=path, remedy="update Pneumoscope"
        )


def format_of(path: Path) -> int:
    """Return the format of a journal that exists, and leave it as it is; 0 where it is empty. Raises as `Journal`."""
    with _opened(path) as connection:
        version = stored(connection)
    _require_known(version, path)
    return version


def _stored(item: Entry | Label | Decision) -> dict[str, Any]:
    """Return the values of a row."""
    row = asdict(item)
    if isinstance(item, Entry):
        row["embedding"] = pack_embedding(item.embedding)
        row |= {name: json.dumps(plain(row[name]), ensure_ascii=False, allow_nan=False) for name in _JSON}
        row["received_at"] = None if item.received_at is None else _instant(item.received_at)
        row["acquired_on"] = None if item.acquired_on is None else item.acquired_on.isoformat()
    return row | {"at": _instant(item.at)}


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def archives(journal: Path) -> list[Path]:
    """Return the journals of past months beside a journal, the oldest first."""
    return sorted(journal.parent.glob(f"{journal.stem}-[0-9][0-9][0-9][0-9]-[0-9][0-9]{journal.suffix}"))


def erase_everywhere(journal: Path, patients: Sequence[str], studies: Sequence[str] = ()) -> tuple[int, int]:
    """Erase patients and studies, given by their pseudonyms, from a journal and its archives.

    Labels first, everywhere: one file may hold the label of an answer in another, and only the answer names the
    patient. So an erasure that a crash cut short is finished by the next. Returns the numbers of answers and labels.

    Raises:
        StorageError: a file cannot be written.
    """
    files = [Journal(file) for file in (*archives(journal), journal)]
    known = About(frozenset(studies))
    for file in files:
        known |= file.about(patients, studies)
    counts = [0, 0]
    for step in (None, patients):
        for file in files:
            with file._open() as connection:
                done = erase(connection, step, known)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            counts = [total + new for total, new in zip(counts, done, strict=True)]
    return counts[0], counts[1]
