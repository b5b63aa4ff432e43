"""Bets on every image: conformal p values, a Simple Jumper, and the Shiryaev-Roberts e-detector.

A p value is the rank of an image among the reference and all images before it, ties broken at random: independent and
uniform while nothing changes, whatever the size of the reference (Vovk et al., Algorithmic Learning in a Random World
2022, 8.2). The sum of bets started at each image exceeds a threshold no oftener than once in as many images (Shin,
Ramdas and Rinaldo, NEJSDS 2024). Because images join the bag, a slow drift is absorbed: windows see that. Of a
patient who comes again within some thousand patients only the first image counts, because images of one patient are
alike.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.files import sha256_bytes
from pneumoscope.monitoring.detector import Budget, Detection, stamp
from pneumoscope.monitoring.reference import Reference
from pneumoscope.monitoring.stream import Rows
from pneumoscope.monitoring.streams import FAR, Column, values_of
from pneumoscope.records import Floats, Ints

BETS = np.array([-1.8, -0.6, 0.6, 1.8])  # e = 1 + bet (p - 1/2), a martingale while |bet| <= 2
JUMP = 0.001
BINS = 512
REMEMBERED = 3_000  # patients
_PIECE = 256
_HUGE = 1e200


class Sequential:
    """One bag and one e-detector for each stream that is marked `quick`."""

    name = "sequential"

    def __init__(self, reference: Reference, budget: Budget, state: Mapping[str, Any] | None = None) -> None:
        self.budget = budget
        self.places = quick_places(reference)
        self.columns: list[Column] = [reference.columns[place] for place in self.places]
        self.threshold = budget.sequential(len(self.places))
        streams = len(self.places)
        self._usual = np.array([np.nanmean(reference.values[:, place]) for place in self.places])
        if state is None:
            self._after = 0
            self._bag = starting_bag(reference, self.places)
            self.capital = np.zeros((streams, BETS.size))
            self._sums = np.zeros((streams, BETS.size))
            self._since = [(0, 0)] * streams
            self._seen = np.zeros((streams, 2))  # images since then, and the sum of their values
            self._patients: deque[str] = deque(maxlen=REMEMBERED)
        else:
            self._after = int(state["after"])
            self._bag = np.frombuffer(base64.b64decode(state["bag"]), "<i4").reshape(streams, BINS).astype(np.int64)
            self.capital = np.array(state["capital"], np.float64).reshape(streams, BETS.size)
            self._sums = np.array(state["cusum"], np.float64).reshape(streams, BETS.size)
            self._since = [(int(row), int(at)) for row, at in state["since"]]
            self._seen = np.array(state["seen"], np.float64).reshape(streams, 2)
            self._patients = deque(state["patients"], maxlen=REMEMBERED)
        self._known = set(self._patients)

    @property
    def after(self) -> int:
        """The last row that was bet on."""
        return self._after

    def state(self) -> dict[str, Any]:
        """Return plain JSON; floats are written in full, so that going on is exact."""
        return {
            "after": self._after,
            "bag": base64.b64encode(self._bag.astype("<i4").tobytes()).decode("ascii"),
            "capital": self.capital.tolist(),
            "cusum": self._sums.tolist(),
            "since": [list(pair) for pair in self._since],
            "seen": self._seen.tolist(),
            "patients": list(self._patients),
        }

    def step(self, rows: Rows) -> list[Detection]:
        """Take rows; those up to `after` are ignored."""
        rows = rows.take(rows.row > self._after)
        if not len(rows) or not self.places:
            self._after = max(self._after, int(rows.row[-1]) if len(rows) else 0)
            return []
        fresh = rows.take(self._first_of_patients(rows))
        values = values_of(fresh, self.columns)
        uniform = _uniforms(fresh.row, len(self.places), self.budget.seed)
        found: list[Detection] = []
        for start in range(0, len(fresh), _PIECE):
            part = slice(start, start + _PIECE)
            p = ranked(self._bag, binned(values[part]), uniform[part])
            for index in range(len(p)):
                found += self._bet(p[index], values[start + index], fresh, start + index)
        self._after = int(rows.row[-1])
        return found

    def _first_of_patients(self, rows: Rows) -> NDArray[np.bool_]:
        names = np.where(rows.text["patient"] != "", rows.text["patient"], rows.text["study"])
        kept = np.ones(len(rows), bool)
        for index, name in enumerate(names.tolist()):
            if not name:
                continue
            digest = sha256_bytes(name.encode())[:10]
            if digest in self._known:
                kept[index] = False
                continue
            if len(self._patients) == REMEMBERED:
                self._known.discard(self._patients[0])
            self._patients.append(digest)
            self._known.add(digest)
        return kept

    def _bet(self, p: Floats, values: Floats, rows: Rows, index: int) -> list[Detection]:
        present = np.isfinite(p)
        factor = np.where(present[:, None], 1 + BETS * (np.where(present, p, 0.5)[:, None] - 0.5), 1.0)
        self.capital = grown(self.capital, factor, present)
        restart = (self._sums.sum(axis=1) < 1) & present
        for stream in np.flatnonzero(restart):
            self._sums[stream] = 1 / BETS.size
            self._since[stream] = (int(rows.row[index]), int(rows.at[index].astype(np.int64)))
            self._seen[stream] = 0
        self._sums = np.minimum(jumped(self._sums) * factor, _HUGE)
        self._seen[:, 0] += present
        self._seen[:, 1] += np.where(present, values, 0.0)
        passed = self.capital.sum(axis=1) >= self.threshold
        return [] if not passed.any() else self._alarms(np.flatnonzero(passed), rows, index)

    def _alarms(self, passed: Ints, rows: Rows, index: int) -> list[Detection]:
        found = []
        for stream in passed:
            column = self.columns[stream]
            count, total = self._seen[stream]
            now, usual = float(total / max(1.0, count)), float(self._usual[stream])
            if abs(now - usual) < column.margin:
                continue  # it moved, by less than anybody would mind
            row, at = self._since[stream]
            evidence = {
                "statistic": float(self.capital[stream].sum()), "threshold": self.threshold, "images": int(count),
                "now": now, "usual": usual,
            }  # fmt: skip
            now_row, now_at = int(rows.row[index]), stamp(rows.at[index])
            found.append(
                Detection(
                    self.name,
                    column.family,
                    [column.name],
                    now_row,
                    row,
                    now_at,
                    stamp(np.datetime64(at, "ms")),
                    evidence,
                )
            )
            self.capital[stream], self._sums[stream] = 0.0, 0.0
        return found


def quick_places(reference: Reference) -> list[int]:
    """Return which columns are bet on."""
    return [place for place, column in enumerate(reference.columns) if column.quick]


def jumped(capital: Floats) -> Floats:
    """Return capital [..., bets] after a share `JUMP` of it was put on all bets alike."""
    return np.asarray((1 - JUMP) * capital + JUMP / BETS.size * capital.sum(axis=-1, keepdims=True))


def grown(capital: Floats, factor: Floats, present: Any) -> Floats:
    """Return the Shiryaev-Roberts sums [..., bets] after an image, a new bettor of capital 1 starting at each."""
    after = np.minimum((jumped(capital) + 1 / BETS.size) * factor, _HUGE)
    return np.asarray(np.where(present[..., None], after, capital))


def ranked(bag: Ints, bins: Ints, uniform: Floats) -> Floats:
    """Return conformal p values [t, s] of images in their order, and put them into the bag [s, BINS] in place.

    `bins`: [t, s], -1 where absent (p is NaN there); `uniform`: [t, s] in 0..1. Small p: larger than usual.
    """
    above = np.concatenate([bag[:, ::-1].cumsum(axis=1)[:, ::-1], np.zeros((len(bag), 1), np.int64)], axis=1)
    total, streams = bag.sum(axis=1), np.arange(len(bag))
    p = np.full(bins.shape, np.nan)
    for stream in streams:
        here = np.flatnonzero(bins[:, stream] >= 0)
        mine = bins[here, stream]
        before = np.tri(mine.size, k=-1, dtype=bool)
        larger = above[stream, mine + 1] + ((mine[None] > mine[:, None]) & before).sum(axis=1)
        equal = bag[stream, mine] + ((mine[None] == mine[:, None]) & before).sum(axis=1)
        p[here, stream] = (larger + uniform[here, stream] * (equal + 1)) / (total[stream] + np.arange(mine.size) + 1)
        bag[stream] += np.bincount(mine, minlength=BINS)
    return p


def binned(values: Floats) -> Ints:
    """Return the bins of values, int64, -1 where absent; a bin is 1/42 of a standard deviation wide."""
    scaled = (np.clip(values, -FAR, FAR) + FAR) / (2 * FAR) * (BINS - 1)
    return np.where(np.isfinite(values), np.nan_to_num(scaled), -1).astype(np.int64)


def starting_bag(reference: Reference, places: list[int]) -> Ints:
    """Return how many patients' first images of the reference lie in each bin, int64 [s, BINS]."""
    first = np.unique(reference.patients, return_index=True)[1]
    bins = binned(reference.values[first][:, places])
    return (
        np.stack([np.bincount(column[column >= 0], minlength=BINS) for column in bins.T])
        if places
        else np.zeros((0, BINS), np.int64)
    )


def _uniforms(rows: Ints, streams: int, seed: int) -> Floats:
    """Return numbers in 0..1, [t, s], that depend on the row, the stream and the seed alone (splitmix64)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        x = rows.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
        x = x + np.arange(1, streams + 1, dtype=np.uint64)[None] * np.uint64(0xD1B54A32D192ED03) + np.uint64(seed)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)
