"""One pass over the images of a manifest: everything that `describe` and `check` need from the pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.data.manifest import COLUMNS, Manifest
from pneumoscope.errors import ImageError, StorageError
from pneumoscope.files import sha256_file
from pneumoscope.images import read_image
from pneumoscope.records import FloatArray, Progress, Sample

FIELD = 192  # side of the square on which mean images are made
THUMB = 64  # side of the thumbnails that duplicates are verified on
BINS = 64
UNLABELLED = "unlabelled"


_DECODE_AT_LEAST = 256  # large JPEGs are decoded at a half, quarter or eighth, never below this side
_BATCH = 256


@dataclass(frozen=True)
class Scan:
    """Measurements of one pass over N images, in the order of the manifest.

    `table`: N rows, the columns of the manifest, then `name` (path relative to the source), `width`,
    `height` (stored pixels), `mode`, `format`, `bytes`, `sha256` (of the file), `pixels_sha256`, `mean`,
    `std` (pixel values in 0..1), `notes`, `error`; `error` is "" where the image was read.
    `thumbs`: uint8 [N, 64, 64], `hashes`: uint64 [N] (64-bit DCT hash), `histograms`: float32 [N, 64],
    share of the pixels per bin of 0..1. `fields`: label -> float64 [192, 192], sum of the images squashed
    to a square. Rows of unreadable images are zero.
    """

    manifest: Manifest
    table: pd.DataFrame
    thumbs: NDArray[np.uint8]
    hashes: NDArray[np.uint64]
    histograms: FloatArray
    fields: dict[str, NDArray[np.float64]]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Bool [N], true where the image could be read."""
        return np.asarray(self.table["error"] == "", dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class _Facts:
    bytes: float = float("nan")
    sha256: str = ""
    width: float = float("nan")
    height: float = float("nan")
    mode: str = ""
    format: str = ""
    pixels_sha256: str = ""
    mean: float = float("nan")
    std: float = float("nan")
    notes: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _PixelFacts:
    field: FloatArray
    thumb: NDArray[np.uint8]
    hash: int
    histogram: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    facts: _Facts
    pixels: _PixelFacts | None = None


def scan(manifest: Manifest, *, progress: Progress | None = None) -> Scan:
    """Decode every image of `manifest` once and measure it; unreadable images become rows with `error`.

    Args:
        manifest: the images.
        progress: called with (images done, images in all) after every batch.
    """
    n = len(manifest)
    thumbs = np.zeros((n, THUMB, THUMB), np.uint8)
    hashes = np.zeros(n, np.uint64)
    histograms = np.zeros((n, BINS), np.float32)
    fields: dict[str, NDArray[np.float64]] = {}
    facts: list[_Facts] = []
    for row, measured in enumerate(_measure_all(manifest)):
        facts.append(measured.facts)
        if (pixels := measured.pixels) is not None:
            thumbs[row], hashes[row], histograms[row] = pixels.thumb, pixels.hash, pixels.histogram
            label = manifest.samples[row].label or UNLABELLED
            fields.setdefault(label, np.zeros((FIELD, FIELD)))
            fields[label] += pixels.field
        if progress is not None and (len(facts) % _BATCH == 0 or len(facts) == n):
            progress(len(facts), n)
    return Scan(manifest, _table(manifest, facts), thumbs, hashes, histograms, fields)


def _measure_all(manifest: Manifest) -> Iterator[_Measured]:
    samples = manifest.samples
    # Rows of one archive share one decompressed array: threads would only load it several times.
    workers = 1 if manifest.kind == "medmnist" else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(samples), _BATCH):
            yield from pool.map(_measure, samples[start : start + _BATCH])


def _measure(sample: Sample) -> _Measured:
    file = Path(sample.path)
    file_facts: dict[str, Any] = {}
    try:
        image = read_image(sample.path, at_least=_DECODE_AT_LEAST)
        if file.is_file():  # a row of an archive is none
            file_facts = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    except (ImageError, StorageError) as error:
        return _Measured(_Facts(error=error.what))
    pixels = np.ascontiguousarray(image.pixels)
    digest = hashlib.sha256(f"{image.width}x{image.height} {pixels.shape}".encode())
    digest.update(pixels.data)
    facts = _Facts(
        **file_facts,
        width=image.width,
        height=image.height,
        mode=image.mode,
        format=image.format,
        pixels_sha256=digest.hexdigest(),
        mean=float(pixels.mean()),
        std=float(pixels.std()),
        notes="; ".join(image.notes),
    )
    field = np.asarray(Image.fromarray(pixels).resize((FIELD, FIELD), Image.Resampling.BILINEAR))
    square = np.clip(field * 255, 0, 255).round().astype(np.uint8)
    step = FIELD // THUMB
    thumb = square.reshape(THUMB, step, THUMB, step).mean(axis=(1, 3)).round().astype(np.uint8)
    counts, _ = np.histogram(pixels, bins=BINS, range=(0, 1))
    share = (counts / pixels.size).astype(np.float32)
    return _Measured(facts, _PixelFacts(field, thumb, _hash(square), share))


def _hash(square: NDArray[np.uint8]) -> int:
    bits = imagehash.phash(Image.fromarray(square)).hash
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def _table(manifest: Manifest, facts: list[_Facts]) -> pd.DataFrame:
    base = manifest.source if manifest.source.is_dir() else manifest.source.parent
    columns = manifest.frame()[list(COLUMNS)]
    names = [os.path.relpath(path, base) for path in columns["path"]]
    measured = pd.DataFrame([asdict(fact) for fact in facts], columns=list(_Facts.__dataclass_fields__))
    return pd.concat([columns, pd.Series(names, name="name", dtype=object), measured], axis=1)
