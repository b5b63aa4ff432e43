"""Scoring an archive with Ray Data: in shards, on one machine or on a cluster, resumed where it stopped.

A shard is a run of consecutive inputs. Whoever computes it writes its lines to a file of its own, whole or not at
all, so that a worker may die and its shard be computed again without a line lost or doubled.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pneumoscope import errors
from pneumoscope.bundle import Bundle
from pneumoscope.errors import ConfigError, PneumoscopeError, StorageError, storage_errors
from pneumoscope.files import atomic_path, out_folder, read_json, sha256_bytes, write_json
from pneumoscope.predict import Classifier, as_line
from pneumoscope.runtime import Engine

_PLAN = "plan.json"
_STORE = 200 << 20  # bytes
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """How to score, and where: `shards` is a folder that every worker can write to.

    `folder`: relative names of images are looked for here. `threads`: that one worker computes with.
    """

    bundle: Path
    operating_point: str | None
    engine: Engine
    batch_size: int
    threads: int
    folder: Path
    shards: Path
    gate: bool


class _Scorer:
    """One worker: scores shards, of which Ray Data sends it one after the other."""

    def __init__(self, scoring: Scoring) -> None:
        os.chdir(scoring.folder)
        self.scoring = scoring
        self.classifier: Classifier | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        files = [os.fsdecode(name) for name in bytes(row["files"]).split(b"\0")]
        try:
            return {"lines": self._write(int(row["shard"]), files), "fault": ""}
        except PneumoscopeError as error:  # as a value: Ray keeps the text of an error alone
            fault = (type(error).__name__, error.what, error.path, error.remedy)
            return {"lines": 0, "fault": json.dumps(fault)}

    def _write(self, shard: int, files: Sequence[str]) -> int:
        scoring = self.scoring
        if self.classifier is None:
            self.classifier = Classifier.load(
                scoring.bundle,
                operating_point=scoring.operating_point,
                engine=scoring.engine,
                threads=scoring.threads,
                gate=scoring.gate,
            )
        lines = list(self.classifier.predict(files, batch_size=scoring.batch_size, workers=scoring.threads))
        path = shard_file(scoring.shards, shard)
        with (
            storage_errors(path),
            atomic_path(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream,
        ):
            stream.writelines(as_line(line) for line in lines)
        return len(lines)


def shard_file(folder: Path, shard: int) -> Path:
    """Return where the lines of a shard are kept."""
    return folder / f"{shard:08d}.jsonl"


def score_archive(
    files: Sequence[str],
    out: Path,
    bundle: Bundle,
    *,
    operating_point: str | None = None,
    engine: Engine = "auto",
    batch_size: int = 16,
    shard_size: int = 1000,
    workers: int | None = None,
    address: str | None = None,
    gate: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write one line per file to `out`, in order, and return how many files could not be read.

    Args:
        files: names of images. On a cluster every worker must find them, the bundle and `out` under the same names.
        out: the lines. Until it is whole, finished shards lie in `OUT.shards`; the same call takes them up again.
        bundle: what answers.
        operating_point: the bundle's own by default.
        engine: as `open_runtime` takes it.
        batch_size: images per step of the network.
        shard_size: images per shard, which is what a killed worker loses.
        workers: processes, one per core of this machine by default; each computes with its share of these cores.
        address: of an existing Ray cluster (`auto`, `HOST:PORT`, `ray://…`); None starts one on the loopback device.
        gate: whether images unlike those the bundle learned from are refused.
        progress: told how many images are done, and of how many.

    Raises:
        BundleError: the bundle lacks the operating point, or cannot compute.
        ConfigError: Ray is not installed or its cluster cannot be reached, or `OUT.shards` belongs to another job.
        StorageError: the disk refused.
    """
    if out.is_dir():
        raise StorageError("is a folder, a file is needed here", path=out, remedy="choose another --jsonl")
    Classifier(bundle, operating_point=operating_point, engine=engine)  # what is wrong with it is told here and now
    folder = out.with_name(f"{out.name}.shards")
    count = -(-len(files) // shard_size)
    _claim(folder, files, bundle, operating_point, shard_size, gate)
    done = [shard for shard in range(count) if shard_file(folder, shard).is_file()]
    if done:
        logger.warning("%d of %d shards are there from an earlier run", len(done), count)
    todo = sorted(set(range(count)) - set(done))
    if todo:
        cores = os.cpu_count() or 1
        workers = workers or cores
        scoring = Scoring(
            bundle.folder.resolve(), operating_point, engine, batch_size, max(1, cores // workers), Path.cwd(),
            folder.resolve(), gate,
        )  # fmt: skip
        seen = sum(_size(shard, shard_size, len(files)) for shard in done)
        for lines in _computed(files, todo, scoring, shard_size, min(workers, len(todo)), address):
            seen += lines
            if progress:
                progress(seen, len(files))
    failed = _join([shard_file(folder, shard) for shard in range(count)], out, len(files))
    shutil.rmtree(folder)
    return failed


def _size(shard: int, shard_size: int, total: int) -> int:
    return min(shard_size, total - shard * shard_size)


def _claim(
    folder: Path, files: Sequence[str], bundle: Bundle, operating_point: str | None, shard_size: int, gate: bool
) -> None:
    """Write down what the shards are of; raise where those that are there are of something else."""
    plan = {
        "files": sha256_bytes(b"\0".join(os.fsencode(name) for name in files)),
        "bundle": bundle.sha256,
        "operating_point": operating_point,
        "shard_size": shard_size,
        "gate": gate,
    }
    if (folder / _PLAN).is_file():
        if read_json(folder / _PLAN) != plan:
            raise ConfigError(
                "holds shards of other images, another bundle or another --shard-size",
                path=folder,
                remedy="remove it to begin anew",
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise StorageError("is not empty, and holds no plan of ours", path=folder, remedy="choose another --jsonl")
    write_json(out_folder(folder) / _PLAN, plan)


def _computed(
    files: Sequence[str], shards: Sequence[int], scoring: Scoring, shard_size: int, workers: int, address: str | None
) -> Iterator[int]:
    """Yield the number of images in each shard as it is finished, in no particular order."""
    ray = _import_ray(address)
    items = [
        {"shard": shard, "files": b"\0".join(map(os.fsencode, files[shard * shard_size : (shard + 1) * shard_size]))}
        for shard in shards
    ]
    before = signal.getsignal(signal.SIGTERM)
    try:
        _start(ray, address, workers)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # A block per shard, so that a death costs one of them.
        data = ray.data.from_items(items, override_num_blocks=len(items))
        scored = data.map(
            _Scorer,
            fn_constructor_args=(scoring,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=scoring.threads if address else 0,
        )
        for row in scored.iter_rows():
            if row["fault"]:
                kind, what, path, remedy = json.loads(row["fault"])
                raise getattr(errors, kind)(what, path=path, remedy=remedy)
            yield int(row["lines"])
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray leaves its own, which ends the process


def _import_ray(address: str | None) -> Any:
    """Return the module, having told it to report to nobody, and to listen on the loopback device alone."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on every system: no cluster, hence loopback
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError("Ray is not installed", remedy='pip install "pneumoscope[ray]"') from error
    return ray


def _start(ray: Any, address: str | None, workers: int) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Only names and counts pass through Ray's shared memory, images do not.
        ray.init(
            num_cpus=max(2, workers), object_store_memory=_STORE, include_dashboard=False, **quiet,
        )  # fmt: skip
        return
    try:
        if address != "auto":  # Ray itself would try for minutes, and end the process
            parts = urlsplit(address if "//" in address else f"//{address}")
            socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        what = f"the Ray cluster at {address} cannot be reached ({reason})"
        raise ConfigError(what, remedy="ask `ray status` on its head") from error


def _join(shards: Sequence[Path], out: Path, expected: int) -> int:
    """Write all shards to one file, a line at a time; return how many lines tell of an error."""
    lines = failed = 0
    with storage_errors(out), atomic_path(out) as temporary, temporary.open("wb") as target:
        for path in shards:
            with path.open("rb") as source:
                for line in source:
                    lines += 1
                    failed += "error" in json.loads(line)
                    target.write(line)
        if lines != expected:
            raise StorageError(
                f"its shards hold {lines} lines for {expected} images", path=out, remedy="remove the shards, begin anew"
            )
    return failed
