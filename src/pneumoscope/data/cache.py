"""Decoded pixels on disk, so that an epoch never decodes a file again.

One folder per content: its name is a hash of the file contents and the geometry, so a changed image makes
a new cache and equal sets share one. Written under a lock to a temporary name and renamed: a killed
writer leaves nothing that looks finished, and of two writers the second finds the work done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from pneumoscope.errors import DataError, ImageError, StorageError, storage_errors
from pneumoscope.files import atomic_folder, home, read_json, sha256_file, write_json
from pneumoscope.images import in_archive, read_image
from pneumoscope.images.preparation import Crop, Pixels, to_canvas
from pneumoscope.records import Progress, Sample

_VERSION = 2  # part of the key: raise it when reading or resizing changes


@dataclass(frozen=True)
class PixelCache:
    """Decoded images of a list of samples.

    `pixels`: uint8 [M, canvas, canvas], memory-mapped, read-only; `rows[i]` is the row of sample i, or -1
    where it could not be read; `failed` maps its path to the reason.
    """

    pixels: Pixels
    rows: tuple[int, ...]
    failed: dict[str, str]
    folder: Path


def cache_root() -> Path:
    """Return `PNEUMOSCOPE_CACHE`, else `pneumoscope` below `$XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get("PNEUMOSCOPE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "pneumoscope"


def open_cache(
    samples: Sequence[Sample],
    *,
    canvas: int,
    aspect: str,
    crop: Crop | None = None,
    root: Path | None = None,
    progress: Progress | None = None,
) -> PixelCache:
    """Return the cache of these samples, made first where it is missing.

    Raises:
        DataError: not one image could be read.
        StorageError: the disk is full or not writable.
    """
    root = root or cache_root()
    digests, missing = _digests(samples)
    paths = {digest: sample.path for digest, sample in zip(digests, samples, strict=True) if digest}
    unique = sorted(paths)
    kind = [_VERSION, canvas, aspect, *([] if crop is None else [crop.name])]
    key = hashlib.sha256(json.dumps([*kind, unique]).encode()).hexdigest()[:32]
    folder = root / key
    if not (folder / "index.json").is_file():
        with storage_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f"{key}.lock"):
                if not (folder / "index.json").is_file():
                    _remove_unfinished(root, key)
                    _write(folder, [(digest, paths[digest]) for digest in unique], canvas, aspect, crop, progress)
    index, pixels = _read(folder)
    rows = tuple(index["rows"].get(digest, -1) for digest in digests)
    failed = {
        sample.path: index["failed"].get(digest) or missing[sample.path]
        for sample, digest, row in zip(samples, digests, rows, strict=True)
        if row < 0
    }
    if len(failed) == len(samples):
        raise DataError("not one image could be read", path=samples[0].path if samples else None, remedy=_first(failed))
    return PixelCache(pixels, rows, failed, folder)


def _first(failed: dict[str, str]) -> str:
    return next(iter(failed.values()), "the list is empty")


def _digests(samples: Sequence[Sample]) -> tuple[list[str], dict[str, str]]:
    """Return a content hash per sample, empty where the file cannot be read, and the reasons by path."""
    archives: dict[Path, str] = {}
    missing: dict[str, str] = {}

    def digest(sample: Sample) -> str:
        if archived := in_archive(sample.path):
            file, row = archived
            if file not in archives:
                archives[file] = sha256_file(file)
            return hashlib.sha256(f"{archives[file]}#{row}".encode()).hexdigest()
        return sha256_file(Path(sample.path))

    def digest_or_empty(sample: Sample) -> str:
        try:
            return digest(sample)
        except StorageError as error:
            missing[sample.path] = error.what
            return ""

    return [digest_or_empty(sample) for sample in samples], missing


def _read(folder: Path) -> tuple[dict[str, dict[str, Any]], Pixels]:
    try:
        index = read_json(folder / "index.json")
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    except (DataError, OSError, ValueError) as error:
        raise StorageError("the cache is damaged", path=folder, remedy="delete this folder") from error
    return index, pixels


def _remove_unfinished(root: Path, key: str) -> None:
    # Under the lock nobody else writes this key: an existing temporary was left by a killed writer.
    for stale in root.glob(f".{key}.*"):
        shutil.rmtree(stale, ignore_errors=True)


def _write(
    folder: Path,
    items: Sequence[tuple[str, str]],
    canvas: int,
    aspect: str,
    crop: Crop | None,
    progress: Progress | None,
) -> None:
    def decode(item: tuple[str, str]) -> Pixels | str:
        try:
            # Twice the canvas: a reduced decoding then still is resized with antialiasing.
            pixels = read_image(item[1], at_least=2 * canvas).pixels
            return to_canvas(crop(pixels) if crop else pixels, canvas, aspect)
        except ImageError as error:
            return error.what

    rows: dict[str, int] = {}
    failed: dict[str, str] = {}
    blank = np.zeros((canvas, canvas), np.uint8)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(items), canvas, canvas)}
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        # Written, not memory-mapped: on a full disk a write raises, a mapped page kills the process.
        with atomic_folder(folder) as temporary:
            with (temporary / "pixels.npy").open("wb") as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for row, ((digest, _), result) in enumerate(zip(items, pool.map(decode, items), strict=True)):
                    if isinstance(result, str):
                        failed[digest] = result
                    else:
                        rows[digest] = row
                    stream.write((blank if isinstance(result, str) else result).tobytes())
                    if progress:
                        progress(row + 1, len(items))
            write_json(temporary / "index.json", {"rows": rows, "failed": failed})
    finally:
        pool.shutdown(cancel_futures=True)
