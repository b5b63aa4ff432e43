"""The processes of the gateway: what each opens and runs, and how it ends.

Each is forked from a process with nothing but imports (`forking.py`), so none shares a connection with another.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from types import MappingProxyType

from pneumoscope.files import out_folder
from pneumoscope.serving.analysis.child import Discreet
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.settings.process_names import kind_of, signed
from pneumoscope.serving.store.database import Store, open_store
from pneumoscope.serving.watch import meters
from pneumoscope.serving.watch.logs import configure, logger


def live(name: str, config: Gateway) -> None:
    """Run as the process `name` until SIGTERM, or until the supervisor has ended."""
    configure(config.logs)
    meters.count_in(meters.folder_of(config.folder, config.host))
    meters.process_started(kind_of(name))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor handles Ctrl-C
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent, stop), daemon=True).start()
    with Discreet(name):
        store = open_store(config.database)
        try:
            _LIVES[kind_of(name)](signed(config, name), config, store, stop)
        finally:
            store.close()
    logger(name).info("ended")


def _watch(parent: BaseProcess, stop: threading.Event) -> None:
    """End with the supervisor, also where it was killed: the next one starts its own processes."""
    parent.join()
    stop.set()


def _receive(name: str, config: Gateway, store: Store, stop: threading.Event) -> None:
    from pneumoscope.serving.delivery import assurance
    from pneumoscope.serving.intake import commitment
    from pneumoscope.serving.intake.listener import run, start_receiver
    from pneumoscope.serving.intake.receipt import open_intake

    receiver = start_receiver(config, open_intake(config, store), handlers=assurance.handlers(store))
    logger(name).info("listening", port=receiver.port)
    if config.receive.commitment_peer:

        def report() -> None:
            try:
                commitment.run(store, config.receive, stop)
            finally:
                stop.set()  # after a failure the supervisor starts the process again

        threading.Thread(target=report, daemon=True).start()
    run(receiver, config, stop, lambda: store.beat(name, os.getpid(), port=receiver.port))


def _work(name: str, config: Gateway, store: Store, stop: threading.Event) -> None:
    from pneumoscope.serving.analysis.worker import Worker

    Worker(config, store, name).run(stop)


def _send(name: str, config: Gateway, store: Store, stop: threading.Event) -> None:
    from pneumoscope.serving.delivery.send import run

    _together(name, store, stop, [partial(run, store, item, stop) for item in config.deliveries])


def _poll(name: str, config: Gateway, store: Store, stop: threading.Event) -> None:
    from pneumoscope.serving.intake.poller import pollers
    from pneumoscope.serving.intake.receipt import open_intake

    out_folder(config.images)
    every = pollers(config, open_intake(config, store))
    _together(name, store, stop, [partial(item.run, stop) for item in every])


def _together(name: str, store: Store, stop: threading.Event, runs: Sequence[Callable[[], None]]) -> None:
    """Run each in a thread of its own, so that a peer that is down delays no other."""
    threads = [threading.Thread(target=run, daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    # A thread that ended by itself failed; the supervisor starts the process again.
    while not stop.wait(5.0) and all(thread.is_alive() for thread in threads):
        store.beat(name, os.getpid())
    failed = not stop.is_set()
    stop.set()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(1)


def _retain(name: str, config: Gateway, store: Store, stop: threading.Event) -> None:
    from pneumoscope.serving.keeping.retention import run

    run(config, store, stop, lambda: store.beat(name, os.getpid()))


def _web(name: str, config: Gateway, store: Store, stop: threading.Event) -> None:
    from pneumoscope.serving.web.server import run

    run(config, store, stop, name)


_LIVES: Mapping[str, Callable[[str, Gateway, Store, threading.Event], None]] = MappingProxyType(
    {"receive": _receive, "poll": _poll, "worker": _work, "send": _send, "retain": _retain, "web": _web}
)
