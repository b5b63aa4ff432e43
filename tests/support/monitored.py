"""An invented hospital for the monitor: scores, pictures and embeddings of two classes, and what may move."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.journal.entry import Entry, Label
from pneumoscope.journal.journal import Journal
from pneumoscope.monitoring.reference import Reference, fit
from pneumoscope.monitoring.stream import Rows, as_rows
from pneumoscope.records import NORMAL, PNEUMONIA

BUNDLE = "b" * 64
START = datetime(2026, 1, 1, tzinfo=UTC)
AXES = 6


def facts(
    n: int,
    seed: int,
    *,
    ill: float = 0.4,
    bright: float = 0.0,
    axis: float = 0.0,
    abstain: float = 0.02,
    each: int = 1,
    first: int = 0,
) -> dict[str, Any]:
    """Return columns of n images, `each` of them of one patient; `first` numbers the patients and rows."""
    rng = np.random.default_rng(seed)
    people = np.arange(n) // each
    truth = (rng.random(n // each + 1) < ill)[people]
    logit = rng.normal(np.where(truth, 2.5, -2.5), 1.5)
    silent = rng.random(n) < abstain
    embedding = rng.normal(0, 1, (n, AXES)) + np.outer(truth, [1.0, 0.5, 0, 0, 0, 0])
    embedding[:, 3] += axis
    return {
        "truth": truth,
        "probability": np.where(silent, np.nan, 1 / (1 + np.exp(-logit))),
        "logit": np.where(silent, np.nan, logit),
        "threshold": np.full(n, 0.5),
        "abstained": silent,
        "mean": rng.normal(0.5 + 0.02 * truth, 0.05) + 0.05 * bright,
        "contrast": rng.normal(0.2, 0.02, n),
        **{name: rng.normal(0, 0.3, n) for name in ("exposure", "turned", "unlike")},
        "embedding": embedding,
        "patient": np.char.add("p", (first + people).astype(str)),
        "study": np.char.add("s", (first + np.arange(n)).astype(str)),
        "key": np.char.add(np.char.add("k", (first + np.arange(n)).astype(str)), f"-{seed}"),
        "bundle": np.full(n, BUNDLE),
        "name": np.full(n, "invented"),
        "state": np.full(n, "analysed"),
        "row": 1 + first + np.arange(n),
        "at": np.datetime64("2026-01-01", "ms") + (first + np.arange(n)) * np.timedelta64(36, "m"),
    }


def rows(n: int, seed: int, **known: Any) -> Rows:
    """Return n images as rows of a journal."""
    return as_rows(facts(n, seed, **known))


def reference(n: int = 600, seed: int = 0, *, labelled: bool = True) -> Reference:
    """Return what is usual there."""
    drawn = facts(n, seed, first=10**6)
    truth: NDArray[np.int8] | None = drawn["truth"].astype(np.int8) if labelled else None
    errors = {
        kind: {"value": 0.03, "low": 0.02, "high": 0.05, "n": 400, "source": "test"} for kind in ("missed", "false")
    }
    return fit(as_rows(drawn), truth=truth, errors=errors, facts={"source": "test"})


def entries(drawn: dict[str, Any], *, device: str | Sequence[str] = "d1", site: str = "here") -> list[Entry]:
    """Return columns as entries of the journal."""
    found = []
    for i in range(len(drawn["truth"])):
        p = float(drawn["probability"][i])
        silent = bool(drawn["abstained"][i])
        at = START + timedelta(minutes=36 * (int(drawn["row"][i]) - 1))
        gate = {name: float(drawn[name][i]) for name in ("exposure", "turned", "unlike")}
        found.append(
            Entry(
                key=str(drawn["key"][i]), at=at, bundle="invented@bbbbbbbbbbbb", bundle_sha256=str(drawn["bundle"][i]),
                probability=None if silent else p, logit=None if silent else float(drawn["logit"][i]), calibrated=True,
                threshold=0.5, label=None if silent else PNEUMONIA if p >= 0.5 else NORMAL, abstained=silent,
                reason="unlike" if silent else None, milliseconds=1.0, study=str(drawn["study"][i]),
                patient=str(drawn["patient"][i]), device=device if isinstance(device, str) else device[i], site=site,
                quality={"mean": float(drawn["mean"][i]), "contrast": float(drawn["contrast"][i]), "gate": gate},
                embedding=tuple(float(x) for x in drawn["embedding"][i]),
            )
        )  # fmt: skip
    return found


def fill(path: Path, *written: Sequence[Entry]) -> Journal:
    """Append entries to a journal in one transaction each: a thousand single ones would wait for the disk."""
    journal = Journal(path)
    for batch in written:
        journal._insert("predictions", list(batch))
    return journal


def labels(drawn: dict[str, Any], *, days: float = 2.0, flip: float = 0.0, chance: float | None = None) -> list[Label]:
    """Return labels of studies, some days after their image, a share of them turned round."""
    rng = np.random.default_rng(len(drawn["truth"]))
    found = []
    for i, truth in enumerate(drawn["truth"]):
        at = START + timedelta(minutes=36 * (int(drawn["row"][i]) - 1), days=days)
        said = bool(truth) != bool(rng.random() < flip)
        sample = {} if chance is None else {"sample": "queue", "inclusion_probability": chance}
        word = PNEUMONIA if said else NORMAL
        found.append(Label(f"l{drawn['key'][i]}", at, str(drawn["study"][i]), word, "report", **sample))
    return found
