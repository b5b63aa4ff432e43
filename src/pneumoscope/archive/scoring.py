"""Scoring an archive with Ray Data: in shards, on one machine or on a cluster, resumed where it stopped.

A shard is a run of consecutive inputs. Its worker writes its lines to a file of its own, whole or not at all: when a
worker dies, its shard is computed again, and no line is lost or doubled.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pneumoscope.archive.cluster import Scoring, computed, shard_file
from pneumoscope.bundle.bundle import Bundle
from pneumoscope.bundle.runtime import Engine
from pneumoscope.errors import ConfigError, StorageError, storage_errors
from pneumoscope.files import atomic_path, out_folder, read_json, sha256_bytes, write_json
from pneumoscope.predict import Classifier
from pneumoscope.records import Progress

_PLAN = "plan.json"
logger = logging.getLogger(__name__)


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
    progress: Progress | None = None,
) -> int:
    """Write one line per file to `out`, in order, and return how many files could not be read.

    Args:
        files: names of images. On a cluster every worker must find them, the bundle and `out` under the same names.
        out: the lines. Until it is whole, finished shards are in `OUT.shards`; the same call resumes from them.
        bundle: its predictions are written.
        operating_point: the bundle's own by default.
        engine: as `open_runtime` takes it.
        batch_size: images per step of the network.
        shard_size: images per shard, which is what a killed worker loses.
        workers: processes, one per core of this machine by default; each computes with its share of these cores.
        address: of an existing Ray cluster (`auto`, `HOST:PORT`, `ray://…`); None starts one on the loopback device.
        gate: whether images unlike those the bundle learned from are refused.
        progress: called with the number of images done, and of all.

    Raises:
        BundleError: the bundle lacks the operating point, or cannot compute.
        ConfigError: Ray is not installed or its cluster cannot be reached, or `OUT.shards` belongs to another job.
        StorageError: the disk refused.
    """
    if out.is_dir():
        raise StorageError("is a folder, a file is needed here", path=out, remedy="choose another --jsonl")
    Classifier(bundle, operating_point=operating_point, engine=engine)  # its faults are raised before any work
    folder = out.with_name(f"{out.name}.shards")
    count = -(-len(files) // shard_size)
    _claim(folder, files, bundle, operating_point, shard_size, gate)
    done = [shard for shard in range(count) if shard_file(folder, shard).is_file()]
    if done:
        logger.warning("%d of %d shards were finished by an earlier run", len(done), count)
    todo = sorted(set(range(count)) - set(done))
    if todo:
        cores = os.cpu_count() or 1
        workers = workers or cores
        scoring = Scoring(
            bundle=str(bundle.folder.resolve()),
            operating_point=operating_point,
            engine=engine,
            batch_size=batch_size,
            threads=max(1, cores // workers),
            folder=str(Path.cwd()),
            shards=str(folder.resolve()),
            gate=gate,
        )
        shards = [(shard, files[shard * shard_size : (shard + 1) * shard_size]) for shard in todo]
        seen = sum(_size(shard, shard_size, len(files)) for shard in done)
        for lines in computed(shards, scoring, min(workers, len(todo)), address):
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
    """Write the plan of the shards; raise where the folder holds shards of another plan."""
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


def _join(shards: Sequence[Path], out: Path, expected: int) -> int:
    """Write all shards to one file, a line at a time; return how many lines hold an error."""
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
