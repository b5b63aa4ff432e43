"""The gateway's tables. Every image it acknowledged and every delivery it has to make is a row here.

    images ─ jobs ─ results ─ objects ─ deliveries
    processes, feeds, reports
    users ─ sign-ins ─ events, feedback, reviews (of the page)
    samples (drawn for review)

An image has one job; where it is not analysed, the job says why. Identities (patient, accession number) are in
`images` alone, and in no log.
"""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

WAITING, RUNNING, DONE = "waiting", "running", "done"
DECLINED = "declined"  # a rule says why it is not analysed
QUARANTINED = "quarantined"  # it could not be analysed; a person may try again
JOB_STATES = (WAITING, RUNNING, DONE, DECLINED, QUARANTINED)

SENT, DEAD = "sent", "dead"
COMMITTED = "committed"  # the destination promised to keep it (PS3.4, J)
DELIVERY_STATES = (WAITING, SENT, COMMITTED, DEAD)
REPORT_STATES = (WAITING, SENT, DEAD)

ROUTINE, HIGH, URGENT = 0, 1, 2


class Instant(TypeDecorator[datetime]):
    """An aware time, kept in UTC; SQLite knows no time zones."""

    impl = DateTime(timezone=False)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC without a zone; a naive time is a bug."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without zone")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return UTC with its zone."""
        return None if value is None else value.replace(tzinfo=UTC)


class Packed(TypeDecorator[bytes]):
    """Bytes stored compressed: a picture takes a tenth of the room. No result begins like a zlib stream."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        """Compress, fast rather than well."""
        return None if value is None else zlib.compress(value, level=1)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        """Return the original bytes; older versions stored them plain."""
        return zlib.decompress(value) if value is not None and value[:1] == b"x" else value


class Base(DeclarativeBase):
    """All tables, with named constraints, which migrations need."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: Instant, float: Double, dict[str, Any]: JSON, bytes: LargeBinary, str: Text}  # noqa: RUF012


class Image(Base):
    """One version of one SOP instance, as it was received.

    `digest`: SHA-256 of data set and transfer syntax. `version` counts different contents under one UID. `file` is
    relative to the folder of images, None once erased. `size` in bytes. `source`: such as `dicom:TITLE`. `notes`: for
    the reader. `header`: DICOM facts without identity (`Header.facts`). `committed_at`: when its storage was committed.
    """

    __tablename__ = "images"
    __table_args__ = (UniqueConstraint("sop_uid", "version"), UniqueConstraint("sop_uid", "digest", name="uq_digest"))

    id: Mapped[int] = mapped_column(primary_key=True)
    sop_uid: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    sop_class: Mapped[str] = mapped_column(String(64))
    study_uid: Mapped[str] = mapped_column(String(64), index=True)
    series_uid: Mapped[str] = mapped_column(String(64))
    file: Mapped[str | None]
    size: Mapped[int]
    source: Mapped[str]
    received_at: Mapped[datetime] = mapped_column(index=True)
    patient_id: Mapped[str | None]
    issuer: Mapped[str | None]
    patient_name: Mapped[str | None]
    birth_date: Mapped[str | None]
    accession: Mapped[str | None]
    header: Mapped[dict[str, Any]]
    notes: Mapped[str | None]
    committed_at: Mapped[datetime | None]

    job: Mapped[Job] = relationship(back_populates="image", uselist=False)


_UNWRITTEN = text("NOT journaled AND state IN ('declined', 'quarantined')")


class Job(Base):
    """The analysis of an image, or why there is none.

    `state`: one of `JOB_STATES`. `priority`: of the order. `reason`: of `declined`, `quarantined` and the last failed
    attempt, `cause` the same in a word. `journaled`: the journal says that it was not analysed. `lease_until`, `owner`:
    of the worker that runs it; after the lease another may take it. `attempts` counts failures, `claims` how often a
    worker took it.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_queue", "state", "not_before"),
        Index("ix_jobs_unwritten", "id", sqlite_where=_UNWRITTEN, postgresql_where=_UNWRITTEN),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"), unique=True)
    state: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int]
    attempts: Mapped[int]
    claims: Mapped[int]
    created_at: Mapped[datetime]
    not_before: Mapped[datetime]
    owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    reason: Mapped[str | None]
    cause: Mapped[str | None] = mapped_column(String(40))
    journaled: Mapped[bool] = mapped_column(default=False, server_default=false())

    image: Mapped[Image] = relationship(back_populates="job")
    result: Mapped[Result | None] = relationship(back_populates="job", uselist=False)


class Result(Base):
    """The classifier's answer; one row per job that is done.

    Columns as in `records.Prediction`. `map_png`: grey PNG of the heat map over the whole image, None where there is
    none. `explained_by`: method and verdict. `urgent`: to be read earlier. `shadow`: nothing was sent. `answer`: key
    of its line in the journal.
    """

    __tablename__ = "results"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    bundle: Mapped[str]
    bundle_sha256: Mapped[str] = mapped_column(String(64))
    probability: Mapped[float | None]
    label: Mapped[str | None]
    threshold: Mapped[float]
    subtype: Mapped[dict[str, Any] | None]
    abstained: Mapped[bool]
    reason: Mapped[str | None]
    quality: Mapped[dict[str, Any]]
    milliseconds: Mapped[float]
    map_png: Mapped[bytes | None]
    explained_by: Mapped[str | None]
    urgent: Mapped[bool]
    shadow: Mapped[bool]
    answer: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(index=True)

    job: Mapped[Job] = relationship(back_populates="result")
    objects: Mapped[list[Object]] = relationship(back_populates="result")


class Object(Base):
    """A result object, byte for byte as it is sent. `data` is None once erased."""

    __tablename__ = "objects"

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    uid: Mapped[str] = mapped_column(String(128), index=True)
    sop_class: Mapped[str | None] = mapped_column(String(64))
    suffix: Mapped[str] = mapped_column(String(16))
    data: Mapped[bytes | None] = mapped_column(Packed)

    result: Mapped[Result] = relationship(back_populates="objects")
    deliveries: Mapped[list[Delivery]] = relationship(back_populates="object")


class Delivery(Base):
    """An object for one destination. `state`: one of `DELIVERY_STATES`; `reason`: of the last failure.

    `not_before`: the earliest next attempt to send it or, once sent, to have it committed. `transaction_uid`: of the
    last request for that. `attempts` counts attempts to send it, `refusals` reports that it was not committed.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("object_id", "destination"),
        Index("ix_deliveries_queue", "destination", "state", "not_before"),
        Index("ix_deliveries_times", "state", "sent_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    object_id: Mapped[int] = mapped_column(ForeignKey("objects.id"))
    destination: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    refusals: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[datetime]
    not_before: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    transaction_uid: Mapped[str | None] = mapped_column(String(64), index=True)
    reason: Mapped[str | None]

    object: Mapped[Object] = relationship(back_populates="deliveries")


class Feed(Base):
    """The position in an Orthanc's changes.

    `seq`: number of the last change dealt with, None until its first answer; `date` (as Orthanc writes it) and
    `resource` are of that change. `skipped` counts images that could not be taken, `resets` how often its numbering
    restarted. `fault`: why the last attempt failed, without identity.
    """

    __tablename__ = "feeds"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    seq: Mapped[int | None] = mapped_column(BigInteger)
    date: Mapped[str] = mapped_column(String(20))
    resource: Mapped[str] = mapped_column(String(64))
    skipped: Mapped[int]
    resets: Mapped[int]
    fault: Mapped[str | None]


class Report(Base):
    """A report to a sender on storage commitment (PS3.4, J). `content`: DICOM JSON; `peer`: title of the sender."""

    __tablename__ = "reports"
    __table_args__ = (Index("ix_reports_queue", "state", "not_before"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    peer: Mapped[str] = mapped_column(String(16))
    content: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    created_at: Mapped[datetime]
    not_before: Mapped[datetime]
    reason: Mapped[str | None]


class Beat(Base):
    """A process's last sign of life."""

    __tablename__ = "processes"

    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    pid: Mapped[int]
    at: Mapped[datetime]
    facts: Mapped[dict[str, Any]]


class User(Base):
    """A user of the page. `role`: see `serving.people.accounts`. A user is disabled, never erased.

    `password`: Argon2id, empty for users of an OpenID issuer; `subject`: that issuer and its number for the user.
    """

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    password: Mapped[str]
    subject: Mapped[str | None] = mapped_column(index=True, unique=True)
    disabled: Mapped[bool]
    created_at: Mapped[datetime]


class SignIn(Base):
    """A user at a browser until `expires_at`. `token`: SHA-256 of the secret that the browser holds."""

    __tablename__ = "sign_ins"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    token: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    user: Mapped[User] = relationship()


class Event(Base):
    """An entry of the audit trail: who did or saw what on the page. Patients are named by the row of their image."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_seen", "sign_in_id", "action", "image_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    sign_in_id: Mapped[int | None] = mapped_column(ForeignKey("sign_ins.id"))
    action: Mapped[str] = mapped_column(String(40))
    image_id: Mapped[int | None] = mapped_column(ForeignKey("images.id"), index=True)
    detail: Mapped[str | None]

    user: Mapped[User | None] = relationship()


class Feedback(Base):
    """A reader's verdict on an answer. `key`: of the form, so that a form sent twice is kept once.

    `label`: the reader's own call, None where not sure. `comment` may name a patient and stays here.
    """

    __tablename__ = "feedback"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(32), unique=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    verdict: Mapped[str] = mapped_column(String(16))
    label: Mapped[str | None] = mapped_column(String(16))
    comment: Mapped[str | None]
    created_at: Mapped[datetime]

    user: Mapped[User] = relationship()
    result: Mapped[Result] = relationship()


class Review(Base):
    """A radiograph that a sample asks readers about, and what one of them said without sight of the answer.

    `inclusion`: probability with which the sample takes it. `key`: of the form. `label`: None where the reader leaned
    to neither, with `certainty` (`journal.entry.CERTAINTIES`). None is answered before `answered_at`.
    """

    __tablename__ = "reviews"
    __table_args__ = (
        UniqueConstraint("result_id", "sample", name="uq_reviews_asked"),
        Index("ix_reviews_open", "answered_at", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"))
    sample: Mapped[str] = mapped_column(String(60))
    inclusion: Mapped[float]
    created_at: Mapped[datetime]
    key: Mapped[str | None] = mapped_column(String(32), unique=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    label: Mapped[str | None] = mapped_column(String(16))
    certainty: Mapped[str | None] = mapped_column(String(16))
    answered_at: Mapped[datetime | None]

    result: Mapped[Result] = relationship()


class Sampled(Base):
    """A day of which a sample was drawn. `strata`: how many studies each had, and how many of them were drawn."""

    __tablename__ = "samples"

    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    drawn_at: Mapped[datetime]
    strata: Mapped[dict[str, Any]]
