"""Starts the gateway's processes, restarts those that die, and ends them in order."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.context import ForkServerProcess

from filelock import FileLock, Timeout
from sqlalchemy import select

from pneumoscope.errors import ConfigError, StorageError, storage_errors
from pneumoscope.files import private_folder
from pneumoscope.serving.run import forking
from pneumoscope.serving.run.processes import live
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.settings.process_names import KINDS, kind_of, names, signed
from pneumoscope.serving.store import outbox
from pneumoscope.serving.store.database import Store, open_store
from pneumoscope.serving.store.tables import Beat
from pneumoscope.serving.watch import meters
from pneumoscope.serving.watch.logs import configure, logger

_LOOK = 0.2  # seconds between checks of the processes
_AGAIN, _LONGEST = 0.5, 30.0  # seconds before a process that died is restarted: doubled while it keeps dying
_STEADY = 60.0  # seconds after which a process counts as stable
_LATER = {"web": 12.0, "retain": 10.0}  # seconds: first the processes for which senders and patients wait
_UNKNOWN = 255  # exit code of a process that may live on, but whose forking process was killed
_GRACE = 30.0  # seconds for a process to finish its work


class _Member:
    """One process of the gateway and how often it died."""

    def __init__(self, name: str, config: Gateway) -> None:
        self.name, self.config = name, config
        self.pause, self.due = _AGAIN, time.monotonic() + _LATER.get(kind_of(name), 0.0)
        self.process: ForkServerProcess | None = None

    def start(self) -> None:
        self.process = forking.context().Process(target=live, args=(self.name, self.config), name=self.name)
        self.process.start()
        self.started = time.monotonic()
        logger("supervisor").info("process started", process=self.name, pid=self.process.pid)

    def look(self) -> int | None:
        """Start the process where it is due; returns the exit code of one that died."""
        moment = time.monotonic()
        if self.process is None:
            if moment >= self.due:
                self.start()
            return None
        if self.process.exitcode is None:
            return None
        code = self.process.exitcode
        if code == _UNKNOWN and self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
        self.pause = _AGAIN if moment - self.started > _STEADY else min(_LONGEST, 2 * self.pause)
        self.process, self.due = None, moment + self.pause
        return code


def serve(config: Gateway, kinds: Collection[str] = KINDS) -> None:
    """Run the gateway, or some kinds of its processes, until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: there is no such kind or database, one of the processes runs already, or hosts would share the
            journal, or not share its key.
        StorageError: the database cannot be used, or the folder that is shared with the receiving host is missing.
    """
    _prepare(config, kinds)
    with only_here(config, kinds):
        _serve(config, kinds)


def _serve(config: Gateway, kinds: Collection[str]) -> None:
    forking.begin()
    configure(config.logs)
    log = logger("supervisor")
    store = open_store(config.database, migrate=True)
    _tidy(config, store, kinds)
    store.close()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.set())
    if set(kinds) == set(KINDS):  # else other processes of this host may count there
        meters.begin_anew(meters.folder_of(config.folder, config.host))
    members = [_Member(name, config) for name in names(config, kinds)]
    log.info("starting", processes=[member.name for member in members])
    while not stop.is_set():
        for member in members:
            if (code := member.look()) is not None:
                log.error("process died", process=member.name, code=code, seconds=member.pause)
        stop.wait(_LOOK)
    log.info("ending")
    _end(members)
    log.info("ended")


def _prepare(config: Gateway, kinds: Collection[str]) -> None:
    """Create the folders of a receiving host; on other hosts a missing one is a share that is not mounted."""
    if unknown := set(kinds) - set(KINDS):
        raise ConfigError(f"no process is called {min(unknown)!r}", remedy=f"use {', '.join(KINDS)} with --only")
    if config.host and set(kinds) != set(KINDS) and config.journal.path is None:
        raise ConfigError(
            "with several hosts the journal must not lie in their shared folder",
            remedy="give journal.path on a disk of this host, see docs/howto/several-workers.md",
        )
    several = config.host and (set(kinds) != set(KINDS) or config.store.host)
    if several and config.journal.path is not None and config.journal.key is None:
        raise ConfigError(
            "each host would make a key of its own, and call the same patient by another pseudonym",
            remedy="give journal.key in the folder that all hosts share, see docs/howto/several-workers.md",
        )
    if {"receive", "web"} & set(kinds):
        for folder in (config.folder, config.images):
            private_folder(folder)
    elif not config.images.is_dir():
        raise StorageError(
            "is not there, so no image could be analysed",
            path=config.images,
            remedy="mount the folder that is shared with the host that receives, and start that one first",
        )


@contextmanager
def only_here(config: Gateway, kinds: Collection[str]) -> Iterator[None]:
    """Lock these kinds on this host: two listeners would remove each other's transfers."""
    with ExitStack() as locks:
        for kind in kinds:
            file = config.folder / f".{kind}{'@' + config.host if config.host else ''}.lock"
            try:
                with storage_errors(file):
                    locks.enter_context(FileLock(file, timeout=0))
            except Timeout as error:
                raise ConfigError(
                    f"its {kind} process runs already", path=config.folder, remedy="end the other `serve` first"
                ) from error
        yield


def _tidy(config: Gateway, store: Store, kinds: Collection[str]) -> None:
    """Give up deliveries, and forget processes, of an earlier configuration."""
    if "send" in kinds:
        for name, count in outbox.give_up_others(store, [item.name for item in config.destination]).items():
            logger("supervisor").warning("given up, no longer configured", destination=name, count=count)
    mine = [signed(config, name) for name in names(config, kinds)]
    with store.write() as session:
        for beat in session.scalars(select(Beat).where(Beat.name.not_in(mine))):
            # Not those that others run, on this host or elsewhere: their silence must show.
            if beat.name.partition("@")[2] == (config.host or "") and kind_of(beat.name) in kinds:
                session.delete(beat)


def _end(members: list[_Member]) -> None:
    """Ask all processes to end, and kill those that do not."""
    alive = [member.process for member in members if member.process is not None and member.process.is_alive()]
    for process in alive:
        process.terminate()
    until = time.monotonic() + _GRACE
    for process in alive:
        process.join(max(0.0, until - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
