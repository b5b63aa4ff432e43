"""Whether the gateway loses or doubles anything when its processes are killed at random moments under load.

    python -m benchmarks.gateway.crash --database sqlite|postgresql [--workers 2] [--moments 200] [--seed 0]

Four senders send radiographs, and send again what was not acknowledged, as modalities do. Meanwhile SIGKILL hits, at
moments drawn from the seed, the receiver, a worker, its analysing child, the sender, the page, the supervisor, or
everything at once; what ran stays stopped until the supervisor, or this program for it, starts it again. At the end all
is drained, and every acknowledged image must have one row, one job that is done, one line in the journal, and one
report and one picture in the destination, a DICOM listener here that keeps the digest of all it gets.
Lost: acknowledged, and something of that is missing. Doubled: there more than once, by SOP Instance UID, or one UID
with different contents. The same bytes under the same UID sent once more are no double, and are counted apart.
The shipped bundle; PostgreSQL (`scripts/postgres/install`) is one of its own, with fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from benchmarks.gateway.rig import chests, machine
from pynetdicom import AE, AllStoragePresentationContexts, evt
from scipy.stats import beta
from scripts.pacs.gateway import Running, killed_at_the_end, until, write_gateway
from scripts.postgres.server import start_postgres
from sqlalchemy import func, select

from pneumoscope.files import write_json
from pneumoscope.journal.entry import ANALYSED
from pneumoscope.journal.journal import Journal
from pneumoscope.journal.pseudonyms import Pseudonyms, default_key
from pneumoscope.serving.settings.gateway import load_gateway
from pneumoscope.serving.store import jobs
from pneumoscope.serving.store.database import Store, open_store
from pneumoscope.serving.store.tables import DONE, QUARANTINED, RUNNING, SENT, Delivery, Image, Job

ALL, SUPERVISOR, CHILD, WORKER = "all", "supervisor", "child", "worker"
SHARES = {"receive": 0.2, WORKER: 0.2, CHILD: 0.2, "send": 0.15, "web": 0.1, SUPERVISOR: 0.05, ALL: 0.1}
SENDERS, SIDE = 4, 512
BEHIND = 20  # jobs of one worker
MOVED = 30.0  # seconds at most that a moment waits for something new to be at risk
PAUSE = 3.0  # seconds at most from when the victim is up until it is killed
PATIENCE = 600.0


@dataclass
class Destination:
    """A PACS that keeps of each object what tells it from others."""

    port: int = 0
    got: dict[str, Counter[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(Counter))  # by study

    def keep(self, event: Any) -> int:
        item, data = event.dataset, event.encoded_dataset(include_meta=False)
        self.got[item.StudyInstanceUID][item.Modality, item.SOPInstanceUID, sha256(data).hexdigest()] += 1
        return 0x0000


@dataclass
class Moment:
    """What is killed, and how many seconds after it is up. `number`: of the worker; `ready`: once that can analyse."""

    victim: str
    pause: float
    number: int
    ready: bool


def main() -> None:
    """Kill, wait until all is drained, count, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="kill for at most so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, help="default: benchmarks/gateway/results/crash_DATABASE.json")
    arguments = parser.parse_args()
    result = arguments.result or Path(f"benchmarks/gateway/results/crash_{arguments.database}.json")
    moments = drawn(arguments.moments, arguments.workers, arguments.seed)
    print(f"seed {arguments.seed}, {arguments.database}, {arguments.workers} workers", flush=True)
    before, started = machine(), time.monotonic()
    server = start_postgres(durable=True) if arguments.database == "postgresql" else nullcontext()
    with tempfile.TemporaryDirectory() as folder, server as postgres, destination() as pacs:
        more = f"[worker]\ncount = {arguments.workers}\n"
        if postgres is not None:
            more += f'[store]\nurl = "{postgres.database()}"\n'
        file = write_gateway(Path(folder), pacs.port, "SINK", more)
        with killed_at_the_end(Running(file, load_gateway(file))) as running:
            told = under_load(running, pacs, moments, arguments.minutes)
            running.stop()
    told = {
        **{"database": arguments.database, "workers": arguments.workers, "seed": arguments.seed, "side": SIDE},
        **told,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": before,
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    write_json(result, told)
    print(json.dumps({name: value for name, value in told.items() if name != "machine"}, indent=1))


def drawn(count: int, workers: int, seed: int) -> list[Moment]:
    """Draw whom to kill and when; the same for the same seed."""
    chance = np.random.default_rng(seed)
    return [
        Moment(
            victim=str(chance.choice(list(SHARES), p=list(SHARES.values()))),
            pause=float(chance.uniform(0.0, PAUSE)),
            number=int(chance.integers(1, workers + 1)),
            ready=bool(chance.random() < 0.75),
        )
        for _ in range(count)
    ]


@contextmanager
def destination() -> Iterator[Destination]:
    """Listen for results."""
    application = AE(ae_title="SINK")
    for context in AllStoragePresentationContexts:
        application.add_supported_context(str(context.abstract_syntax))
    made = Destination()
    server = application.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, made.keep)])
    made.port = server.socket.getsockname()[1]
    try:
        yield made
    finally:
        server.shutdown()


def under_load(running: Running, pacs: Destination, moments: list[Moment], minutes: float) -> dict[str, Any]:
    """Send and kill, then count what came of what was acknowledged."""
    running.start()
    until(lambda: listens(running), PATIENCE)
    store = open_store(running.config.database)
    stop = threading.Event()
    acknowledged: list[pydicom.Dataset] = []
    senders = [threading.Thread(target=modality, args=(running, store, stop, acknowledged)) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    killed, running_jobs, owed = kill_all(running, store, moments, acknowledged, minutes)
    stop.set()
    for sender in senders:
        sender.join()
    sent_back: set[int] = set()
    until(lambda: drained(store, sent_back), PATIENCE, 0.5)
    counted = count(running, store, pacs, acknowledged)
    store.close()
    hit = {"with_running_jobs": running_jobs, "with_owed_results": owed}
    return {"moments": killed.total(), "killed": dict(killed), **hit, "quarantined": len(sent_back), **counted}


def modality(running: Running, store: Store, stop: threading.Event, acknowledged: list[pydicom.Dataset]) -> None:
    """Send one image after another, each until it is acknowledged; wait while the workers are far behind."""
    while not stop.wait(0.3):
        if unfinished(store) > BEHIND * running.config.worker.count:
            continue
        (source,) = chests(1, SIDE)
        while running.send(source) == [None]:
            time.sleep(0.2)
        acknowledged.append(source)


def kill_all(
    running: Running, store: Store, moments: list[Moment], acknowledged: list[pydicom.Dataset], minutes: float
) -> tuple[Counter[str], int, int]:
    """Kill at each moment; returns how often whom, and how often with jobs running and with results owed."""
    killed: Counter[str] = Counter()
    hit, moved = [0, 0], (0, 0)
    started = time.monotonic()
    for number, moment in enumerate(moments, 1):
        if time.monotonic() - started > 60 * minutes:
            break
        wait_for_load(store, acknowledged, moved)
        pid = victim(running, moment)
        time.sleep(moment.pause)
        moved = (len(acknowledged), count_rows(store, Job, Job.state == DONE))
        states = [count_rows(store, Job, Job.state == RUNNING), count_rows(store, Delivery, Delivery.state != SENT)]
        hit = [total + bool(found) for total, found in zip(hit, states, strict=True)]
        if moment.victim == ALL:
            running.kill()
        else:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself, as one whose supervisor was killed does
        if moment.victim == SUPERVISOR:
            assert running.process is not None
            running.process.wait()
        if moment.victim in (ALL, SUPERVISOR):
            running.start()
        killed[moment.victim] += 1
        told = f"{len(acknowledged)} acknowledged, {states[0]} running, {states[1]} owed"
        print(f"{number:4}/{len(moments)} {time.monotonic() - started:6.0f} s  {moment.victim:10} {told}", flush=True)
    return killed, hit[0], hit[1]


def wait_for_load(store: Store, acknowledged: list[pydicom.Dataset], before: tuple[int, int]) -> None:
    """Wait until an image was taken or answered since the last kill, but not for ever: some kills follow each other."""
    with suppress(TimeoutError):
        until(lambda: (len(acknowledged), count_rows(store, Job, Job.state == DONE)) != before, MOVED, 0.1)


def victim(running: Running, moment: Moment) -> int:
    """Wait until the listener and the victim are up; returns the number of the process."""
    assert running.process is not None
    until(lambda: listens(running), PATIENCE, 0.1)
    if moment.victim in (ALL, SUPERVISOR):
        return running.process.pid
    name = f"{WORKER}-{moment.number}" if moment.victim in (WORKER, CHILD) else moment.victim
    found = 0

    def up() -> bool:
        nonlocal found
        pid, can_analyse = processes(running.file.parent / "log.jsonl").get(name, (0, False))
        if pid and name.startswith(WORKER) and moment.ready and not can_analyse:
            return False
        found = child_of(pid) if moment.victim == CHILD else pid
        return found != 0 and Path(f"/proc/{found}").exists()

    until(up, PATIENCE, 0.1)
    return found


def processes(log: Path) -> dict[str, tuple[int, bool]]:
    """Return the latest process of each name, and whether it is a worker that said it is ready."""
    found: dict[str, tuple[int, bool]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "process started":
            found[event["process"]] = (event["pid"], False)
        elif event["event"] == "ready" and "worker" in event:
            name = event["worker"].partition("@")[0]
            found[name] = (found[name][0], True)
    return found


def child_of(parent: int) -> int:
    """Return the process that a worker analyses in, 0 where it has none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == parent and b"spawn_main" in (folder / "cmdline").read_bytes():
                return int(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return 0


def listens(running: Running) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", running.config.receive.port), 1.0):
            return True
    except OSError:
        return False


def count_rows(store: Store, table: Any, condition: Any) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(table).where(condition)) or 0


def unfinished(store: Store) -> int:
    """Return how many images are not analysed yet."""
    return count_rows(store, Job, Job.state != DONE)


def drained(store: Store, sent_back: set[int]) -> bool:
    """Say whether nothing is to be analysed or sent any more; send back, as a person would, what is quarantined.

    An image whose analysis was killed as often as `worker.attempts` is suspected itself.
    """
    with store.read() as session:
        quarantined = list(session.scalars(select(Job.id).where(Job.state == QUARANTINED)))
    for job_id in quarantined:
        jobs.try_again(store, job_id)
        sent_back.add(job_id)
    return unfinished(store) == 0 and count_rows(store, Delivery, Delivery.state != SENT) == 0


def count(running: Running, store: Store, pacs: Destination, acknowledged: list[pydicom.Dataset]) -> dict[str, Any]:
    """Compare what was acknowledged with what there is: rows, journal, and what the destination got."""
    with store.read() as session:
        images = Counter(session.scalars(select(Image.study_uid).join(Image.job).where(Job.state == DONE)))
    pseudonyms = Pseudonyms.load(default_key(running.config.journal_file))
    entries = Journal(running.config.journal_file).entries()
    lines = Counter(entry.study for entry in entries if entry.state == ANALYSED)
    studies = [str(source.StudyInstanceUID) for source in acknowledged]
    lost, doubled = [], []
    for study in studies:
        uids = {(modality, uid) for modality, uid, _ in pacs.got[study]}
        modalities = Counter(modality for modality, _ in uids)
        found = [images[study], lines[pseudonyms.of("study", study)], modalities["SR"], modalities["OT"]]
        if 0 in found:
            lost.append({"study": study, "rows, lines, reports, pictures": found})
        if max(found) > 1 or len(pacs.got[study]) != len(uids):
            doubled.append({"study": study, "rows, lines, reports, pictures": found, "contents": len(pacs.got[study])})
    sent = sum(objects.total() for objects in pacs.got.values())
    bound = float(beta.ppf(0.95, len(lost) + 1, len(studies) - len(lost)))  # none of n: the rule of three, about 3/n
    return {
        "acknowledged": len(studies),
        "lost": len(lost),
        "doubled": len(doubled),
        "lost_at_most_95": round(bound, 5),
        "journal_lines": lines.total(),
        "journal_lines_of_no_image": sum((lines - Counter(pseudonyms.of("study", s) for s in images)).values()),
        "sent_again_same_bytes": sent - sum(len(objects) for objects in pacs.got.values()),
        "wrong": [*lost, *doubled][:20],
    }


if __name__ == "__main__":
    main()
