"""Identifiers that are the same for the same result."""

from __future__ import annotations

import uuid

_PNEUMOSCOPE = uuid.UUID("5f0c6c8e-0d0c-5b57-9b0f-0f6f1c1a7f4e")


def stable_uuid(*parts: str) -> uuid.UUID:
    """Return the version 5 UUID of these parts."""
    return uuid.uuid5(_PNEUMOSCOPE, "\x00".join(parts))


def stable_uid(*parts: str) -> str:
    """Return the same as a DICOM UID, at most 44 characters.

    Source: DICOM PS3.5, B.2 (UUID derived UID).
    """
    return f"2.25.{stable_uuid(*parts).int}"
