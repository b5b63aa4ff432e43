"""Entries of the journal."""

from __future__ import annotations

from datetime import UTC, datetime

from pneumoscope.journal.entry import Entry, entry_of
from pneumoscope.records import PNEUMONIA, Prediction

AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


SAID = Prediction("/in/doe.dcm", 0.75, PNEUMONIA, 0.5, {"viral": 0.25}, quality={"mean": float("nan")}, bundle="b@1")


CARD = {"sha256": "a" * 64, "calibration": {"temperature": 1.0}}


def entry(key: str = "k", **known: object) -> Entry:
    return entry_of(SAID, CARD, key, AT, **known)
