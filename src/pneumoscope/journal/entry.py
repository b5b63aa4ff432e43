"""What the journal keeps: answers, labels given later, decisions about alarms."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, storage_errors
from pneumoscope.files import sha256_bytes
from pneumoscope.records import LABELS, Prediction
from pneumoscope.version import __version__

ANALYSED, DECLINED, QUARANTINED = "analysed", "declined", "quarantined"
STATES = (ANALYSED, DECLINED, QUARANTINED)  # looked at; refused by its header; could not be analysed
BLIND = "blind review"
PAGE = "page"  # a reader's verdict after the answer was seen
SOURCES = (PAGE, BLIND, "report", "laboratory", "discharge")
SURE, LIKELY, UNSURE = "sure", "likely", "not sure"
CERTAINTIES = (SURE, LIKELY, UNSURE)
DECISIONS = ("acknowledged", "fixed", "new reference", "dismissed")
_OLDEST = 90.0  # years; higher ages identify (45 CFR 164.514(b)(2)(i)(C))


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer about an image, or why there is none.

    `key`: of this answer, the same when it is repeated. `at`: aware time. `study`, `patient`, `device`, `site`:
    pseudonyms, or None. `covariates`: DICOM facts without identity. `embedding`: a few numbers that place the image
    among others of the same bundle, kept to half precision; None where the bundle gives none. The rest as in
    `records.Prediction`.

    `state`: one of `STATES`. Only what was analysed has a score; what was declined by its header or quarantined may
    have no bundle, threshold and time of computing either. `acquired_on`: day of the image by its header;
    `received_at`: aware time of its arrival, of a gateway. `feed`: where it came from, such as `dicom:TITLE`. `shown`:
    whether readers may see the answer, None where that is not known. `version`: of this program.
    """

    key: str
    at: datetime
    bundle: str | None
    bundle_sha256: str | None
    probability: float | None
    calibrated: bool
    threshold: float | None
    label: str | None
    abstained: bool
    reason: str | None
    milliseconds: float | None
    study: str | None = None
    patient: str | None = None
    device: str | None = None
    site: str | None = None
    subtype: Mapping[str, float] | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    covariates: Mapping[str, Any] = field(default_factory=dict)
    embedding: Sequence[float] | None = None
    state: str = ANALYSED
    logit: float | None = None
    operating_point: str | None = None
    version: str | None = None
    acquired_on: date | None = None
    received_at: datetime | None = None
    feed: str | None = None
    shown: bool | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """What somebody, or a source, later said to be true of a study. Several about one study are all kept.

    `label`: NORMAL or PNEUMONIA, None where the reader was not sure and leaned to neither. `source`: the kind of truth,
    one of `SOURCES`. `study`: its pseudonym; `answer`: key of the answer that is meant; one of them is given. `reader`:
    a pseudonym. `certainty`: one of `CERTAINTIES`. `blind`: given without sight of the answer; None where that is not
    known. `sample`: the sample that it was asked for, `inclusion_probability`: that with which the sample takes this
    image, above 0, at most 1; both None where nobody drew it. `note`: without identity.
    """

    key: str
    at: datetime
    study: str | None
    label: str | None
    source: str
    note: str | None = None
    answer: str | None = None
    reader: str | None = None
    certainty: str = SURE
    blind: bool | None = None
    sample: str | None = None
    inclusion_probability: float | None = None

    def __post_init__(self) -> None:
        """Raise `DataError` where it says something that no label says."""
        if fault := self._fault():
            raise DataError(f"a label {fault[0]}", remedy=fault[1])

    def _fault(self) -> tuple[str, str] | None:
        if not (self.study or self.answer):
            return "belongs to a study or an answer", "give one of them"
        if self.certainty not in CERTAINTIES:
            return f"is not {self.certainty!r} certain", f"use {', '.join(CERTAINTIES)}"
        if self.label not in LABELS and not (self.label is None and self.certainty == UNSURE):
            return f"is not {self.label!r}", f"use {' or '.join(LABELS)}; none only where the certainty is {UNSURE}"
        if (self.sample is None) != (self.inclusion_probability is None):
            return "names its sample and its probability together", "give both or neither"
        chance = self.inclusion_probability
        if chance is not None and not 0 < chance <= 1:
            return f"was not asked for with probability {chance}", "give a number above 0, at most 1"
        return None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person did about an alarm, as the journal keeps it.

    `alarm`: its key. `decision`: one of `DECISIONS`. `why`: without identity. `person`: a pseudonym.
    """

    key: str
    at: datetime
    alarm: str
    decision: str
    why: str
    person: str | None = None

    def __post_init__(self) -> None:
        """Raise `DataError` for another decision, or one without a reason."""
        if self.decision not in DECISIONS:
            raise DataError(f"a decision is not {self.decision!r}", remedy=f"use {', '.join(DECISIONS)}")
        if not self.why.strip():
            raise DataError("a decision has a reason", remedy="say why")


def entry_of(prediction: Prediction, card: Mapping[str, Any], key: str, at: datetime, **facts: Any) -> Entry:
    """Return the entry of a prediction; `facts`: pseudonyms, covariates and circumstances, as `Entry` has them.

    `card`: of the bundle that answered. Age over 90 years becomes 90, and the path is left out.
    """
    facts["covariates"] = without_great_age(facts.get("covariates", {}))
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
        reason=_reason(prediction),
        milliseconds=prediction.milliseconds,
        subtype=prediction.subtype,
        quality=prediction.quality,
        embedding=prediction.embedding,
        state=_state(prediction),
        logit=prediction.logit,
        version=__version__,
        **facts,
    )


def _reason(prediction: Prediction) -> str | None:
    if prediction.error is not None:
        return "could not be read"
    return without_age(prediction.reason, prediction.quality.get("refused_by"))


def without_age(reason: str | None, refused_by: str | None) -> str | None:
    """Return a reason without the patient's age, which may be great enough to identify."""
    return "not analysed, because of the patient's age" if refused_by == "age" else reason


def _state(prediction: Prediction) -> str:
    if prediction.error is not None:
        return QUARANTINED
    # Where the header was refused, no pixels were looked at.
    return DECLINED if prediction.abstained and prediction.quality.get("mean") is None else ANALYSED


def unanalysed(
    state: str, key: str, at: datetime, *, reason: str | None, refused_by: str | None, **facts: Any
) -> Entry:
    """Return the entry of an image that was not analysed; `reason`: without identity, `refused_by`: a key of it."""
    facts["covariates"] = without_great_age(facts.get("covariates", {}))
    return Entry(
        key=key,
        at=at,
        bundle=None,
        bundle_sha256=None,
        probability=None,
        calibrated=False,
        threshold=None,
        label=None,
        abstained=state == DECLINED,
        reason=without_age(reason, refused_by),
        milliseconds=None,
        quality={"refused_by": refused_by},
        state=state,
        version=__version__,
        **facts,
    )


def without_great_age(covariates: Mapping[str, Any]) -> dict[str, Any]:
    """Return the covariates with an age over 90 years as 90, because higher ages identify."""
    age = covariates.get("age_years") or 0
    return {**covariates, "age_years": _OLDEST} if age > _OLDEST else dict(covariates)


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
