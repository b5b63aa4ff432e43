"""Fingerprints of the images that a bundle learned from, was tuned on, or kept for its test: the file and its search.

    content   uint8 [n, 8]    first bytes of HMAC-SHA-256 of the file's hash
    look      uint8 [n, 32]   bits that survive encoding, scaling and a slight crop (`images.alike`)
    part      uint8 [n]       index into `PARTS`

At most `MOST` images are kept, those of the smallest `content`: of more, a share that is known. No image can be made
from its fingerprint. Who has an image can ask whether it is in the list: that is what the list is for.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pneumoscope.errors import BundleError
from pneumoscope.images.alike import BYTES, SAME, Projection, in_threads, look_of, signs_of
from pneumoscope.records import SPLITS, FloatArray, Progress

PARTS = (*SPLITS, "adapted")
MOST = 8192  # fingerprints in a bundle: 336 kB

_CONTENT = 8
_SALT = 16
_ORDER = ("train", "adapted", "val", "test")  # the first in which a copy lies is named


@dataclass(frozen=True, slots=True)
class Match:
    """A copy of an image in the list: its part, and `content` or `look`, how it was recognised."""

    part: str
    by: str


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """The list. `totals`: images of each part, more than are kept where there are more than `MOST`."""

    salt: bytes
    content: NDArray[np.uint8]
    look: NDArray[np.uint8]
    part: NDArray[np.uint8]
    totals: dict[str, int]

    @property
    def share(self) -> float:
        """Share of the images that are kept, 0..1."""
        return len(self.part) / max(1, sum(self.totals.values()))

    @cached_property
    def _signs(self) -> FloatArray:
        return signs_of(self.look)

    @cached_property
    def _by_content(self) -> dict[bytes, list[int]]:
        rows: dict[bytes, list[int]] = {}
        for row, key in enumerate(self.content):
            rows.setdefault(key.tobytes(), []).append(row)
        return rows

    def matches(self, paths: Sequence[str], *, progress: Progress | None = None) -> list[Match | None]:
        """Return for each image whether a copy of it is in the list; None too where it cannot be read."""
        projection = Projection(self.salt)

        def match(path: str) -> Match | None:
            look = look_of(path)
            if look is None:
                return None
            if rows := self._by_content.get(_keyed(self.salt, look[0])):
                return Match(self._first(rows), "content")
            near = np.flatnonzero(projection.similarity(look[1], self._signs) >= SAME)
            return Match(self._first(near.tolist()), "look") if near.size else None

        return list(in_threads(match, paths, progress))

    def _first(self, rows: Iterable[int]) -> str:
        return min((PARTS[self.part[row]] for row in rows), key=_ORDER.index)

    def joined(self, other: Fingerprints) -> Fingerprints:
        """Return this list with another's images, which have the same salt."""
        totals = {name: self.totals.get(name, 0) + other.totals.get(name, 0) for name in PARTS}
        content, look, part = (
            np.concatenate([getattr(each, name) for each in (self, other)]) for name in ("content", "look", "part")
        )
        return _least(self.salt, content, look, part, totals)

    def to_bytes(self) -> bytes:
        """Return the file's bytes, the same for the same images."""
        return save({"content": self.content, "look": self.look, "part": self.part})

    def section(self) -> dict[str, Any]:
        """Return the card's section."""
        return {"salt": self.salt.hex(), "images": dict(self.totals), "kept": len(self.part)}


def fingerprints_of(
    paths: Sequence[str], parts: Sequence[str], *, salt: bytes | None = None, progress: Progress | None = None
) -> Fingerprints:
    """Return the fingerprints of images that belong to `parts`, of `PARTS`; those that cannot be read are left out.

    `salt`: by default one that follows from the images, so that the same division gives the same file.
    """
    looks = list(in_threads(look_of, paths, progress))
    known = [(look, PARTS.index(part)) for look, part in zip(looks, parts, strict=True) if look is not None]
    if salt is None:
        salt = hashlib.sha256(b"".join(sorted(content for (content, _), _ in known))).digest()[:_SALT]
    projection = Projection(salt)
    content = [np.frombuffer(_keyed(salt, content), np.uint8) for (content, _), _ in known]
    look = [projection.bits(square) for (_, square), _ in known]
    totals = {name: sum(part == PARTS.index(name) for _, part in known) for name in PARTS}
    return _least(
        salt,
        np.array(content, np.uint8).reshape(-1, _CONTENT),
        np.array(look, np.uint8).reshape(-1, BYTES),
        np.array([part for _, part in known], np.uint8),
        totals,
    )


def read_fingerprints(data: bytes, section: Mapping[str, Any], folder: Path) -> Fingerprints:
    """Read the file of a bundle in `folder` with its card's section; raises `BundleError` where they do not fit."""
    try:
        tensors = load(data)
        content, look, part = (tensors[name] for name in ("content", "look", "part"))
        shapes = (len(part), _CONTENT), (len(part), BYTES)
        if (content.shape, look.shape) != shapes or any(a.dtype != np.uint8 for a in tensors.values()):
            raise ValueError("its arrays have other shapes")
        totals = {name: int(section["images"].get(name, 0)) for name in PARTS}
        return Fingerprints(bytes.fromhex(section["salt"]), content, look, part, totals)
    except (AttributeError, KeyError, SafetensorError, TypeError, ValueError) as error:
        raise BundleError(
            f"the fingerprints are not of this version ({error})", path=folder, remedy="update Pneumoscope"
        ) from error


def _keyed(salt: bytes, content: bytes) -> bytes:
    return hmac.new(salt, content, "sha256").digest()[:_CONTENT]


def _least(
    salt: bytes,
    content: NDArray[np.uint8],
    look: NDArray[np.uint8],
    part: NDArray[np.uint8],
    totals: dict[str, int],
) -> Fingerprints:
    """Keep the `MOST` smallest contents: a draw that the salt makes, whatever the order of the images."""
    order = np.lexsort((part, *content.T[::-1]))[:MOST]
    return Fingerprints(salt, content[order], look[order], part[order], totals)
