"""The conformance statement says what is really sent and how statuses are read."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pydicom
from tests.support.findings import finding

from pneumoscope.serving.delivery.send import classify
from pneumoscope.serving.results import encode
from pneumoscope.serving.settings.neighbours import DICOM_KINDS
from pneumoscope.serving.store.outbox import Outcome

PAGE = (Path(__file__).parents[2] / "docs/reference/conformance.md").read_text(encoding="utf-8")


def test_objects_are_those_of_the_statement() -> None:
    built = encode(finding(), DICOM_KINDS, datetime(2026, 3, 4, tzinfo=UTC))
    assert {item.kind for item in built} == set(DICOM_KINDS)
    for item in built:
        made = pydicom.dcmread(io.BytesIO(item.data))
        syntax = made.file_meta.TransferSyntaxUID.name
        assert f"| `{item.kind}` | {made.SOPClassUID.name} | {made.SOPClassUID} | {syntax} |" in PAGE
        assert made.SpecificCharacterSet == "ISO_IR 192"


def test_statuses_are_read_as_the_statement_says() -> None:
    assert {classify(s).outcome for s in (0x0000, 0x0001, 0x0107, 0x0116, 0xB007)} == {Outcome.DELIVERED}
    assert {classify(s).outcome for s in (0x0122, 0xA900, 0xC001)} == {Outcome.REFUSED}
    assert {classify(s).outcome for s in (None, 0xA700, 0x0110)} == {Outcome.RETRY}
