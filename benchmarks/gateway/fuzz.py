"""What damaged files do to the gateway: thousands of them, through the real intake and the real child.

    python -m benchmarks.gateway.fuzz [--files 2000] [--seed 0] [--result benchmarks/gateway/results/fuzz.json]

Valid files of every transfer syntax are damaged at random (`tests/support/mutations.py`), and brought half over
C-STORE, half over STOW-RS. What is taken is analysed by the worker's child with its limits; an untrained network
without a gate answers about all that can be decoded. Counted:

- crash: the receiver or the worker raised, or took no more files; a killed child is allowed where it is told;
- hang: longer than the limit of the analysis, or half a minute to an answer of the intake;
- silent: the file was analysed, and the image that was analysed differs visibly from the undamaged one. Visibly: more
  than 1 % of the pixels by more than .1 of the range, or all by more than .02 on average, or another size. A changed
  header (window, photometric interpretation) makes another image that is valid; so do changed pixels that are not
  compressed, since DICOM has no checksum. They are counted apart from compressed pixels.

Exit code 1 where something crashed or hung.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.gateway.one_process import Place, place
from benchmarks.gateway.rig import machine
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from pynetdicom.dsutils import split_dataset
from sqlalchemy import func, select
from tests.support.dicom_files import SEEDS
from tests.support.mutations import MUTATIONS

from pneumoscope.errors import ImageError, PneumoscopeError
from pneumoscope.files import write_json
from pneumoscope.images import read_image
from pneumoscope.serving.analysis.child import Child, ChildLostError
from pneumoscope.serving.store.tables import Image
from pneumoscope.serving.web.server import create_app

SECONDS, MEMORY = 30.0, 3072  # of one analysis
INTAKE = 30.0
PIXELS = ("pixel bits", "pixel block")


@dataclass(frozen=True)
class Outcome:
    """What became of one file. `silent`: it was analysed, and looks otherwise than the undamaged one."""

    syntax: str
    mutation: str
    way: str
    answer: str
    state: str
    reason: str = ""
    silent: bool = False
    seconds: float = 0.0
    fault: str | None = None


def seeing(settings: Any) -> Callable[[Path], NDArray[np.uint8] | None]:
    """A child's factory: what it is asked for is decoded as the analysis decodes it."""

    def look(path: Path) -> NDArray[np.uint8] | None:
        try:
            return np.rint(read_image(path).pixels * 255).astype(np.uint8)
        except ImageError:
            return None

    return look


def differs(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Say whether two images differ visibly."""
    if one.shape != other.shape:
        return True
    change = np.abs(one.astype(np.int16) - other) / 255
    return bool(change.mean() > 0.02 or (change > 0.1).mean() > 0.01)


def damaged(files: int, seed: int) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield syntax, mutation, way in and content of so many files; the UIDs, and with them lengths, are drawn anew."""
    names, kinds = list(SEEDS), list(MUTATIONS)
    for number in range(files):
        chance = np.random.default_rng([seed, number])
        name, kind = names[number % len(names)], kinds[(number // len(names)) % len(kinds)]
        data = SEEDS[name]()  # with UIDs of its own: what repeats a UID is quarantined unseen
        yield name, kind, ("C-STORE", "STOW-RS")[int(chance.integers(2))], MUTATIONS[kind](data, start(data), chance)


def start(data: bytes) -> int:
    """Return where the data set of a file begins: over C-STORE the receiver writes what is before it."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as stream:
        stream.write(data)
        stream.flush()
        return int(split_dataset(Path(stream.name))[1])


class Fuzz:
    """One run against a place."""

    def __init__(self, running: Place, client: TestClient, eye: Child) -> None:
        self.place, self.client, self.eye = running, client, eye
        self.whole: dict[str, NDArray[np.uint8]] = {}
        for name, make in SEEDS.items():
            with tempfile.NamedTemporaryFile(suffix=".dcm") as stream:
                stream.write(make())
                stream.flush()
                self.whole[name] = eye.ask(Path(stream.name), 60.0)

    def play(self, syntax: str, mutation: str, way: str, data: bytes) -> Outcome:
        began, before = time.monotonic(), self._newest()
        answer = self._bring(way, data)
        taken = time.monotonic() - began
        fault = f"no answer of the intake: {answer}" if "no " in answer or answer.startswith("HTTP 5") else None
        fault = fault or ("the intake hung" if taken > INTAKE else None)
        number = self._newest()
        if number == before:
            return Outcome(syntax, mutation, way, answer, "not taken", seconds=taken, fault=fault)
        worked = time.monotonic()
        try:
            self.place.work()
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            fault = fault or f"the worker raised {type(error).__name__}"
        spent = time.monotonic() - worked
        fault = fault or ("the worker hung" if spent > SECONDS + 400 else None)
        state, reason, answered, file = self._found(number)
        silent = answered and self._changed(syntax, self.place.config.images / file)
        return Outcome(syntax, mutation, way, answer, state, reason, silent, taken + spent, fault)

    def _bring(self, way: str, data: bytes) -> str:
        if way == "C-STORE":
            try:
                return self.place.send(data)
            except Exception as error:  # noqa: BLE001 - the sender cannot send what has no head
                way = f"STOW-RS, since the sender said {type(error).__name__}"
        body = b"--B\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--B--\r\n"
        kind = 'multipart/related; type="application/dicom"; boundary=B'
        response = self.client.post("/dicom-web/studies", content=body, headers={"Content-Type": kind})
        return f"HTTP {response.status_code}"

    def _newest(self) -> int:
        with self.place.store.read() as session:
            return session.scalar(select(func.max(Image.id))) or 0

    def _found(self, number: int) -> tuple[str, str, bool, str]:
        with self.place.store.read() as session:
            image = session.get_one(Image, number)
            result = image.job.result
            answered = result is not None and not result.abstained
            reason = image.job.reason or (result.reason if result is not None else None) or ""
            state = f"{image.job.state}, declined" if result is not None and result.abstained else image.job.state
            return state, reason, answered, str(image.file)

    def _changed(self, syntax: str, file: Path) -> bool:
        try:
            seen = self.eye.ask(file, 60.0)
        except (ChildLostError, PneumoscopeError):
            return True
        return seen is None or differs(self.whole[syntax], seen)


def told(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the counts."""

    def kind(one: Outcome) -> str:
        if one.mutation not in PIXELS:
            return "header or structure"
        return "compressed pixels" if _compressed(one.syntax) else "uncompressed pixels"

    groups = ("header or structure", "compressed pixels", "uncompressed pixels")
    return {
        "files": len(outcomes),
        "faults": [asdict(one) for one in outcomes if one.fault],
        "children killed, told as quarantine": sum("process died" in one.reason for one in outcomes),
        "hung, told as quarantine": sum("took longer" in one.reason for one in outcomes),
        "answers": dict(Counter(one.answer for one in outcomes).most_common()),
        "states": dict(Counter(one.state for one in outcomes).most_common()),
        "by damage": {
            group: {
                "files": sum(kind(one) == group for one in outcomes),
                "analysed": sum(kind(one) == group and one.state == "done" for one in outcomes),
                "silent": sum(kind(one) == group and one.silent for one in outcomes),
            }
            for group in groups
        },
        "silent by syntax": dict(
            Counter(one.syntax for one in outcomes if one.silent and kind(one) == "compressed pixels").most_common()
        ),
        "silent by mutation": dict(Counter(one.mutation for one in outcomes if one.silent).most_common()),
        "slowest seconds": round(max((one.seconds for one in outcomes), default=0.0), 1),
    }


def _compressed(name: str) -> bool:
    return "Endian" not in name or "Deflated" in name


def run(files: int, seed: int, folder: Path, every: Callable[[int, list[Outcome]], None]) -> list[Outcome]:
    """Play so many files; `every`: called after each."""
    limits = {"attempts": 1, "seconds": SECONDS, "memory_mb": MEMORY, "start_seconds": 300.0}
    outcomes: list[Outcome] = []
    with place(folder, worker=limits) as running:
        eye = Child(seeing, None, memory_mb=MEMORY, start_seconds=120)
        app = create_app(running.config, running.store)
        try:
            with TestClient(app, client=("127.0.0.1", 1), base_url="http://127.0.0.1") as client:
                fuzz = Fuzz(running, client, eye)
                for number, given in enumerate(damaged(files, seed)):
                    outcomes.append(fuzz.play(*given))
                    every(number, outcomes)
        finally:
            eye.close()
    return outcomes


def main() -> int:
    """Run, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=Path("benchmarks/gateway/results/fuzz.json"))
    arguments = parser.parse_args()
    before, began = machine(), time.monotonic()

    def write(outcomes: list[Outcome]) -> None:
        counted = told(outcomes)
        seconds = round(time.monotonic() - began)
        arguments.result.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.result, {"seed": arguments.seed, **counted, "seconds": seconds, "machine": before})

    def every(number: int, outcomes: list[Outcome]) -> None:
        if (fault := outcomes[-1].fault) is not None:
            print(f"{number}: {fault}", flush=True)
        if number % 100 == 99:
            write(outcomes)
            print(f"{number + 1} files, {time.monotonic() - began:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(arguments.files, arguments.seed, Path(folder), every)
    write(outcomes)
    counted = told(outcomes)
    print(counted)
    return 1 if counted["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
