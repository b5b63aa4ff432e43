"""The process that drives Ray: reads the shards from standard input, writes a line for each to standard output.

A process of its own, because Ray takes over its parent (signal handlers, threads that outlive its shutdown and have
crashed the process afterwards). A crash here costs only a repeated computation.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pneumoscope import errors
from pneumoscope.bundle.runtime import Engine
from pneumoscope.errors import ConfigError, PneumoscopeError, StorageError, storage_errors
from pneumoscope.files import atomic_path
from pneumoscope.predict import Classifier, as_line

_STORE = 200 << 20  # bytes
_PATIENCE = 10  # seconds for Ray to leave


@dataclass(frozen=True)
class Scoring:
    """How to score, and where: `shards` is a folder that every worker can write to.

    `folder`: relative names of images are looked for here. `threads`: that one worker computes with.
    """

    bundle: str
    operating_point: str | None
    engine: Engine
    batch_size: int
    threads: int
    folder: str
    shards: str
    gate: bool


def shard_file(folder: Path, shard: int) -> Path:
    """Return the file of a shard's lines."""
    return folder / f"{shard:08d}.jsonl"


def computed(
    shards: Sequence[tuple[int, Sequence[str]]], scoring: Scoring, workers: int, address: str | None
) -> Iterator[int]:
    """Yield the number of images in each shard as it is finished, in no particular order.

    Args:
        shards: numbers, and names of the images.
        scoring: how, and where.
        workers: processes.
        address: of an existing cluster; None starts one on the loopback device.

    Raises:
        ConfigError: Ray is not installed, or its cluster cannot be reached.
        StorageError: the disk refused, or Ray ended before its work did.
    """
    if find_spec("ray") is None:
        raise ConfigError("Ray is not installed", remedy='pip install "pneumoscope[ray]"')
    job = {"shards": shards, "scoring": asdict(scoring), "workers": workers, "address": address}
    driver = subprocess.Popen(
        [sys.executable, "-c", "from pneumoscope.archive.cluster import drive; drive()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="ascii",
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    try:
        # Its standard input stays open: when it closes, the driver ends itself.
        driver.stdin.write(json.dumps(job) + "\n")
        driver.stdin.flush()
        finished = 0
        while finished < len(shards) and (line := driver.stdout.readline()):
            result = json.loads(line)
            if result["fault"]:
                kind, what, path, remedy = result["fault"]
                raise getattr(errors, kind)(what, path=path, remedy=remedy)
            finished += 1
            yield int(result["lines"])
        if finished < len(shards):
            raise StorageError(
                f"Ray ended (exit code {driver.wait()}) after {finished} of {len(shards)} shards",
                path=scoring.shards,
                remedy="start the same command again, which takes up what is finished",
            )
    finally:
        _leave(driver)


def _leave(driver: subprocess.Popen[str]) -> None:
    for stream in (driver.stdin, driver.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    try:
        driver.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()


def drive() -> None:
    """Do the job read from standard input, a line of JSON, and write a line of JSON for each shard."""
    with os.fdopen(os.dup(1), "w", encoding="ascii") as output:
        os.dup2(2, 1)  # Ray's own prints go to standard error
        job = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_parent, daemon=True).start()
        try:
            for result in _scored(job["shards"], Scoring(**job["scoring"]), job["workers"], job["address"]):
                output.write(json.dumps(result) + "\n")
                output.flush()
        except PneumoscopeError as error:
            output.write(json.dumps({"lines": 0, "fault": _fault(error)}) + "\n")


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)  # Ray's daemons and workers end with this process


def _scored(
    shards: Sequence[tuple[int, Sequence[str]]], scoring: Scoring, workers: int, address: str | None
) -> Iterator[dict[str, Any]]:
    if address is not None and address != "auto":
        _reach(address)
    ray = _ray(address)
    _start(ray, address, workers)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"shard": shard, "files": b"\0".join(map(os.fsencode, files))} for shard, files in shards]
    # A block per shard, so that a death costs one of them.
    scored = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Scorer,
        fn_constructor_args=(scoring,),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=scoring.threads if address else 0,
    )
    for row in scored.iter_rows():
        yield {"lines": int(row["lines"]), "fault": json.loads(row["fault"])}


def _reach(address: str) -> None:
    """Raise where nobody listens: Ray itself would try for minutes, and end the process."""
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10).close()
    except (OSError, ValueError) as error:
        raise _out_of_reach(address, error) from error


def _out_of_reach(address: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:200]
    fault = f"the Ray cluster at {address} cannot be reached ({reason})"
    return ConfigError(fault, remedy="ask `ray status` on its head")


def _ray(address: str | None) -> Any:
    """Return the module, set to send no usage reports and to listen on the loopback device alone."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on every system: no cluster, hence loopback
    import ray
    import ray.data

    return ray


def _start(ray: Any, address: str | None, workers: int) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Only names and counts pass through Ray's shared memory, images do not.
        ray.init(num_cpus=max(2, workers), object_store_memory=_STORE, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise _out_of_reach(address, error) from error


class Scorer:
    """One worker: scores shards, of which Ray Data sends it one after the other."""

    def __init__(self, scoring: Scoring) -> None:
        os.chdir(scoring.folder)
        self.scoring = scoring
        self.classifier: Classifier | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the number of lines written, and as JSON the fault, or null."""
        files = [os.fsdecode(name) for name in bytes(row["files"]).split(b"\0")]
        try:
            return {"lines": self._write(int(row["shard"]), files), "fault": "null"}
        except PneumoscopeError as error:  # as a value: Ray keeps the text of an error alone
            return {"lines": 0, "fault": json.dumps(_fault(error))}

    def _write(self, shard: int, files: Sequence[str]) -> int:
        scoring = self.scoring
        if self.classifier is None:
            self.classifier = Classifier.load(
                Path(scoring.bundle),
                operating_point=scoring.operating_point,
                engine=scoring.engine,
                threads=scoring.threads,
                gate=scoring.gate,
            )
        lines = list(self.classifier.predict(files, batch_size=scoring.batch_size, workers=scoring.threads))
        path = shard_file(Path(scoring.shards), shard)
        with (
            storage_errors(path),
            atomic_path(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream,
        ):
            stream.writelines(as_line(line) for line in lines)
        return len(lines)


def _fault(error: PneumoscopeError) -> tuple[str, str, str | None, str | None]:
    return type(error).__name__, error.what, error.path, error.remedy
