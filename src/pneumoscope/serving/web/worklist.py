"""The worklist: images to read, the most urgent first, then the longest waiting."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, Select, and_, case, exists, func, or_, select, true
from sqlalchemy.orm import joinedload

from pneumoscope.records import PNEUMONIA
from pneumoscope.serving.people import trail
from pneumoscope.serving.people.accounts import ADMIN, VIEWER, Person
from pneumoscope.serving.store.database import now
from pneumoscope.serving.store.tables import (
    DECLINED,
    DONE,
    HIGH,
    QUARANTINED,
    RUNNING,
    URGENT,
    WAITING,
    Feedback,
    Image,
    Job,
    Result,
)
from pneumoscope.serving.web.answers import Answer, answer_of
from pneumoscope.serving.web.guard import needs
from pneumoscope.serving.web.pages import Pages, Shared, page

MOST = 200  # rows on one page
Show = Literal["all", "flagged", "not-flagged", "pending", "not-analysed"]
Read = Literal["any", "unread", "read"]
Hours = Literal["24", "72", "168", "0"]
SHOWS = {"all": "All", "flagged": "Flagged", "not-flagged": "Not flagged", "pending": "No answer yet",
         "not-analysed": "Not analysed"}  # fmt: skip
READS = {"any": "Read or not", "unread": "Without feedback", "read": "With feedback"}
SPANS = {"24": "Last 24 hours", "72": "Last 3 days", "168": "Last 7 days", "0": "All time"}
_PRIORITIES = {URGENT: "STAT", HIGH: "High"}


class Filters(BaseModel, extra="forbid"):
    """The filters of the list. None names a patient: they stand in addresses."""

    show: Show = "all"
    read: Read = "any"
    hours: Hours = "24"
    page: Annotated[int, Field(ge=1, le=100_000)] = 1

    def address(self, path: str, number: int) -> str:
        """Return the address of a page of this list."""
        return f"{path}?{urlencode({**self.model_dump(), 'page': number})}"


class Line(BaseModel):
    """One image of the list."""

    image_id: int
    kind: str
    headline: str
    detail: str
    score: str | None
    priority: str
    received_at: datetime
    read: bool


@dataclass(frozen=True)
class Listing:
    """Page `number` of the `pages` of a list with `total` rows."""

    rows: list[Row]
    total: int
    number: int
    pages: int


@dataclass(frozen=True)
class Row:
    """One image of the list with its identity."""

    image: Image
    answer: Answer
    priority: str
    read: bool


Filtered = Annotated[Filters, Query()]
_WORDS = r"^[^\x00-\x1f]*[^\x00-\x20,^=][^\x00-\x1f]*$"  # at least one character to look for
Sought = Annotated[str, Form(min_length=2, max_length=64, pattern=_WORDS)]
Viewer = Annotated[Person, Depends(needs(VIEWER))]


def router() -> APIRouter:
    """Return the routes of this page."""
    routes = APIRouter()

    @routes.get("/worklist", response_class=HTMLResponse)
    def worklist(request: Request, pages: Shared, person: Viewer, filters: Filtered) -> HTMLResponse:
        """Show the list with its filters."""
        names: dict[str, Any] = {"shows": SHOWS, "reads": READS, "spans": SPANS, "sought": ""}
        return page(request, "worklist.html.j2", **names, **_content(pages, person, filters))

    @routes.get("/worklist/rows", response_class=HTMLResponse)
    def rows(request: Request, pages: Shared, person: Viewer, filters: Filtered) -> HTMLResponse:
        """Return the list alone, with which an open page renews itself."""
        return page(request, "rows.html.j2", **_content(pages, person, filters))

    @routes.get("/api/worklist", tags=["api"])
    def api_worklist(pages: Shared, person: Viewer, filters: Filtered) -> list[Line]:
        """Return the list without identities, in its order."""
        return [
            Line(
                image_id=row.image.id,
                kind=row.answer.kind,
                headline=row.answer.headline,
                detail=row.answer.detail,
                score=row.answer.score,
                priority=row.priority,
                received_at=row.image.received_at,
                read=row.read,
            )
            for row in listing_of(pages, person, filters).rows
        ]

    @routes.post("/worklist/search", response_class=HTMLResponse)
    def search(request: Request, pages: Shared, person: Viewer, text: Sought) -> HTMLResponse:
        """Show the images of a patient or an order. The text comes from a form, so that no address names a patient."""
        listing = listing_of(pages, person, text)
        trail.note(pages.store, person, trail.SEARCHED, detail=f"{listing.total} found")
        trail.listed(pages.store, person, [row.image.id for row in listing.rows])
        return page(request, "search.html.j2", listing=listing, sought=text, filters=None)

    return routes


def listing_of(pages: Pages, person: Person, wanted: Filters | str) -> Listing:
    """Return a page of the list: images that fit the filters, or that a text names, in order."""
    read = exists().where(Feedback.result_id == Result.id)
    visible = Result.id.is_not(None) if person.may(ADMIN) else Result.shadow.is_(False)
    query = select(Image).join(Image.job).outerjoin(Job.result)
    query = query.where(
        _named(wanted) if isinstance(wanted, str) else and_(true(), *_conditions(wanted, read, visible))
    )
    rows: list[Row] = []
    with pages.store.read() as session:
        total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
        last = max(1, -(-total // MOST))
        number = 1 if isinstance(wanted, str) else min(wanted.page, last)
        ordered: Select[Any] = query.add_columns(read).order_by(*_order(read, visible))
        ordered = ordered.limit(MOST).offset((number - 1) * MOST)
        loaded = ordered.options(joinedload(Image.job).joinedload(Job.result).defer(Result.map_png))
        for image, has_feedback in session.execute(loaded):
            answer = answer_of(image.job, person, pages.bundle)
            rows.append(Row(image, answer, _PRIORITIES.get(image.job.priority, "Routine"), bool(has_feedback)))
        session.expunge_all()
    return Listing(rows, total, number, last)


def _content(pages: Pages, person: Person, filters: Filters) -> dict[str, Any]:
    listing = listing_of(pages, person, filters)
    trail.listed(pages.store, person, [row.image.id for row in listing.rows])
    return {"listing": listing, "filters": filters}


def _named(text: str) -> ColumnElement[bool]:
    """Return the condition that a number of patient or order contains the text, or these and the name all its words."""
    numbers, words = (Image.patient_id, Image.accession), re.split(r"[\s,^=]+", text.strip(" ,^="))
    whole = [column.icontains(text.strip(), autoescape=True) for column in numbers]
    each = [or_(*(column.icontains(word, autoescape=True) for column in (*numbers, Image.patient_name)))
            for word in words]  # fmt: skip
    return or_(*whole, and_(*each))


def _conditions(filters: Filters, read: ColumnElement[bool], visible: ColumnElement[bool]) -> list[ColumnElement[bool]]:
    not_analysed = or_(Job.state.in_((DECLINED, QUARANTINED)), (Result.abstained & visible))
    scored = Result.label.is_not(None) & visible
    conditions: dict[str, ColumnElement[bool]] = {
        "flagged": scored & (Result.label == PNEUMONIA),
        "not-flagged": scored & (Result.label != PNEUMONIA),
        "pending": Job.state.in_((WAITING, RUNNING)) | (Job.state.in_((DONE,)) & ~visible),
        "not-analysed": not_analysed,
    }
    wanted = [conditions[filters.show]] if filters.show in conditions else []
    if filters.read != "any":
        wanted.append(read if filters.read == "read" else ~read)
    if filters.hours != "0":
        wanted.append(Image.received_at >= now() - timedelta(hours=int(filters.hours)))
    return wanted


def _order(read: ColumnElement[bool], visible: ColumnElement[bool]) -> tuple[ColumnElement[Any], ...]:
    """Unread first; then urgent by order or network; then the longest waiting."""
    raised = case((Result.urgent.is_(True) & visible, URGENT), else_=Job.priority)
    urgency = case((Job.priority > raised, Job.priority), else_=raised)
    return (case((read, 1), else_=0), urgency.desc(), Image.received_at.asc(), Image.id.asc())
