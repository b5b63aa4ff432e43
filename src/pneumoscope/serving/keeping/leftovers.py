"""Files of images without a row: the intake crashed between file and row, and the sender did not send again.

None of them was acknowledged. The rows are checked a second time while nobody can write one: either the row of an
arriving image exists by then and its file stays, or the intake misses the file and refuses the image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from pneumoscope.errors import StorageError, storage_errors
from pneumoscope.serving.store.database import Store, now
from pneumoscope.serving.store.tables import Image

_OLD = 24 * 3600.0  # seconds; a younger file may still get its row
_NAMES = 10_000  # names in memory at once
_MOST = 100  # more than crashes leave: the database is probably an older one
_OURS = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.dcm")


def remove(folder: Path, store: Store, go_on: Callable[[], bool] = lambda: True) -> int:
    """Remove files older than a day that no row names; returns how many. `go_on`: False ends the search.

    Raises:
        StorageError: a file cannot be removed; or so many have no row that an older database may have been restored,
            then none is removed.
    """
    limit = now().timestamp() - _OLD
    names = _old(folder, limit, go_on)
    unnamed: list[str] = []
    while batch := list(islice(names, _NAMES)):
        unnamed += _unnamed(store, batch)
        if len(unnamed) > _MOST:
            raise StorageError(
                f"more than {_MOST} images have no row in the database, and none was removed",
                path=folder,
                remedy="if an older database was restored, have them sent again; then move the others away",
            )
    if not unnamed or not go_on():
        return 0
    removed = 0
    with store.write() as session:
        _keep_others_out(session)
        known = set(session.scalars(select(Image.file).where(Image.file.in_(unnamed))))
        for name in unnamed:
            if name not in known and _is_old(folder / name, limit):
                with storage_errors(folder / name):
                    (folder / name).unlink(missing_ok=True)
                removed += 1
    return removed


def _old(folder: Path, limit: float, go_on: Callable[[], bool]) -> Iterator[str]:
    with storage_errors(folder):
        for inner in folder.iterdir():
            if not go_on():
                return
            if inner.is_dir():
                yield from (name for name in _names(inner) if _is_old(folder / name, limit))


def _names(inner: Path) -> Iterable[str]:
    names = (f"{inner.name}/{file.name}" for file in inner.iterdir())
    return (name for name in names if _OURS.fullmatch(name))


def _is_old(file: Path, limit: float) -> bool:
    try:
        return file.stat().st_mtime < limit
    except FileNotFoundError:  # erased meanwhile
        return False


def _unnamed(store: Store, names: Sequence[str]) -> set[str]:
    left = set(names)
    with store.read() as session:
        query = select(Image.file).where(Image.file.is_not(None)).execution_options(yield_per=1000)
        for name in session.scalars(query):
            left.discard(str(name))
    return left


def _keep_others_out(session: Session) -> None:
    """Lock the images against other writers; SQLite has one writer anyway."""
    if session.get_bind().dialect.name != "sqlite":
        session.execute(text("SET LOCAL lock_timeout = '10s'"))  # others that wait behind us must not wait long
        session.execute(text("LOCK TABLE images IN SHARE MODE"))
