"""The database: SQLite on one machine, PostgreSQL for several; the same code for both.

A commit is on the disk when it returns: SQLite in WAL mode with `synchronous = FULL`, PostgreSQL by its default.
Rows are stamped and compared by the database's clock (`database_time`): those of several hosts differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import ArgumentError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from pneumoscope.errors import ConfigError, StorageError
from pneumoscope.serving.store.tables import Base, Beat

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

_BUSY_SECONDS = 30
_CONNECTIONS = 40  # at most, of a process: the listener has one for each association
_MIGRATION_LOCK = 7_041_958  # of PostgreSQL's advisory locks; any number that nobody else takes
MIGRATIONS = Path(__file__).parent / "migrations"


class Store:
    """An open database; safe to use from several threads, opened anew in each process."""

    def __init__(self, url: str) -> None:
        try:
            self.engine = create_engine(
                url, pool_pre_ping=not url.startswith("sqlite"), hide_parameters=True, max_overflow=_CONNECTIONS
            )
        except ArgumentError as error:
            raise ConfigError(
                "the URL of the database is none", path=hidden(url), remedy="see store.url in docs/reference/gateway.md"
            ) from error
        self.url = url
        if self.sqlite:
            _prepare_sqlite(self.engine)

    @property
    def sqlite(self) -> bool:
        """True for SQLite, which knows one writer at a time."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees one moment and changes nothing; `StorageError` where the database is away."""
        engine = self.engine if self.sqlite else self.engine.execution_options(isolation_level="REPEATABLE READ")
        with self.errors(), Session(engine) as session:
            yield session
            session.rollback()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session that is committed at the end, or not at all.

        SQLite takes its write lock at the start: a transaction that reads first fails if another one writes meanwhile.
        Raises `StorageError` where the database is away or cannot write.
        """
        engine = self.engine.execution_options(immediate=True)
        with self.errors(), Session(engine) as session, session.begin():
            yield session

    @contextmanager
    def alone(self, task: str) -> Iterator[bool]:
        """Yield True for one process at a time, until the end of the block or until the process dies.

        PostgreSQL holds the lock as long as the connection. SQLite serves one machine, with one process of each kind.
        """
        if self.sqlite:
            yield True
            return
        with self.errors(), self.engine.connect() as connection:
            key = func.hashtextextended(f"pneumoscope {task}", 0)
            yield bool(connection.scalar(select(func.pg_try_advisory_xact_lock(key))))

    def beat(self, name: str, pid: int, **facts: Any) -> None:
        """Record that a process is alive."""
        with self.write() as session:
            session.merge(Beat(name=name, pid=pid, at=database_time(session), facts=facts))

    def forget(self) -> None:
        """Empty SQLite's log, which still holds erased rows; other databases do so in their own time."""
        if self.sqlite:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the driver's errors into a `StorageError`."""
        try:
            yield
        except (OperationalError, InterfaceError, InternalError, PoolTimeout) as error:  # internal: now read-only
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise StorageError(
                f"the database cannot be used ({reason})",
                path=hidden(self.url),
                remedy="check that it runs and is writable",
            ) from error


def now() -> datetime:
    """Return the time of this host, aware, in UTC."""
    return datetime.now(UTC)


def database_time(session: Session) -> datetime:
    """Return the time of the database, the one clock that all hosts share, aware, in UTC.

    It advances within a transaction, which may have waited for a lock.
    """
    if session.get_bind().dialect.name == "sqlite":
        return now()
    moment = session.scalar(select(func.clock_timestamp()))
    assert isinstance(moment, datetime)
    return moment.astimezone(UTC)


def open_store(url: str, *, migrate: bool = False, create: bool = False) -> Store:
    """Open the database of the gateway.

    Args:
        url: of SQLAlchemy.
        migrate: bring its tables to this version first; only one process does so at a time. There is no way back.
        create: make its tables where there are none.

    Raises:
        ConfigError: the URL is none.
        StorageError: it cannot be opened, or its tables are of another version.
    """
    store = Store(url)
    version, needed = revision(store)
    if (migrate and version != needed) or (create and version is None):
        upgrade(store)
        version, needed = revision(store)
    if version != needed:
        raise StorageError(
            f"the database has tables of version {version}, this version needs {needed}",
            path=hidden(url),
            remedy="start `pneumoscope serve`, which brings them up to date, or install the newer version",
        )
    return store


def hidden(url: str) -> str:
    """Return a URL without its password."""
    head, at, tail = url.rpartition("@")
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.partition(':')[0]}@{tail}" if at else url


def revision(store: Store) -> tuple[str | None, str]:
    """Return the version of the tables, None where there are none, and the one that this code needs."""
    # Without Alembic, whose import would slow down the start of every process.
    with store.errors(), store.engine.connect() as connection:
        table = connection.dialect.has_table(connection, "alembic_version")
        version = connection.scalar(text("SELECT version_num FROM alembic_version")) if table else None
    return version, max(file.name[1:5] for file in (MIGRATIONS / "versions").glob("v*.py"))


def upgrade(store: Store) -> None:
    """Bring the tables to the latest version, all or nothing."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    scripts = _scripts()
    with store.errors(), store.engine.execution_options(immediate=True).begin() as connection:
        if not store.sqlite:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        context = MigrationContext.configure(
            connection,
            opts={
                "target_metadata": Base.metadata,
                "fn": lambda current, context: scripts._upgrade_revs("head", current),  # as in Alembic's cookbook
                "transactional_ddl": True,
            },
        )
        with Operations.context(context):
            context.run_migrations()


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(MIGRATIONS))


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's BEGIN below, not the driver's own
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "secure_delete = ON",  # what is erased leaves no copy in free pages
            f"busy_timeout = {_BUSY_SECONDS * 1000}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
