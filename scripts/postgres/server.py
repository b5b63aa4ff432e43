"""A real PostgreSQL for tests: a free loopback port, files that are thrown away, a database for each test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from scripts.pacs.orthanc import free_ports

INSTALL = Path(__file__).parent / "install"
_NUMBERS = count(1)


@dataclass(frozen=True)
class Postgres:
    """Where a running PostgreSQL listens; whoever asks on loopback is let in."""

    port: int

    def database(self, template: str = "template1") -> str:
        """Make a database, empty or a copy of another one of this server; returns its URL."""
        name = f"test{next(_NUMBERS)}"
        with psycopg.connect(f"host=127.0.0.1 port={self.port} user=gateway dbname=postgres", autocommit=True) as link:
            link.execute(f"CREATE DATABASE {name} TEMPLATE {template.rpartition('/')[2]}")  # type: ignore[arg-type]
        return f"postgresql+psycopg://gateway@127.0.0.1:{self.port}/{name}"


@contextmanager
def start_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """Start a PostgreSQL, yield it once it answers, stop it at the end.

    `durable`: wait for the disk at each commit; tests lose nothing without. It refuses to be root, so root lends it
    another user; the folder is not below pytest's, which is root's alone.
    """
    programs = Path(_initdb()).parent
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = _lent_user()
        os.chown(folder, user.pw_uid, user.pw_gid)
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def run(program: str, *arguments: str | Path) -> None:
        command: Sequence[str | Path] = [programs / program, "-D", folder / "data", *arguments]
        with (folder / "out").open("w+") as out:  # not a pipe: the server would hold it open
            done = subprocess.run(
                command, check=False, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **who
            )
            out.seek(0)
            if done.returncode:
                raise RuntimeError(f"{program} failed:\n{out.read()}")

    try:
        run("initdb", "-U", "gateway", "-A", "trust", "-E", "UTF8", "--no-sync")
        (port,) = free_ports(1)
        settings = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync={'on' if durable else 'off'}"
        run("pg_ctl", "-w", "-o", settings, "-l", folder / "log", "start")
        try:
            yield Postgres(port)
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _initdb() -> str:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = str(found[-1]) if found else shutil.which("initdb")
    if program is None:
        raise RuntimeError(f"PostgreSQL is not installed: {INSTALL}")
    return program


def _lent_user() -> pwd.struct_passwd:
    """Return Debian's user for PostgreSQL, else nobody."""
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
