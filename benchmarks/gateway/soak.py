"""Whether the gateway keeps pace for hours: a study a second, and what becomes of memory, files and the delay.

    python -m benchmarks.gateway.soak [--minutes 30] [--rate 1] [--studies 50000] [--side 2048] [--picture CHEST.png]

Studies are sent at their times whether or not earlier ones are done, over an association each, to the gateway with the
shipped bundle, which stores in Orthanc. Every five seconds: resident and proportional memory and open files of all
its processes, and how many acknowledged studies wait for their results. Figures are told by sixths of the time, so that
growth shows: delay from the due time until report and picture are in the PACS, and medians of the others. Writes JSON.
Exit code 1 where a study was not acknowledged or its results never came.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.gateway.history import remember
from benchmarks.gateway.rig import Rig, chests, machine, rig
from scripts.pacs.gateway import until

from pneumoscope.files import write_json

PATIENCE = 600.0
PARTS = 6
SENDERS = 4
EVERY = 5.0
DONE = ["OT", "SR"]


@dataclass
class Soak:
    """What was seen; times are seconds since the first study was due."""

    started: float
    sent: dict[str, float] = field(default_factory=dict)  # by study: when it was due
    acknowledged: dict[str, float] = field(default_factory=dict)  # seconds it took
    stored: dict[str, float] = field(default_factory=dict)  # seconds from when it was due to the last result
    refused: list[str] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)

    def now(self) -> float:
        return time.perf_counter() - self.started


def main() -> None:
    """Send, watch, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=1.0, help="studies a second")
    parser.add_argument("--studies", type=int, default=0, help="of the past, in the database from the start")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--picture", type=Path, help="a radiograph that the gate lets pass, so that maps are made")
    parser.add_argument("--result", type=Path, default=Path("benchmarks/gateway/results/soak.json"))
    arguments = parser.parse_args()
    count = round(60 * arguments.minutes * arguments.rate)
    before = machine()
    with tempfile.TemporaryDirectory() as folder, rig(Path(folder)) as running:
        remember(running.config, arguments.studies)
        running.start()
        until(running.ready, PATIENCE)
        seen = soaked(running, count, arguments)
        running.stop()
    parts = by_part(seen, count / arguments.rate)
    lost = sorted(set(seen.acknowledged) - set(seen.stored))
    told = {
        "studies": count,
        "a_second": arguments.rate,
        "studies_of_the_past": arguments.studies,
        "side": arguments.side,
        "pixels": "computed, refused by the gate" if arguments.picture is None else "a radiograph's, enlarged",
        "machine": before,
        "not_acknowledged": len(seen.refused),
        "without_results": len(lost),
        "parts": parts,
        "samples": seen.samples,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.result, told)
    print("| " + " | ".join(parts[0]) + " |\n|" + "---|" * len(parts[0]))
    for part in parts:
        print("| " + " | ".join(f"{value:g}" for value in part.values()) + " |")
    print(f"{len(seen.acknowledged)} acknowledged, {len(seen.refused)} not, {len(lost)} of them without results")
    sys.exit(1 if lost or seen.refused else 0)


def soaked(running: Rig, count: int, arguments: argparse.Namespace) -> Soak:
    """Send `count` studies at their times and watch until the last is done."""
    seen, over = Soak(time.perf_counter()), threading.Event()

    def send(number: int) -> None:
        (source,) = chests(1, arguments.side, arguments.picture)
        study = str(source.StudyInstanceUID)
        time.sleep(max(0.0, number / arguments.rate - seen.now()))
        seen.sent[study] = number / arguments.rate  # a sender that comes late makes no delay look shorter
        (seconds,) = running.send(source)
        if seconds is None:
            seen.refused.append(study)
        else:
            seen.acknowledged[study] = seconds

    def watch() -> None:
        while not over.wait(EVERY):
            seen.samples.append({"at": round(seen.now(), 1), **footprint(running), "waiting": waiting(seen)})

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(SENDERS) as pool:
        jobs = pool.map(send, range(count))
        deadline = count / arguments.rate + PATIENCE
        while seen.now() < deadline and len(seen.stored) + len(seen.refused) < count:
            look(running, seen)
            time.sleep(0.1)
        list(jobs)
    over.set()
    watcher.join()
    return seen


def look(running: Rig, seen: Soak) -> None:
    """Note the studies whose results have all come since the last look."""
    running.look()
    for study in [study for study in seen.acknowledged if study not in seen.stored]:
        if running.results(study) == DONE:
            seen.stored[study] = seen.now() - seen.sent[study]


def waiting(seen: Soak) -> int:
    """Return how many acknowledged studies have no results yet."""
    return len(seen.acknowledged) - len(seen.stored)


def footprint(running: Rig) -> dict[str, float]:
    """Return memory in MiB and open files of the gateway's processes, which share a process group."""
    assert running.process is not None
    total = {"resident": 0.0, "proportional": 0.0, "files": 0.0, "processes": 0.0}
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit() or os.getpgid(int(folder.name)) != running.process.pid:
                continue
            lines = (folder / "smaps_rollup").read_text(encoding="ascii").splitlines()
            sizes = {line.split(":")[0]: float(line.split()[1]) / 1024 for line in lines[1:]}
            total["files"] += len(list((folder / "fd").iterdir()))
        except (OSError, ProcessLookupError):  # it ended meanwhile
            continue
        total["resident"] += sizes["Rss"]
        total["proportional"] += sizes["Pss"]
        total["processes"] += 1
    return {name: round(value, 1) for name, value in total.items()}


def by_part(seen: Soak, seconds: float) -> list[dict[str, Any]]:
    """Return a row for each sixth of the time in which studies were sent."""
    edges = np.linspace(0, seconds, PARTS + 1)
    rows = []
    for first, last in pairwise(edges):
        studies = [study for study, at in seen.sent.items() if first <= at < last]
        taken = [seen.acknowledged[study] for study in studies if study in seen.acknowledged]
        delays = [seen.stored[study] for study in studies if study in seen.stored]
        samples = [sample for sample in seen.samples if first <= sample["at"] < last]
        names = ("resident", "proportional", "files", "waiting")
        rows.append(
            {
                "minutes": round(float(last) / 60, 1),
                "studies": len(studies),
                **quantiles("acknowledged", taken),
                **quantiles("stored", delays),
                **{name: round(float(np.median([sample[name] for sample in samples])), 1) for name in names},
            }
        )
    return rows


def quantiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return median and 95th percentile in seconds."""
    return {f"{name}_p{q}": round(float(np.percentile(values, q)), 3) if values else None for q in (50, 95)}


if __name__ == "__main__":
    main()
