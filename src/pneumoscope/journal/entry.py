"""The journal's entries and labels, and the forms in which it stores them."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, storage_errors
from pneumoscope.files import sha256_bytes
from pneumoscope.records import Prediction

EMBEDDING = 1  # version of the form of embeddings
_OLDEST = 90.0  # years; higher ages identify (45 CFR 164.514(b)(2)(i)(C))


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer.

    `key`: of this answer, the same when it is repeated. `at`: aware time. `study`, `patient`, `device`, `site`:
    pseudonyms, or None. `covariates`: DICOM facts without identity. `embedding`: a few numbers that place the image
    among others of the same bundle, kept to half precision; None where the bundle gives none. The rest as in
    `records.Prediction`.
    """

    key: str
    at: datetime
    bundle: str
    bundle_sha256: str
    probability: float | None
    calibrated: bool
    threshold: float
    label: str | None
    abstained: bool
    reason: str | None
    milliseconds: float
    study: str | None = None
    patient: str | None = None
    device: str | None = None
    site: str | None = None
    subtype: Mapping[str, float] | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    covariates: Mapping[str, Any] = field(default_factory=dict)
    embedding: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """The later truth about a study: `label` NORMAL or PNEUMONIA; `source`: who gave it, such as `page`."""

    key: str
    at: datetime
    study: str
    label: str
    source: str
    note: str | None = None


def entry_of(prediction: Prediction, card: Mapping[str, Any], key: str, at: datetime, **facts: Any) -> Entry:
    """Return the entry of a prediction; `facts`: pseudonyms and covariates, as `Entry` has them.

    `card`: of the bundle that answered. Age over 90 years becomes 90, and the path is left out.
    """
    covariates = dict(facts.pop("covariates", {}))
    if (covariates.get("age_years") or 0) > _OLDEST:
        covariates["age_years"] = _OLDEST
    return Entry(
        key=key,
        at=at,
        bundle=prediction.bundle,
        bundle_sha256=str(card["sha256"]),
        probability=prediction.probability,
        calibrated=bool(card.get("calibration")),
        threshold=prediction.threshold,
        label=prediction.label,
        abstained=prediction.abstained,
        reason=prediction.reason if prediction.error is None else "could not be read",
        milliseconds=prediction.milliseconds,
        subtype=prediction.subtype,
        quality=prediction.quality,
        covariates=covariates,
        embedding=prediction.embedding,
        **facts,
    )


def pack_embedding(values: Sequence[float] | None) -> dict[str, Any] | None:
    """Return numbers as the journal stores them: base64 of float16, little-endian, with the version of this form."""
    if values is None:
        return None
    packed = base64.b64encode(struct.pack(f"<{len(values)}e", *values)).decode("ascii")
    return {"version": EMBEDDING, "float16": packed}


def unpack_embedding(packed: Any) -> tuple[float, ...] | None:
    """Return the numbers of a stored embedding; raises `DataError` where it is of another version."""
    if packed is None:
        return None
    if isinstance(packed, list):  # journals of format 1
        return tuple(map(float, packed))
    try:
        if packed["version"] != EMBEDDING:
            raise DataError(f"an embedding of version {packed['version']} cannot be read", remedy="update Pneumoscope")
        data = base64.b64decode(packed["float16"], validate=True)
        return struct.unpack(f"<{len(data) // 2}e", data)
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise DataError(f"an embedding cannot be read ({error})", remedy="look at who wrote this journal") from error


def answer_key(bundle_sha256: str, content_sha256: str, operating_point: str) -> str:
    """Return the key of an answer: of its bundle, operating point and content."""
    return sha256_bytes(f"{bundle_sha256} {content_sha256} {operating_point}".encode())[:32]


def content_sha256(path: str) -> str | None:
    """Return the SHA-256 of an image file, None where it cannot be read (rows of an archive have none either)."""
    file = Path(path)
    if not file.is_file() or not os.access(file, os.R_OK):
        return None
    with storage_errors(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
