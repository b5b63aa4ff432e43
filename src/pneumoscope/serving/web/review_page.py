"""The review queue: radiographs that a sample asks about, without the answer, until a reader has given a verdict."""

from __future__ import annotations

import secrets
import threading
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session, aliased, joinedload

from pneumoscope.journal.entry import BLIND, LIKELY, PAGE, SURE, UNSURE, Label
from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.serving.keeping.reviews import draw_days
from pneumoscope.serving.people import trail
from pneumoscope.serving.people.accounts import READER, Person
from pneumoscope.serving.store.database import database_time
from pneumoscope.serving.store.tables import Event, Image, Job, Result, Review
from pneumoscope.serving.web.answers import hidden
from pneumoscope.serving.web.guard import faults, needs
from pneumoscope.serving.web.pages import Number, Pages, Shared, page

_VERDICTS: dict[str, tuple[str | None, str, str]] = {
    "pneumonia": (PNEUMONIA, SURE, "Pneumonia"),
    "likely-pneumonia": (PNEUMONIA, LIKELY, "Probably pneumonia"),
    "unsure": (None, UNSURE, "I cannot say"),
    "likely-normal": (NORMAL, LIKELY, "Probably no pneumonia"),
    "normal": (NORMAL, SURE, "No pneumonia"),
}
Verdict = Literal["pneumonia", "likely-pneumonia", "unsure", "likely-normal", "normal"]
_SHOWN = (trail.LISTED, trail.VIEWED, trail.OVERLAY)  # what a user saw of an answer before
_APART = timedelta(days=14)  # until the same reader may be asked again about the same image
_ONE_BY_ONE = threading.Lock()

Reader = Annotated[Person, Depends(needs(READER))]


def router() -> APIRouter:
    """Return the routes of this page."""
    routes = APIRouter(responses=faults({404: "this gateway draws no sample, or there is no such review"}))

    @routes.get("/review", response_class=HTMLResponse)
    def review_page(request: Request, pages: Shared, person: Reader) -> HTMLResponse:
        """Show the next radiograph that a sample asks this reader about."""
        if pages.config.review is None:
            raise HTTPException(404, "this gateway draws no sample for review")
        draw_days(pages.store, pages.config.review)
        with pages.store.read() as session:
            waiting = _waiting(session, person)
            review = session.scalar(_whole().where(*waiting).order_by(Review.id).limit(1))
            left = session.scalar(select(func.count(Review.id)).where(*waiting))
            image = None if review is None else _facts(review.result.job.image)
            number = None if review is None else review.id
        if image is not None:
            trail.note(pages.store, person, trail.REVIEW_SHOWN, image["id"])
        key = secrets.token_hex(16)
        words = {name: text for name, (_, _, text) in _VERDICTS.items()}
        return page(request, "review.html.j2", review=number, left=left, image=image, key=key, verdicts=words)

    @routes.post(
        "/review/{review_id}",
        response_class=RedirectResponse,
        status_code=303,
        responses=faults({409: "another reader was faster"}),
    )
    def verdict(
        pages: Shared,
        person: Reader,
        review_id: Number,
        verdict: Annotated[Verdict, Form()],
        key: Annotated[str, Form(pattern=r"^[0-9a-f]{32}$")],
    ) -> Response:
        """Keep a reader's verdict, write it into the journal as a label, and show the next radiograph."""
        keep_verdict(pages, person, review_id, verdict, key)
        return RedirectResponse("/review", 303)

    return routes


def keep_verdict(pages: Pages, person: Person, review_id: int, verdict: Verdict, key: str) -> bool:
    """Keep a verdict in the tables, and its label in the journal; False where this form was sent before.

    The journal first, as with feedback. The label is blind unless this user saw the image before in a list, or with
    its answer; in shadow mode nobody but administrators did.
    """
    label, certainty, _ = _VERDICTS[verdict]
    with _ONE_BY_ONE:
        with pages.store.read() as session:
            review = _unanswered(session, review_id, key)
            if review is None:
                return False
            result, moment = review.result, database_time(session)
            blind = hidden(result, person) or not _saw(session, person, result.job.image_id)
            said = Label(
                key=f"review-{key}",
                at=moment,
                study=pages.pseudonyms.of("study", result.job.image.study_uid),
                label=label,
                source=BLIND if blind else PAGE,
                answer=result.answer,
                reader=pages.pseudonyms.of("reader", person.name),
                certainty=certainty,
                blind=blind,
                sample=review.sample,
                inclusion_probability=review.inclusion,
            )
        pages.journal.append_label(said)
        with pages.store.write() as session:
            review = _unanswered(session, review_id, key)  # it may have been erased meanwhile
            if review is None:
                return False
            review.key, review.user_id, review.answered_at = key, person.user_id, moment
            review.label, review.certainty = label, certainty
            trail.add(session, person, trail.REVIEWED, review.result.job.image_id)
            return True


def _unanswered(session: Session, review_id: int, key: str) -> Review | None:
    """Return a review that waits for its verdict, None where this form gave it."""
    review = session.scalar(_whole().where(Review.id == review_id))
    if review is None:
        raise HTTPException(404, "there is no such review")
    if review.key == key:
        return None
    if review.answered_at is not None:
        raise HTTPException(409, "another reader was faster with this one; your verdict was not needed")
    return review


def _whole() -> Select[Review]:
    return select(Review).options(joinedload(Review.result).joinedload(Result.job).joinedload(Job.image))


def _waiting(session: Session, person: Person) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of what this user may be asked about: not what they said something about lately."""
    other = aliased(Review)
    since = database_time(session) - _APART
    lately = select(other.id).where(
        other.result_id == Review.result_id, other.user_id == person.user_id, other.answered_at > since
    )
    images = select(Job.id).join(Job.image).where(Image.file.is_not(None))
    shown = select(Result.id).where(Result.job_id.in_(images))
    return Review.answered_at.is_(None), ~lately.exists(), Review.result_id.in_(shown)


def _saw(session: Session, person: Person, image_id: int) -> bool:
    seen = select(Event.id).where(Event.image_id == image_id, Event.user_id == person.user_id)
    return session.scalar(seen.where(or_(*(Event.action == action for action in _SHOWN))).limit(1)) is not None


def _facts(image: Image) -> dict[str, Any]:
    """Return what a reader needs to know, and nothing that names the patient."""
    age = image.header.get("age_years")
    shown = {name: image.header.get(name) for name in ("sex", "view", "description")}
    return {"id": image.id, "age": None if age is None else f"{age:g} years", **shown}
