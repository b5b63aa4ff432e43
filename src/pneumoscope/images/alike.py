"""Copies of an image: the hash of its content, and bits that survive encoding, scaling and a slight crop.

The bits are signs of random projections (Charikar 2002, doi:10.1145/509907.509965) of the low frequencies of the
image, weighted so that fine ones count as much as coarse ones, with the border faded out. A copy may be cut, so an
image is also compared as if up to 5 % were missing at its edges, or as if up to 4 % had been added.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.errors import ImageError, StorageError
from pneumoscope.files import sha256_file
from pneumoscope.images import in_archive, read_image
from pneumoscope.images.preparation import Pixels
from pneumoscope.records import FloatArray, Progress

SAME = 0.95  # similarity from which two images are copies; of different patients the most alike stay below
BYTES = 32  # of the bits of an image
AT_LEAST = 192  # sides at which a large JPEG may be decoded

_SIDE = 96
_FREQUENCIES = 24
_SAMPLES = 64
_FADE = 0.1  # of the side
_FLATTEST = 1.0  # standard deviation of grey (0..255) under which an image shows nothing
_SCREEN = 0.4  # similarity, as it is or roughly aligned, under which no closer look is taken
_BOTH = (0.01, 0.02, 0.03, 0.04, 0.05, -0.02, -0.04)
_ONE = (0.02, 0.04)
_EDGES = ((0.0, 0.0), (0.03, 0.03), (-0.03, -0.03))  # the first three screen
_GRID = (
    *((0.0, 0.0), *((cut, cut) for cut in _BOTH)),
    *((cut, 0.0) for cut in _ONE),
    *((0.0, cut) for cut in _ONE),
)

_BATCH = 256

Bits = NDArray[np.uint8]
T = TypeVar("T")


def content_of(path: str) -> bytes:
    """Return the SHA-256 of a file, or of the pixels of an archive's row, 32 bytes.

    Raises:
        ImageError, StorageError: it cannot be read.
    """
    if in_archive(path) is None:
        return bytes.fromhex(sha256_file(Path(path)))
    pixels = np.round(read_image(path).pixels * 255).astype(np.uint8)
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()


def square_of(path: str) -> Pixels | None:
    """Return an image as a small square, uint8 [96, 96], which `Projection` takes; None where it shows nothing.

    Raises:
        ImageError: it cannot be read.
    """
    grey = np.clip(read_image(path, at_least=AT_LEAST).pixels * 255, 0, 255).astype(np.float32)
    square = np.asarray(Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)).round()
    return None if square.std() < _FLATTEST else square.astype(np.uint8)


def look_of(path: str) -> tuple[bytes, Pixels | None] | None:
    """Return `content_of` and `square_of` an image, or None where it cannot be read."""
    try:
        return content_of(path), square_of(path)
    except (ImageError, StorageError):
        return None


def in_threads(function: Callable[[str], T], paths: Sequence[str], progress: Progress | None = None) -> Iterator[T]:
    """Yield `function` of each path, in order; `progress` is called with (done, in all)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), _BATCH):
            for done, result in enumerate(pool.map(function, paths[start : start + _BATCH]), start=start + 1):
                if progress is not None:
                    progress(done, len(paths))
                yield result


class Projection:
    """The random directions that belong to a salt: without it the bits of two lists cannot be joined."""

    def __init__(self, salt: bytes) -> None:
        count = _FREQUENCIES**2 * BYTES * 8
        signs = np.unpackbits(np.frombuffer(hashlib.shake_256(salt).digest(count // 8), np.uint8))
        self._directions = (2.0 * signs - 1).astype(np.float32).reshape(_FREQUENCIES**2, BYTES * 8)

    def bits(self, square: Pixels | None) -> Bits:
        """Return the bits of a square, uint8 [32]; all zero where it is None."""
        if square is None:
            return np.zeros(BYTES, np.uint8)
        return np.packbits(self._projected(square, _EDGES[:1])[0] > 0)

    def similarity(self, square: Pixels | None, signs: FloatArray) -> FloatArray:
        """Return how alike an image is to each of n others, float32 [n] in 0..1; negatives of each other are alike.

        `signs`: of the others' bits, as `signs_of` gives them. What is far from alike is 0.
        """
        result = np.zeros(len(signs), np.float32)
        if square is None or not len(signs):
            return result
        roughly = np.abs(self._projected(square, _EDGES) @ signs.T).max(axis=0)
        near = np.flatnonzero(roughly >= _SCREEN)
        if near.size:
            result[near] = np.abs(self._projected(square, _GRID) @ signs[near].T).max(axis=0)
        return result

    def _projected(self, square: Pixels, edges: tuple[tuple[float, float], ...]) -> FloatArray:
        """Return float32 [v * v, bits]: projections as if the edges had been cut, by absolute values summing to 1."""
        axes = _axes(edges)
        centred = square.astype(np.float32) - np.float32(square.mean())
        rows = axes @ centred  # (v, K, S)
        waves = np.einsum("vks,wls->vwkl", rows, axes, optimize=True) * _weights()
        values = waves.reshape(-1, _FREQUENCIES**2) @ self._directions
        total = np.abs(values).sum(axis=1, keepdims=True)
        return np.asarray(values / np.maximum(total, np.finfo(np.float32).tiny), np.float32)


def signs_of(bits: Bits) -> FloatArray:
    """Return the bits uint8 [n, 32] as float32 [n, 256] of -1 and 1; 0 where an image shows nothing."""
    signs = np.unpackbits(bits, axis=1).astype(np.float32) * 2 - 1
    signs[~bits.any(axis=1)] = 0
    return signs


@lru_cache(maxsize=4)
def _axes(edges: tuple[tuple[float, float], ...]) -> FloatArray:
    """Return float32 [v, K, S]: from a row of pixels to cosines of the row as if its ends had been cut by `edges`."""
    at = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    fade = np.clip(np.minimum(at, 1 - at) / _FADE, 0, 1)
    wave = np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * at) * (0.5 - 0.5 * np.cos(np.pi * fade))
    matrices = []
    for first, last in edges:
        column = np.clip((at - first) / (1 - first - last), 0, 1) * _SIDE - 0.5
        left = np.clip(np.floor(column).astype(int), 0, _SIDE - 2)
        share = np.clip(column - left, 0, 1)
        pick = np.zeros((_SAMPLES, _SIDE))
        pick[np.arange(_SAMPLES), left] += 1 - share
        pick[np.arange(_SAMPLES), left + 1] += share
        matrices.append(wave @ pick)
    return np.stack(matrices).astype(np.float32)


@lru_cache(maxsize=1)
def _weights() -> FloatArray:
    """Return float32 [K, K]: radiographs lose power with frequency to the 1.5th, the mean counts for nothing."""
    u = np.arange(_FREQUENCIES)
    return np.asarray(np.hypot(u[:, None], u) ** 1.5, np.float32)
