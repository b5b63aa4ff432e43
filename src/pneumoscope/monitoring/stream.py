"""The journal as the monitor reads it: columns in append order. What a journal lacks is missing, not an error.

The only module of the room that knows the journal's columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pneumoscope.errors import DataError
from pneumoscope.journal.columns import ANSWERS, DECISIONS, LABELS, TYPES
from pneumoscope.journal.journal import Journal
from pneumoscope.records import NORMAL, PNEUMONIA, Bools, Floats, Ints

Texts = NDArray[np.str_]
Times = NDArray[np.datetime64]
PIECE = 20_000  # rows read at once
OLD = 30.0  # days; an image taken so long before its answer comes from an archive
REPEATED = "repeated"  # ends the name of a sample that compares readers: no sample of studies
_BACK = np.timedelta64(1, "D")  # several workers append in nearly the order of time; more is a wrong clock

_TEXT = {
    "key": "key", "study": "study", "patient": "patient", "device": "device", "site": "site",
    "bundle": "bundle_sha256", "name": "bundle", "view": "covariates.view", "sex": "covariates.sex",
    "refused": "quality.refused_by", "state": "state", "modality": "covariates.modality",
}  # fmt: skip
_NUMBER = {
    "probability": "probability", "logit": "logit", "threshold": "threshold", "age_years": "covariates.age_years",
    "mean": "quality.mean", "contrast": "quality.contrast", "sharpness": "quality.sharpness",
    "noise": "quality.noise", "collimated": "quality.collimated", "exposure": "quality.gate.exposure",
    "turned": "quality.gate.turned", "unlike": "quality.gate.unlike", "kvp": "covariates.kvp",
    "exposure_uas": "covariates.exposure_uas", "exposure_index": "covariates.exposure_index",
    "deviation_index": "covariates.deviation_index", "bits": "covariates.bits", "rows": "covariates.rows",
    "columns": "covariates.columns", "width": "quality.width", "height": "quality.height",
    "delay": "",  # days from the image to its answer
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Answers, n of them, in append order. Numbers are NaN and texts empty where the journal has none.

    `row`: int64, the journal's own number. `at`: datetime64[ms], UTC. `text`, `number`: columns [n] by name, as in
    `_TEXT` and `_NUMBER`; `logit` is made of the probability where the journal has none. `abstained`: bool.
    `embedding`: float32 [n, k].
    """

    row: Ints
    at: Times
    abstained: Bools
    text: Mapping[str, Texts]
    number: Mapping[str, Floats]
    embedding: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.row.size)

    def take(self, which: Any) -> Rows:
        """Return some rows: a mask, indices, or a slice."""
        return Rows(
            self.row[which],
            self.at[which],
            self.abstained[which],
            {name: column[which] for name, column in self.text.items()},
            {name: column[which] for name, column in self.number.items()},
            self.embedding[which],
        )

    def of_bundle(self, sha256: str) -> Bools:
        """Return which rows belong to a bundle, bool [n]; those that no bundle has seen belong to any."""
        return np.isin(self.text["bundle"], ("", sha256))

    @property
    def newest_bundle(self) -> str:
        """The bundle of the last row that names one, else empty."""
        named = self.text["bundle"][self.text["bundle"] != ""]
        return str(named[-1]) if named.size else ""

    @property
    def patients(self) -> Ints:
        """Whom each row belongs to, int64 [n] from 0: the patient, else the study, else the row alone."""
        return clusters(self.text["patient"], self.text["study"])


def clusters(patient: Texts, study: Texts) -> Ints:
    """Return int64 [n] from 0: equal for rows of one patient, or of one study where the patient is not known."""
    own = np.char.add("row ", np.arange(len(patient)).astype(np.str_))
    names = np.where(patient != "", np.char.add("p ", patient), np.where(study != "", np.char.add("s ", study), own))
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def joined(pieces: Sequence[Rows]) -> Rows:
    """Return pieces as one; raises `DataError` where their embeddings are of different lengths."""
    pieces = [piece for piece in pieces if len(piece)] or list(pieces[:1])
    widths = {piece.embedding.shape[1] for piece in pieces} - {0}
    if len(widths) > 1:
        raise DataError(
            f"holds embeddings of {' and '.join(map(str, sorted(widths)))} numbers",
            remedy="monitor one bundle at a time: fit a reference for the newer one",
        )
    width = max(widths, default=0)
    return Rows(
        np.concatenate([piece.row for piece in pieces]),
        np.concatenate([piece.at for piece in pieces]),
        np.concatenate([piece.abstained for piece in pieces]),
        {name: np.concatenate([piece.text[name] for piece in pieces]) for name in _TEXT},
        {name: np.concatenate([piece.number[name] for piece in pieces]) for name in _NUMBER},
        np.concatenate([_wide(piece.embedding, width) for piece in pieces]),
    )


def _wide(embedding: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    if embedding.shape[1] == width:
        return embedding
    return np.full((len(embedding), width), np.nan, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Truths:
    """Labels, m of them, in append order.

    `at`: when they were given. `positive`: bool. `chance`: of having been asked for, in 0..1, NaN where no design
    chose the study. `sure`: False for "not sure". `blind`: whether the reader had not seen the answer.
    """

    row: Ints
    at: Times
    study: Texts
    answer: Texts
    source: Texts
    reader: Texts
    positive: Bools
    chance: Floats
    blind: Bools


class Stream:
    """A journal, read from a row on. `path` is only read."""

    def __init__(self, path: Path) -> None:
        """Open a journal; raises `DataError` where there is none or it is something else, `StorageError` as it does."""
        if not path.is_file():
            raise DataError("there is no such file", path=path, remedy="give the journal of `predict` or of a gateway")
        self.path = path
        self.journal = Journal(path)

    def pieces(self, after: int = 0, *, size: int = PIECE, light: bool = False) -> Iterator[Rows]:
        """Yield the rows appended after a row, piece by piece; raises `DataError` where the clock went back.

        `light`: without embeddings, which take most of the time.
        """
        last: np.datetime64 | None = None
        while len(rows := self._piece(after, size, light)):
            after = int(rows.row[-1])
            last = self._ordered(rows, last)
            yield rows

    def rows(self, first: datetime | None = None, last: datetime | None = None, most: int | None = None) -> Rows:
        """Return the answers of the days `first` to `last` (midnights, UTC), at most the first `most`."""
        found, kept = [], 0
        for piece in self.pieces():
            chosen = np.ones(len(piece), bool)
            if first is not None:
                chosen &= piece.at >= _stamp(first)
            if last is not None:
                chosen &= piece.at < _stamp(last) + np.timedelta64(1, "D")
            found.append(piece.take(chosen))
            kept += int(chosen.sum())
            if most is not None and kept >= most:
                break
        if not kept:
            period = f"from {first:%Y-%m-%d}" if first else "from the start"
            period += f" to {last:%Y-%m-%d}" if last else " to the end"
            raise DataError(f"holds no answer {period}", path=self.path, remedy="choose days on which it answered")
        return joined(found).take(slice(0, most))

    def truths(self, after: int = 0) -> Truths:
        """Return the labels appended after a row; those that are not sure are left out."""
        names = (
            "at",
            "study",
            "label",
            "source",
            "answer",
            "reader",
            "inclusion_probability",
            "blind",
            "certainty",
            "sample",
        )
        have = [name for name in names if name in TYPES[LABELS]]
        got = self.journal.columns(have, after=after, limit=1 << 40, of=LABELS)
        n = len(got["row"])
        empty = np.full(n, "", "U1")
        chance = got.get("inclusion_probability", np.full(n, np.nan))
        blind = got.get("blind", np.zeros(n, bool))
        kept = np.isin(got["label"], (NORMAL, PNEUMONIA)) & (got.get("certainty", empty) != "not sure")
        kept &= ~np.char.endswith(got.get("sample", empty), REPEATED)
        return Truths(
            got["row"][kept],
            got["at"][kept],
            got["study"][kept],
            got.get("answer", empty)[kept],
            got["source"][kept],
            got.get("reader", empty)[kept],
            (got["label"] == PNEUMONIA)[kept],
            np.asarray(chance, np.float64)[kept],
            np.asarray(blind).astype(bool)[kept],
        )

    def decisions(self) -> list[tuple[str, str, str, str]]:
        """Return what people decided about alarms: alarm, decision, why, when; oldest first."""
        got = self.journal.columns(("alarm", "decision", "why", "at"), of=DECISIONS)
        columns = (got["alarm"], got["decision"], got["why"], got["at"].astype(str))
        return [(str(a), str(b), str(c), str(d)) for a, b, c, d in zip(*columns, strict=True)]

    def between(self, first: int, last: int, most: int) -> Rows:
        """Return the rows numbered `first` to `last`, the first `most` of them."""
        piece = next(self.pieces(first - 1, size=most))
        return piece.take(piece.row <= last)

    def key_at(self, row: int) -> str:
        """Return the key of the answer in a row, empty where there is none."""
        got = self.journal.columns(("key",), after=row - 1, limit=1)
        return str(got["key"][0]) if len(got["row"]) and int(got["row"][0]) == row else ""

    def _piece(self, after: int, size: int, light: bool) -> Rows:
        known = TYPES[ANSWERS]
        wanted = {*_TEXT.values(), *_NUMBER.values(), "at", "abstained", "acquired_on"}
        wanted |= set() if light else {"embedding"}
        got = self.journal.columns([name for name in known if name in wanted], after=after, limit=size)
        n = len(got["row"])
        number = {name: got.get(column, np.full(n, np.nan)) for name, column in _NUMBER.items()}
        number["logit"] = np.where(np.isfinite(number["logit"]), number["logit"], _logits(number["probability"]))
        if "acquired_on" in got:
            number["delay"] = (got["at"] - got["acquired_on"]) / np.timedelta64(1, "D")
        text = {name: got.get(column, np.full(n, "", "U1")) for name, column in _TEXT.items()}
        embedding = got.get("embedding", np.zeros((n, 0), np.float32))
        return Rows(got["row"], got["at"], got["abstained"], text, number, embedding)

    def _ordered(self, rows: Rows, last: np.datetime64 | None) -> np.datetime64:
        times = rows.at if last is None else np.concatenate([[last], rows.at])
        high = np.maximum.accumulate(times)
        back = high - times
        if back.max() > _BACK:
            worst = int(back.argmax())
            days = back[worst] / np.timedelta64(1, "D")
            raise DataError(
                f"its clock goes back by {days:.1f} days, from {str(high[worst])[:10]} to {str(times[worst])[:10]}",
                path=self.path,
                remedy="correct the clock, move the months before into archives, and fit a new reference",
            )
        return np.datetime64(high[-1])


def _logits(probability: Floats) -> Floats:
    return np.asarray(special.logit(np.clip(probability, 1e-6, 1 - 1e-6)), np.float64)


def _stamp(day: datetime) -> np.datetime64:
    return np.datetime64(day.astimezone(UTC).replace(tzinfo=None) if day.tzinfo else day, "ms")


def as_rows(facts: Mapping[str, Any]) -> Rows:
    """Return rows of plain columns by the names of `Rows`, for images without a journal; what is not given is NaN."""
    n = len(facts["probability"])
    number = {name: np.asarray(facts[name], np.float64) if name in facts else np.full(n, np.nan) for name in _NUMBER}
    number["logit"] = np.where(np.isfinite(number["logit"]), number["logit"], _logits(number["probability"]))
    text = {name: np.asarray(facts[name], np.str_) if name in facts else np.full(n, "", "U1") for name in _TEXT}
    at = np.asarray(facts["at"], "datetime64[ms]") if "at" in facts else np.full(n, "NaT", "datetime64[ms]")
    embedding = np.asarray(facts["embedding"], np.float32) if "embedding" in facts else np.zeros((n, 0), np.float32)
    abstained = np.asarray(facts["abstained"], bool) if "abstained" in facts else np.zeros(n, bool)
    row = np.asarray(facts["row"], np.int64) if "row" in facts else np.arange(1, n + 1)
    return Rows(row, at, abstained, text, number, embedding)
