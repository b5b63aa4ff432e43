"""How fast the gateway is: until an image is acknowledged, until its results are in a PACS, in a burst, after a crash.

    python -m benchmarks.gateway.latency [--count 20] [--studies 50000] [--side 2048] [--picture CHEST.png]
        [--result FILE.json]

Orthanc (`scripts/pacs/install`) is the destination; the gateway runs with the shipped bundle, as `pneumoscope serve`
starts it. Single images one after another; then a burst from four senders; then five that are acknowledged and cut off
by SIGKILL of every process, until all its results are there after a restart. Seconds. The result tells the load of the
machine before and after: figures of a machine that does other work as well are those of such a machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from benchmarks.gateway.history import remember
from benchmarks.gateway.rig import Rig, chests, machine, rig
from scripts.pacs.gateway import until

from pneumoscope.files import write_json

GOALS = {"acknowledged_p95": 0.3, "stored_p95": 2.0, "burst": 12.0, "recovered": 10.0}
PATIENCE = 600.0
SENDERS = 4


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="single images, and images of the burst")
    parser.add_argument("--studies", type=int, default=0, help="of the past, in the database from the start")
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--picture", type=Path, help="a radiograph that the gate lets pass, so that maps are made")
    parser.add_argument("--result", type=Path, default=Path("benchmarks/gateway/results/latency.json"))
    arguments = parser.parse_args()
    before = machine()

    def studies(count: int) -> list[pydicom.Dataset]:
        return chests(count, arguments.side, arguments.picture)

    with tempfile.TemporaryDirectory() as folder, rig(Path(folder)) as running:
        remember(running.config, arguments.studies)
        running.start()
        start = until(running.ready, PATIENCE)
        figures: dict[str, Any] = {"start": start, **single(running, studies(arguments.count))}
        figures["burst"] = burst(running, studies(arguments.count))
        figures |= recovery(running, studies(5))
        running.stop()
    told = {
        "images": arguments.count,
        "studies_of_the_past": arguments.studies,
        "side": arguments.side,
        "pixels": "computed, refused by the gate" if arguments.picture is None else "a radiograph's, enlarged",
        "megabytes": round(2 * arguments.side**2 / 1e6, 1),
        "machine": before,
        "load_after": machine()["load"],
        "note": "measured while the machine did other work" if before["load"][0] > 1 else "an otherwise idle machine",
        "seconds": {name: round(value, 3) for name, value in figures.items()},
        "goals": GOALS,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.result, told)
    for name, value in figures.items():
        goal = GOALS.get(name)
        print(f"{name:20} {value:8.3f} s" + ("" if goal is None else f"   goal {goal:g}, {_met(value, goal)}"))
    print(f"load {before['load'][0]:.1f} before, {told['load_after'][0]:.1f} after, on {before['cores']} cores")


def _met(value: float, goal: float) -> str:
    return "met" if value <= goal else "missed"


def single(running: Rig, sources: list[pydicom.Dataset]) -> dict[str, float]:
    """One image after another: until acknowledged, and from the request until report and picture are in the PACS."""
    taken, stored = [], []
    for source in sources:
        started = time.perf_counter()
        (seconds,) = running.send(source)
        assert seconds is not None, "not acknowledged"
        taken.append(seconds)
        until(lambda one=source: running.complete([one]), PATIENCE)  # type: ignore[misc]
        stored.append(time.perf_counter() - started)
    return {
        **{f"acknowledged_p{p}": float(np.percentile(taken, p)) for p in (50, 95)},
        **{f"stored_p{p}": float(np.percentile(stored, p)) for p in (50, 95)},
    }


def burst(running: Rig, sources: list[pydicom.Dataset]) -> float:
    """Several senders at once: until the last result is in the PACS."""
    started = time.perf_counter()
    with ThreadPoolExecutor(SENDERS) as pool:
        answers = list(pool.map(lambda number: running.send(*sources[number::SENDERS]), range(SENDERS)))
    assert None not in [seconds for answer in answers for seconds in answer], "not acknowledged"
    until(lambda: running.complete(sources), PATIENCE)
    return time.perf_counter() - started


def recovery(running: Rig, sources: list[pydicom.Dataset]) -> dict[str, float]:
    """SIGKILL to everything with images acknowledged: from the restart until it listens, and until all is sent."""
    assert None not in running.send(*sources), "not acknowledged"
    running.kill()
    started = time.perf_counter()
    running.start()
    until(lambda: _listens(running), PATIENCE)
    listening = time.perf_counter() - started
    until(lambda: running.complete(sources), PATIENCE)
    return {"listening_again": listening, "recovered": time.perf_counter() - started}


def _listens(running: Rig) -> bool:
    association = running.connect()
    if association.is_established:
        association.release()
        return True
    return False


if __name__ == "__main__":
    main()
