"""Copies of one image under several names or patients: whose they are, and what they would do to a division."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.data.cache import cache_root
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, ImageError, StorageError
from pneumoscope.files import read_json, write_json
from pneumoscope.images.alike import SAME, Projection, content_of, in_threads, signs_of, square_of
from pneumoscope.images.preparation import Pixels
from pneumoscope.records import LABELS, Progress

UNREAD: Literal["unread"] = "unread"
UNREADABLE = 0.05  # share of a class, above which a result is void

_SALT = b"copies in a source"  # the bits are compared with each other only
_MANY = 20_000  # images, above which only those compared in full that are close as they are
_REACH_OF_MANY = 40  # bits of 256
_ROWS = 64


@dataclass(frozen=True)
class Copies:
    """A source whose copies have one patient. `groups`: rows that show one image; `says`: a sentence for each doubt."""

    manifest: Manifest
    groups: tuple[tuple[int, ...], ...]
    says: tuple[str, ...]


def join_copies(manifest: Manifest, *, progress: Progress | None = None) -> Copies:
    """Give all copies of an image, and all images of their patients, one patient: the first in the order of names.

    Copies are equal byte for byte, or show the same although they were encoded anew, scaled or cut by up to 5 %. A
    source without copies of other patients' images comes back as it is.

    Raises:
        DataError: one file, byte for byte, has both labels.
    """
    contents = list(in_threads(_content, [sample.path for sample in manifest.samples]))
    equal = _equal(contents)
    _require_one_label(manifest, equal)
    near, unread = _kept_near(manifest, contents, progress)
    groups = _united(len(contents), [*((group[0], row) for group in equal for row in group[1:]), *near])
    patients = sorted({sample.patient_id for sample in manifest.samples})
    position = {patient: at for at, patient in enumerate(patients)}
    members = [[position[manifest.samples[row].patient_id] for row in group] for group in groups]
    joined = _united(len(patients), [(group[0], other) for group in members for other in group[1:]])
    known_as = {patients[at]: patients[min(group)] for group in joined for at in group}
    says = [*_unread(manifest, unread), *_in_words(manifest, groups, joined)]
    if known_as:
        samples = (replace(s, patient_id=known_as.get(s.patient_id, s.patient_id)) for s in manifest.samples)
        manifest = replace(manifest, samples=tuple(samples))
    return Copies(manifest, tuple(tuple(group) for group in groups), tuple(says))


def _content(path: str) -> bytes:
    try:
        return content_of(path)
    except (ImageError, StorageError):
        return b""


def _square(path: str) -> Pixels | Literal["unread"] | None:
    try:
        return square_of(path)
    except ImageError:
        return UNREAD


def _equal(contents: Sequence[bytes]) -> list[list[int]]:
    rows: dict[bytes, list[int]] = {}
    for row, content in enumerate(contents):
        if content:
            rows.setdefault(content, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def _require_one_label(manifest: Manifest, equal: Sequence[Sequence[int]]) -> None:
    for group in equal:
        samples = [manifest.samples[row] for row in group]
        other = next((s for s in samples if s.label and samples[0].label and s.label != samples[0].label), None)
        if other is not None:
            raise DataError(
                f"is {samples[0].label}, and byte for byte the same as {other.path}, which is {other.label}",
                path=samples[0].path,
                remedy="remove the wrong one; `pneumoscope data check` lists all of them",
            )


def _kept_near(
    manifest: Manifest, contents: Sequence[bytes], progress: Progress | None
) -> tuple[list[tuple[int, int]], set[int]]:
    """Return pairs of rows that show the same, and the rows that cannot be read: kept beside the pixel cache.

    Of equal files only the first is compared.
    """
    rows: dict[str, int] = {}
    for row, content in enumerate(contents):
        rows.setdefault(content.hex(), row)
    rows.pop("", None)
    key = hashlib.sha256("".join([_SALT.decode(), str(SAME), *sorted(rows)]).encode()).hexdigest()[:32]
    file = cache_root() / f"copies-{key}.json"
    if not file.is_file():
        names = list(rows)
        squares = list(in_threads(_square, [manifest.samples[row].path for row in rows.values()], progress))
        near = [(names[a], names[b]) for a, b in _near([None if isinstance(s, str) else s for s in squares])]
        write_json(
            file, {"near": near, "unread": [n for n, s in zip(names, squares, strict=True) if isinstance(s, str)]}
        )
    kept = read_json(file)
    broken = set(kept["unread"])
    unread = {row for row, content in enumerate(contents) if not content or content.hex() in broken}
    return [(rows[a], rows[b]) for a, b in kept["near"]], unread


def _near(squares: Sequence[Pixels | None]) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions that show the same."""
    projection = Projection(_SALT)
    rows = np.array([row for row, square in enumerate(squares) if square is not None], np.int64)
    if not rows.size:
        return
    bits = np.stack([projection.bits(squares[row]) for row in rows])
    signs, words = signs_of(bits), bits.view(np.uint64)
    reach = 8 * bits.shape[1] if rows.size <= _MANY else _REACH_OF_MANY
    for start in range(0, rows.size, _ROWS):
        apart = _distances(words[start : start + _ROWS], words[start:])
        for at, distance in enumerate(apart):
            close = start + np.flatnonzero(distance <= reach)
            close = close[close > start + at]
            alike = projection.similarity(squares[rows[start + at]], signs[close]) >= SAME
            yield from ((int(rows[start + at]), int(rows[other])) for other in close[alike])


def _distances(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return Hamming distances int [n, m] of rows of words."""
    total = np.zeros((len(first), len(second)), np.int64)
    for word in range(first.shape[1]):
        total += np.bitwise_count(first[:, None, word] ^ second[None, :, word])
    return total


def _united(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of two or more of `count` things that pairs connect, each ascending."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for item in range(count):
        groups.setdefault(root(item), []).append(item)
    return [group for group in groups.values() if len(group) > 1]


def _unread(manifest: Manifest, unread: Collection[int]) -> Iterator[str]:
    for label in LABELS:
        of_class = [row in unread for row, sample in enumerate(manifest.samples) if sample.label == label]
        lost = sum(of_class)
        if lost > UNREADABLE * len(of_class):
            yield f"{lost:,} of {len(of_class):,} images of {label} cannot be read: what is left is no sample of them"


def _in_words(manifest: Manifest, groups: Sequence[Sequence[int]], joined: Sequence[Sequence[int]]) -> Iterator[str]:
    if not groups:
        return
    crossing = sum(len({manifest.samples[row].patient_id for row in group}) > 1 for group in groups)
    if crossing:
        patients = sum(len(group) for group in joined)
        yield (
            f"{crossing:,} images occur under several patients, {patients:,} of them; "
            f"these count as {len(joined):,}, so that no copy crosses the division"
        )
    mixed = [group for group in groups if len({manifest.samples[row].label for row in group}) > 1]
    if mixed:
        first = " and ".join(manifest.samples[row].path for row in mixed[0][:2])
        yield f"{len(mixed):,} images that look the same have both labels, such as {first}"
