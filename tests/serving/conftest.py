"""The real PACS and validators, and the databases."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.orthanc import Orthanc, start_orthanc
from tests.serving.postgres import INSTALL as INSTALL_POSTGRES
from tests.serving.postgres import Postgres, start_postgres

from pneumoscope.serving.store.database import open_store

DATABASES = ("sqlite", "postgresql")
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


def database_of(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the section `store` of a gateway's file for the kind that is the fixture's parameter."""
    if request.param == "sqlite":
        return {}
    return {"url": request.getfixturevalue("postgres").database(request.getfixturevalue("migrated"))}


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The section `store` of a gateway's file: a SQLite file in its folder, or an empty PostgreSQL."""
    return database_of(request)
