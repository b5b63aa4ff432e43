"""One radiograph with its answer: viewer, facts about the score, and feedback of readers."""

from __future__ import annotations

import io
import json
import secrets
import threading
from typing import Annotated, Any, Literal

import numpy as np
import PIL.Image
from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from pneumoscope.errors import ImageError
from pneumoscope.explanation.overlay import layer
from pneumoscope.journal.entry import PAGE, SURE, UNSURE, Label
from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.serving.people import trail
from pneumoscope.serving.people.accounts import READER, VIEWER, Person
from pneumoscope.serving.store.database import database_time
from pneumoscope.serving.store.tables import Feedback, Image, Job, Result
from pneumoscope.serving.web.answers import answer_of, calibration, hidden, limits
from pneumoscope.serving.web.guard import faults, needs
from pneumoscope.serving.web.pages import PRINTABLE, Number, Pages, Shared, page
from pneumoscope.serving.web.pixels import rendition

AGREE, DISAGREE, DOUBT = "agree", "disagree", "unsure"
VERDICTS = {AGREE: "Agree", DISAGREE: "Disagree", DOUBT: "Not sure"}
# Header values for programs; descriptions are free text, in which some hospitals write names.
_HEADER_KEYS = ("modality", "view", "body_part", "age_years", "sex", "rows", "columns", "bits", "photometric")
_OTHER = {NORMAL: PNEUMONIA, PNEUMONIA: NORMAL}
_ONE_BY_ONE = threading.Lock()

Viewer = Annotated[Person, Depends(needs(VIEWER))]
Reader = Annotated[Person, Depends(needs(READER))]


class Study(BaseModel):
    """An image and its answer, without identity."""

    image_id: int
    state: str
    kind: str
    headline: str
    detail: str
    score: str | None
    header: dict[str, Any]


def router() -> APIRouter:
    """Return the routes of this page."""
    routes = APIRouter(responses=faults({404: "there is no such image, or no map of it"}))

    @routes.get("/study/{image_id}", response_class=HTMLResponse)
    def study_page(request: Request, pages: Shared, person: Viewer, image_id: Number) -> HTMLResponse:
        """Show a radiograph with its answer."""
        trail.note(pages.store, person, trail.VIEWED, image_id if _exists(pages, image_id) else None)
        return page(request, "study.html.j2", **_content(pages, person, image_id))

    @routes.post(
        "/study/{image_id}/feedback",
        response_class=RedirectResponse,
        status_code=303,
        responses=faults({409: "there is no answer that could be agreed with"}),
    )
    def feedback(
        pages: Shared,
        person: Reader,
        image_id: Number,
        verdict: Annotated[Literal["agree", "disagree", "unsure"], Form()],
        key: Annotated[str, Form(pattern=r"^[0-9a-f]{32}$")],
        comment: Annotated[str, Form(max_length=2000, pattern=PRINTABLE)] = "",
    ) -> Response:
        """Keep the reader's verdict, and write the resulting label into the journal."""
        keep_feedback(pages, person, image_id, verdict, key, comment.strip() or None)
        return RedirectResponse(f"/study/{image_id}#feedback", 303)

    @routes.get("/api/studies/{image_id}", tags=["api"])
    def answer(pages: Shared, person: Viewer, image_id: Number) -> Study:
        """Return an image's state and answer, without identity."""
        with pages.store.read() as session:
            image = _image(session, image_id)
            shown = answer_of(image.job, person, pages.bundle)
            values: dict[str, Any] = {name: getattr(shown, name) for name in ("kind", "headline", "detail", "score")}
            header = {name: image.header.get(name) for name in _HEADER_KEYS}
            study = Study(image_id=image.id, state=image.job.state, header=header, **values)
        trail.note(pages.store, person, trail.VIEWED, image_id)
        return study

    routes.include_router(_pictures())
    return routes


def _pictures() -> APIRouter:
    routes = APIRouter()

    @routes.get("/study/{image_id}/pixels", response_class=Response, responses=_binary("application/octet-stream"))
    def pixels(pages: Shared, person: Viewer, image_id: Number) -> Response:
        """Return the stored pixels, uint16 little-endian, row by row; size and first window in `X-Rendition`."""
        with pages.store.read() as session:
            file = _image(session, image_id).file
        if file is None:
            raise HTTPException(410, "the file of this image was erased")
        trail.note(pages.store, person, trail.PIXELS, image_id)
        try:
            image = rendition(pages.config.images / file)
        except ImageError as error:
            raise HTTPException(422, error.what) from error
        height, width = image.values.shape
        facts = {"columns": width, "rows": height}
        facts |= {name: getattr(image, name) for name in ("center", "width", "first", "last")}
        body = np.ascontiguousarray(image.values, "<u2").tobytes()
        return Response(body, media_type="application/octet-stream", headers={"X-Rendition": json.dumps(facts)})

    @routes.get("/study/{image_id}/overlay.png", response_class=Response, responses=_binary("image/png"))
    def overlay(pages: Shared, person: Viewer, image_id: Number) -> Response:
        """Return the heat map as a layer over the whole image."""
        with pages.store.read() as session:
            result = _image(session, image_id).job.result
            if result is None or result.map_png is None or hidden(result, person):
                raise HTTPException(404, "there is no map of this image")
            stored = result.map_png
        trail.note(pages.store, person, trail.OVERLAY, image_id)
        with PIL.Image.open(io.BytesIO(stored), formats=("PNG",)) as grey:
            heat = np.asarray(grey.convert("L"), np.float32) / np.float32(255)
        buffer = io.BytesIO()
        PIL.Image.fromarray(layer(heat), "RGBA").save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")

    return routes


def _binary(kind: str) -> dict[int | str, dict[str, Any]]:
    binary = {kind: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"content": binary}, **faults({410: "the file of this image was erased"})}


def keep_feedback(pages: Pages, person: Person, image_id: int, verdict: str, key: str, comment: str | None) -> bool:
    """Keep feedback in the tables, and its label in the journal; False where this form was sent before.

    The comment stays out of the journal: it may name a patient. The journal first, under the form's key: a form sent
    again after a crash between the two is written once in both. The journal is written outside of a transaction,
    because it may be locked for long, as while months of it are archived.
    """
    with _ONE_BY_ONE:  # so that journal and tables agree where one form is sent with two verdicts
        with pages.store.read() as session:
            result = _answered(session, image_id, person)
            if _is_kept(session, key):
                return False
            label = None if verdict == DOUBT else result.label if verdict == AGREE else _OTHER[str(result.label)]
            moment = database_time(session)
            said = Label(
                key=f"page-{key}",
                at=moment,
                study=pages.pseudonyms.of("study", result.job.image.study_uid),
                label=label,
                source=PAGE,
                note=verdict,
                answer=result.answer,
                reader=pages.pseudonyms.of("reader", person.name),
                certainty=UNSURE if label is None else SURE,
                blind=False,
            )
        pages.journal.append_label(said)
        with pages.store.write() as session:
            result = _answered(session, image_id, person)  # it may have been erased meanwhile
            if _is_kept(session, key):
                return False
            session.add(
                Feedback(
                    key=key,
                    result_id=result.id,
                    user_id=person.user_id,
                    verdict=verdict,
                    label=label,
                    comment=comment,
                    created_at=moment,
                )
            )
            trail.add(session, person, trail.FEEDBACK, image_id, verdict)
            return True


def _answered(session: Session, image_id: int, person: Person) -> Result:
    result = _image(session, image_id).job.result
    if result is None or result.label is None or hidden(result, person):
        raise HTTPException(409, "there is no answer that could be agreed with")
    return result


def _is_kept(session: Session, key: str) -> bool:
    return session.scalar(select(Feedback.id).where(Feedback.key == key)) is not None


def _content(pages: Pages, person: Person, image_id: int) -> dict[str, Any]:
    with pages.store.read() as session:
        image = _image(session, image_id)
        result = image.job.result
        answer = answer_of(image.job, person, pages.bundle)
        shown = result is not None and not hidden(result, person)
        others = select(Image.id, Image.received_at).where(
            Image.study_uid == image.study_uid, Image.patient_id == image.patient_id, Image.id != image.id
        )
        return {
            "image": _facts(image),
            "answer": answer,
            "can_show": image.file is not None,
            "has_map": shown and result is not None and result.map_png is not None,
            "explained_by": result.explained_by if shown and result is not None else None,
            "calibration": calibration(result, pages.bundle) if answer.scored and result is not None else [],
            "limits": limits(result, pages.bundle) if answer.scored and result is not None else (),
            "feedback": _feedback(session, result) if shown else [],
            "verdicts": VERDICTS,
            "key": secrets.token_hex(16),
            "others": session.execute(others.order_by(Image.id)).all(),
        }


def _feedback(session: Session, result: Result | None) -> list[dict[str, Any]]:
    if result is None:
        return []
    query = select(Feedback).where(Feedback.result_id == result.id).options(joinedload(Feedback.user))
    return [
        {"by": item.user.name, "verdict": VERDICTS[item.verdict], "comment": item.comment, "at": item.created_at}
        for item in session.scalars(query.order_by(Feedback.id))
    ]


def _facts(image: Image) -> dict[str, Any]:
    value = image.header.get
    age = value("age_years")
    return {
        "id": image.id,
        "name": image.patient_name,
        "patient_id": image.patient_id,
        "birth_date": image.birth_date,
        "accession": image.accession,
        "age": None if age is None else f"{age:g} years",
        "sex": value("sex"),
        "view": value("view"),
        "description": value("description"),
        "study_date": value("study_date"),
        "device": " ".join(filter(None, (value("manufacturer"), value("model")))) or None,
        "size": f"{value('columns')} × {value('rows')}",
        "received_at": image.received_at,
        "source": image.source,
        "notes": image.notes,
    }


def _image(session: Session, image_id: int) -> Image:
    query = select(Image).join(Image.job).where(Image.id == image_id)
    image = session.scalar(query.options(joinedload(Image.job).joinedload(Job.result)))
    if image is None:
        raise HTTPException(404, "there is no such image")
    return image


def _exists(pages: Pages, image_id: int) -> bool:
    with pages.store.read() as session:
        return session.scalar(select(Image.id).where(Image.id == image_id)) is not None
