"""The real PACS and validators, and the databases."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from scripts.pacs.orthanc import Orthanc, start_orthanc
from scripts.postgres.server import INSTALL as INSTALL_POSTGRES
from scripts.postgres.server import Postgres, start_postgres
from tests.support.certificates import Authority
from tests.support.databases import DATABASES, database_of
from tests.support.web import PASSWORD, WebApp, opened

from pneumoscope.serving.people import accounts
from pneumoscope.serving.store.database import Store, open_store

INSTALL = Path(__file__).parents[2] / "scripts" / "pacs" / "install"


@pytest.fixture(scope="session")
def pacs_tools() -> None:
    """Orthanc and the validators, installed where that is possible; else the test is skipped with the reason."""
    done = subprocess.run([str(INSTALL)], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(f"no real PACS: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def orthanc(pacs_tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A real PACS on loopback, empty at first."""
    with start_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL on loopback, installed where that is possible; else the test is skipped with the reason."""
    done = subprocess.run([str(INSTALL_POSTGRES)], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(f"no PostgreSQL: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    with start_postgres() as running:
        yield running


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> str:
    """A PostgreSQL database with our tables, for copies."""
    url = postgres.database()
    open_store(url, migrate=True).close()
    return url


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The section `store` of a gateway's file: a SQLite file in its folder, or an empty PostgreSQL."""
    return database_of(request)


def add_users(store: Store) -> None:
    """Add a user of each role, with hashes that are quick to check: tests sign in often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "PasswordHasher", lambda: PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        for role in accounts.ROLES:
            accounts.add_user(store, role, role, PASSWORD)


@pytest.fixture(scope="session")
def with_users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a user of each role, made once."""
    file = tmp_path_factory.mktemp("users") / "gateway.sqlite"
    store = open_store(f"sqlite:///{file}", migrate=True)
    add_users(store)
    store.close()
    return file


@pytest.fixture(scope="session")
def postgres_with_users(postgres: Postgres, migrated: str) -> str:
    """The same in PostgreSQL, to be copied."""
    url = postgres.database(migrated)
    store = open_store(url)
    add_users(store)
    store.close()
    return url


@pytest.fixture
def web(request: pytest.FixtureRequest, tmp_path: Path, with_users: Path) -> Iterator[WebApp]:
    """On SQLite, unless the test names databases."""
    users: Path | str = with_users
    if getattr(request, "param", "sqlite") != "sqlite":
        template = request.getfixturevalue("postgres_with_users")
        users = request.getfixturevalue("postgres").database(template)
    with opened(tmp_path, users) as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))
