"""Whether the gateway loses or doubles anything when its processes are killed at random moments under load.

    python -m benchmarks.gateway_crash [--moments 20] [--seed 0] [--result benchmarks/results/gateway_crash.json]

Four senders send radiographs, and send again what was not acknowledged, as modalities do. Meanwhile the receiver, the
worker or the sender, drawn at random, gets SIGKILL at random moments; the supervisor starts it again. At the end every
acknowledged image must have one report and one picture in a real Orthanc, one job that is done, one line in the
journal, and every delivery sent. Lost: acknowledged, and something of that is missing. Doubled: there more than once.
SQLite; the shipped bundle.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.gateway_rig import Rig, chests, machine, rig, until
from sqlalchemy import func, select

from pneumoscope.files import write_json
from pneumoscope.journal import Journal
from pneumoscope.serving.store import Store, open_store
from pneumoscope.serving.tables import DONE, SENT, Beat, Delivery, Image, Job

VICTIMS = ("receive", "worker-1", "send")
SENDERS = 4
SIDE = 256
BEHIND = 20  # jobs
PATIENCE = 300.0


def main() -> None:
    """Kill, wait until all is drained, count, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/gateway_crash.json"))
    arguments = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder, rig(Path(folder)) as running:
        running.start()
        until(running.ready, PATIENCE)
        store = open_store(running.config.database)
        stop, acknowledged = threading.Event(), [[] for _ in range(SENDERS)]  # type: ignore[var-annotated]
        senders = [threading.Thread(target=modality, args=(running, store, stop, some)) for some in acknowledged]
        for sender in senders:
            sender.start()
        killed = kill_at_random(store, arguments.moments, np.random.default_rng(arguments.seed))
        stop.set()
        for sender in senders:
            sender.join()
        studies = [study for some in acknowledged for study in some]
        until(lambda: drained(store), PATIENCE, 0.5)
        counted = count(running, store, studies)
        store.close()
        running.stop()
    told = {"moments": arguments.moments, "seed": arguments.seed, "killed": dict(killed), **counted, "machine": before}
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.result, told)
    print(f"killed {dict(killed)}; {counted}")


def modality(running: Rig, store: Store, stop: threading.Event, acknowledged: list[str]) -> None:
    """Send one image after another, each until it is acknowledged; wait while the worker is far behind."""
    while not stop.wait(0.5):
        if unfinished(store) > BEHIND:
            continue
        (source,) = chests(1, SIDE)
        while running.send(source) == [None]:
            time.sleep(0.2)
        acknowledged.append(str(source.StudyInstanceUID))


def kill_at_random(store: Store, moments: int, chance: np.random.Generator) -> Counter[str]:
    """Kill so many times whoever is drawn; one that is not up again yet is waited for."""
    killed: Counter[str] = Counter()
    dead: set[int] = set()
    for _ in range(moments):
        victim = str(chance.choice(VICTIMS))
        pid = 0

        def up(name: str = victim) -> bool:
            nonlocal pid
            with store.read() as session:
                pid = session.scalar(select(Beat.pid).where(Beat.name == name)) or 0
            return pid not in dead and pid != 0

        until(up, PATIENCE)
        time.sleep(float(chance.uniform(0.0, 1.5)))
        os.kill(pid, signal.SIGKILL)
        dead.add(pid)
        killed[victim] += 1
    return killed


def unfinished(store: Store) -> int:
    """Return how many images are not analysed yet."""
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(Job).where(Job.state != DONE)) or 0


def drained(store: Store) -> bool:
    """Say whether nothing is to be analysed or sent any more."""
    with store.read() as session:
        owed = session.scalar(select(func.count()).select_from(Delivery).where(Delivery.state != SENT))
    return unfinished(store) == 0 and owed == 0


def count(running: Rig, store: Store, studies: list[str]) -> dict[str, Any]:
    """Compare what was acknowledged with what there is: images, journal, and what Orthanc holds."""
    before = -1
    while before != running.since:
        before = running.since
        running.look()
    with store.read() as session:
        images = Counter(session.scalars(select(Image.study_uid)))
    journal = len(list(Journal(running.config.journal_file).entries()))
    held = {study: Counter(running.results(study)) for study in studies}
    return {
        "acknowledged": len(studies),
        "lost": sum(images[s] == 0 or held[s]["SR"] == 0 or held[s]["OT"] == 0 for s in studies),
        "doubled": sum(images[s] > 1 or held[s]["SR"] > 1 or held[s]["OT"] > 1 for s in studies),
        "images": images.total(),
        "journaled": journal,
    }


if __name__ == "__main__":
    main()
