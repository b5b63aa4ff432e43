"""Images that occur twice: the same pixels, or nearly the same.

Chest radiographs resemble each other, so a perceptual hash alone finds thousands of false pairs. Among the
13.5 million pairs of different images of the Kermany training set, 8,562 lie within distance 8, and none of
these correlates above .961 (.981 where the images are reduced to 28 pixels). Copies that were re-encoded,
halved, brightened, or changed in contrast or gamma were all found in a sample of 300; so were 86 % of
those cropped by 1 % on each side and 79 % of those turned by one degree. Larger crops and mirrored copies
are missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.records import FloatArray

MAX_DISTANCE = 8  # bits of 64
MIN_CORRELATION = 0.985
MAX_PAIRS = 100_000  # a film of near-identical frames would otherwise fill the memory

_ROWS = 128  # 128 x 50,000 distances at a time: 51 MB
_CANDIDATES = 4096


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows that show nearly the same image: hash distance in bits, Pearson correlation of thumbnails."""

    first: int
    second: int
    distance: int
    correlation: float


def same_groups(keys: Sequence[str]) -> list[list[int]]:
    """Return the groups of two or more rows with an equal key; empty keys belong to none."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key:
            rows.setdefault(key, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def near_pairs(
    hashes: NDArray[np.uint64],
    thumbs: NDArray[np.uint8],
    rows: NDArray[np.int64],
    *,
    max_distance: int = MAX_DISTANCE,
    min_correlation: float = MIN_CORRELATION,
) -> list[Pair]:
    """Return the pairs among `rows` whose hashes are close and whose thumbnails correlate.

    All pairs are compared, in blocks, so none is missed and the memory is bounded; 50,000 images take
    about half a minute. At most `MAX_PAIRS` pairs are returned.

    Args:
        hashes: uint64 [N], perceptual hashes.
        thumbs: uint8 [N, h, w].
        rows: int [M], the rows to compare (readable, one of each exactly equal group).
        max_distance: largest Hamming distance in bits.
        min_correlation: smallest Pearson correlation of the thumbnails, in -1..1.
    """
    pairs: list[Pair] = []
    chosen = hashes[rows]
    for start in range(0, len(rows), _ROWS):
        distance = np.bitwise_count(chosen[start : start + _ROWS, None] ^ chosen[None, start:])
        first, second = np.nonzero(distance <= max_distance)
        keep = first < second  # both count from `start`: each pair once
        first, second = first[keep], second[keep]
        for at in range(0, len(first), _CANDIDATES):
            a, b = first[at : at + _CANDIDATES], second[at : at + _CANDIDATES]
            alike = correlation(thumbs[rows[start + a]], thumbs[rows[start + b]])
            for k in np.flatnonzero(alike >= min_correlation):
                i, j = int(rows[start + a[k]]), int(rows[start + b[k]])
                pairs.append(Pair(i, j, int(distance[a[k], b[k]]), float(alike[k])))
        if len(pairs) >= MAX_PAIRS:
            return pairs[:MAX_PAIRS]
    return pairs


def correlation(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> FloatArray:
    """Return float32 [K], the Pearson correlation of K pairs of images [K, h, w]; 0 where one is constant."""
    a = first.reshape(len(first), -1).astype(np.float32)
    b = second.reshape(len(second), -1).astype(np.float32)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    product = np.einsum("ij,ij->i", a, b)
    result: FloatArray = np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
    return result
