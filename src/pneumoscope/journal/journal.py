"""The journal: every answer, once, without identity, in a file that is only ever appended to.

One SQLite file. Triggers refuse changes and deletions; an entry is on the disk when it is written; an entry whose
key is there already is the same answer told twice, after a crash, and is not written again. Several processes may
append at once. Who a patient was can be told only with the key of the pseudonyms, which lies elsewhere.

Two things take lines out, and the journal says how many: old months move into journals of their own (`archive`), and
a patient has a right to be erased (`erase`).

Monitoring reads nothing but this file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, StorageError, storage_errors
from pneumoscope.files import plain, sha256_bytes, sync_folder
from pneumoscope.records import LABELS, Prediction

SCHEMA = 2
EMBEDDING = 1  # version of the form of embeddings
_BUSY_SECONDS = 30
_OLDEST = 90.0  # years; higher ages identify (45 CFR 164.514(b)(2)(i)(C))
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
CREATE TABLE IF NOT EXISTS erasures (at TEXT NOT NULL, reason TEXT NOT NULL, predictions INTEGER, labels INTEGER);
"""
_GUARDS = "".join(
    f"CREATE TRIGGER IF NOT EXISTS {table}_{name} BEFORE {verb} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'the journal is only appended to'); END;"
    for table in ("predictions", "labels", "erasures")
    for name, verb in (("kept", "UPDATE"), ("stay", "DELETE"))
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer.

    `key`: of this answer, the same when it is told again. `at`: aware time. `study`, `patient`, `device`, `site`:
    pseudonyms, or None. `covariates`: DICOM facts without identity. `embedding`: a few numbers that place the image
    among others of the same bundle, kept to half precision; None where the bundle gives none. The rest as in
    `records.Prediction`.
    """

    key: str
    at: datetime
    bundle: str
    bundle_sha256: str
    probability: float | None
    calibrated: bool
    threshold: float
    label: str | None
    abstained: bool
    reason: str | None
    milliseconds: float
    study: str | None = None
    patient: str | None = None
    device: str | None = None
    site: str | None = None
    subtype: Mapping[str, float] | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    covariates: Mapping[str, Any] = field(default_factory=dict)
    embedding: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """What was found out later about a study: `label` NORMAL or PNEUMONIA; `source`: who says so, such as `page`."""

    key: str
    at: datetime
    study: str
    label: str
    source: str
    note: str | None = None


class Pseudonyms:
    """Keys that are the same for the same person, study, device or site, and tell nothing without the secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def load(cls, path: Path) -> Pseudonyms:
        """Read the secret, or make one that only its owner may read; raises `DataError` where it is too short."""
        with storage_errors(path):
            if not path.exists():
                _begin_secret(path)
            secret = path.read_bytes().strip()
        if len(secret) < 32:
            raise DataError("the secret of the pseudonyms is too short", path=path, remedy="give 32 characters or more")
        return cls(secret)

    def of(self, kind: str, *parts: str | None) -> str | None:
        """Return a pseudonym of 24 hex digits (HMAC-SHA-256), None where nothing is known."""
        if not any(parts):
            return None
        told = json.dumps([kind, *parts]).encode()
        return hmac.new(self._secret, told, hashlib.sha256).hexdigest()[:24]


def _begin_secret(path: Path) -> None:
    """Make a secret, or leave the one that another process made meanwhile: both must go on with the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as made:  # its owner's alone
        made.write(secrets.token_hex(32).encode("ascii"))
        made.flush()
        os.fsync(made.fileno())
        with suppress(FileExistsError):
            os.link(made.name, path)
    sync_folder(path.parent)


def entry_of(prediction: Prediction, card: Mapping[str, Any], key: str, at: datetime, **known: Any) -> Entry:
    """Return the entry of a prediction; `known`: pseudonyms and covariates, as `Entry` has them.

    `card`: of the bundle that answered. Age over 90 years becomes 90, and the path is left out.
    """
    covariates = dict(known.pop("covariates", {}))
    if (covariates.get("age_years") or 0) > _OLDEST:
        covariates["age_years"] = _OLDEST
    return Entry(
        key=key,
        at=at,
        bundle=prediction.bundle,
        bundle_sha256=str(card["sha256"]),
        probability=prediction.probability,
        calibrated=bool(card.get("calibration")),
        threshold=prediction.threshold,
        label=prediction.label,
        abstained=prediction.abstained,
        reason=prediction.reason if prediction.error is None else "could not be read",
        milliseconds=prediction.milliseconds,
        subtype=prediction.subtype,
        quality=prediction.quality,
        covariates=covariates,
        embedding=prediction.embedding,
        **known,
    )


def pack_embedding(values: Sequence[float] | None) -> dict[str, Any] | None:
    """Return numbers as the journal keeps them: base64 of float16, little-endian, under the version of this form."""
    if values is None:
        return None
    packed = base64.b64encode(struct.pack(f"<{len(values)}e", *values)).decode("ascii")
    return {"version": EMBEDDING, "float16": packed}


def unpack_embedding(kept: Any) -> tuple[float, ...] | None:
    """Return the numbers of what a journal or its export keeps; raises `DataError` where it is of another version."""
    if kept is None:
        return None
    if isinstance(kept, list):  # journals of format 1
        return tuple(map(float, kept))
    try:
        if kept["version"] != EMBEDDING:
            raise DataError(f"an embedding of version {kept['version']} is not known here", remedy="update Pneumoscope")
        data = base64.b64decode(kept["float16"], validate=True)
        return struct.unpack(f"<{len(data) // 2}e", data)
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise DataError(f"an embedding cannot be read ({error})", remedy="look at who wrote this journal") from error


def answer_key(bundle_sha256: str, content_sha256: str, operating_point: str) -> str:
    """Return the key of an answer: what answered, about which content."""
    return sha256_bytes(f"{bundle_sha256} {content_sha256} {operating_point}".encode())[:32]


class Journal:
    """An open journal."""

    def __init__(self, path: Path) -> None:
        """Open a journal, or begin one.

        Raises:
            DataError: the file is something else, or of a newer version.
            StorageError: it cannot be written.
        """
        self.path = path
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as connection:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > SCHEMA:
                raise DataError(
                    f"was written in format {found}, this version knows {SCHEMA}",
                    path=path,
                    remedy="update Pneumoscope",
                )
            connection.executescript(f"BEGIN IMMEDIATE;{_TABLES}{_GUARDS}PRAGMA user_version = {SCHEMA};COMMIT;")

    def append(self, entry: Entry) -> bool:
        """Write an answer, on the disk when this returns; False where its key is there already."""
        return self._insert("predictions", asdict(entry))

    def append_label(self, label: Label) -> bool:
        """Write what was found out about a study; False where its key is there already, `DataError` for no label."""
        if label.label not in LABELS:
            raise DataError(f"{label.label!r} is no label", path=self.path, remedy=f"use {' or '.join(LABELS)}")
        return self._insert("labels", asdict(label))

    def entries(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Entry]:
        """Yield answers, by time: all, or from `since` on and before `until`."""
        with self._open() as connection:
            for row in connection.execute(*_between("predictions", since, until)):
                told = {**dict(row), **{name: json.loads(row[name]) for name in _JSON}}
                told |= {name: bool(told[name]) for name in ("calibrated", "abstained")}
                place = unpack_embedding(told["embedding"])
                yield Entry(**{**told, "at": datetime.fromisoformat(told["at"]), "embedding": place})

    def labels(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Label]:
        """Yield labels, by time: all, or from `since` on and before `until`."""
        with self._open() as connection:
            for row in connection.execute(*_between("labels", since, until)):
                yield Label(**{**dict(row), "at": datetime.fromisoformat(row["at"])})

    def erasures(self) -> list[tuple[datetime, str, int, int]]:
        """Return what was taken out: when, why, how many answers and labels."""
        with self._open() as connection:
            rows = connection.execute("SELECT at, reason, predictions, labels FROM erasures ORDER BY at")
            return [(datetime.fromisoformat(at), *rest) for at, *rest in rows]

    def erase(self, patients: Sequence[str], studies: Sequence[str] = ()) -> tuple[int, int]:
        """Erase the answers about patients and studies, given by their pseudonyms, and the labels of these studies.

        Returns how many answers and labels those were; archives are journals of their own.
        """
        with self._open() as connection:
            connection.execute("CREATE TEMP TABLE gone AS SELECT value FROM json_each(?)", [json.dumps(list(studies))])
            theirs = "SELECT value FROM json_each(?)"
            with _unguarded(connection, "on request") as counts:
                known = f"SELECT study FROM predictions WHERE study IS NOT NULL AND patient IN ({theirs})"
                connection.execute(f"INSERT INTO gone {known}", [json.dumps(list(patients))])
                counts[1] = connection.execute("DELETE FROM labels WHERE study IN gone").rowcount
                which = f"patient IN ({theirs}) OR study IN gone"
                query = f"DELETE FROM predictions WHERE {which}"
                counts[0] = connection.execute(query, [json.dumps(list(patients))]).rowcount
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log still held what was erased
            return counts[0], counts[1]

    def archive(self, before: datetime) -> int:
        """Move the answers of months that ended before a moment, with the labels of their studies, into journals.

        Copied and on the disk first, then erased here where a copy lies there: a crash loses nothing. Returns how many
        answers and labels were erased here; an answer that is told again later is no longer known here.
        """
        first = before.astimezone(UTC).strftime("%Y-%m")
        with self._open() as connection:
            query = "SELECT DISTINCT substr(at, 1, 7) FROM predictions WHERE at < ? ORDER BY 1"
            months = [month for (month,) in connection.execute(query, [first])]
        return sum(self._archive_month(month) for month in months)

    def _archive_month(self, month: str) -> int:
        place = Journal(self.path.with_name(f"{self.path.stem}-{month}{self.path.suffix}")).path
        theirs = "SELECT study FROM main.predictions WHERE substr(at, 1, 7) = ?"
        with self._open() as connection:
            connection.execute("ATTACH ? AS old", [str(place)])
            connection.execute("PRAGMA old.synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            here = "SELECT * FROM main.predictions WHERE substr(at, 1, 7) = ?"
            connection.execute(f"INSERT OR IGNORE INTO old.predictions {here}", [month])
            here = f"SELECT * FROM main.labels WHERE study IN ({theirs})"
            connection.execute(f"INSERT OR IGNORE INTO old.labels {here}", [month])
            connection.execute("COMMIT")
            with _unguarded(connection, f"archived in {place.name}") as counts:
                there = "key IN (SELECT key FROM old.predictions)"
                query = f"DELETE FROM main.predictions WHERE substr(at, 1, 7) = ? AND {there}"
                counts[0] = connection.execute(query, [month]).rowcount
                there = "key IN (SELECT key FROM old.labels)"
                gone = "study NOT IN (SELECT study FROM main.predictions WHERE study IS NOT NULL)"
                counts[1] = connection.execute(f"DELETE FROM main.labels WHERE {there} AND {gone}").rowcount
            return sum(counts)

    def _insert(self, table: str, told: dict[str, Any]) -> bool:
        told["at"] = told["at"].astimezone(UTC).isoformat(timespec="milliseconds")
        if "embedding" in told:
            told["embedding"] = pack_embedding(told["embedding"])
        for name in _JSON:
            if name in told:
                told[name] = json.dumps(plain(told[name]), ensure_ascii=False, allow_nan=False)
        columns = ", ".join(told)
        marks = ", ".join(f":{name}" for name in told)
        with self._open() as connection:
            done = connection.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", told)
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
    """Let lines be erased in one transaction, which writes down the counts of answers and labels that it is told."""
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


def columns() -> tuple[str, ...]:
    """Return the names of what an entry holds, in the order of `Entry`."""
    return tuple(item.name for item in fields(Entry))


def default_key(journal: Path) -> Path:
    """Return where the secret of a journal's pseudonyms lies, unless another place is chosen."""
    return journal.with_name(journal.name + ".key")


def content_sha256(path: str) -> str | None:
    """Return the SHA-256 of an image file, None where it cannot be read (rows of an archive have none either)."""
    file = Path(path)
    if not file.is_file() or not os.access(file, os.R_OK):
        return None
    with storage_errors(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
