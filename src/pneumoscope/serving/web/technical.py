"""The technical page, with queue, deliveries, processes, times, disk and versions, and the audit trail."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from pneumoscope.serving.people import trail
from pneumoscope.serving.people.accounts import ADMIN, Person
from pneumoscope.serving.settings.process_names import names
from pneumoscope.serving.store import jobs, outbox
from pneumoscope.serving.store.database import database_time, revision
from pneumoscope.serving.store.tables import (
    COMMITTED,
    DEAD,
    DELIVERY_STATES,
    DONE,
    QUARANTINED,
    SENT,
    Beat,
    Delivery,
    Feed,
    Image,
    Job,
    Object,
    Result,
)
from pneumoscope.serving.web.guard import faults, needs
from pneumoscope.serving.web.pages import Number, Pages, Shared, page
from pneumoscope.version import __version__

_LATEST = 500  # answers over which times are computed
_MOST = 100  # rows of each list
_EVENTS = 300

Admin = Annotated[Person, Depends(needs(ADMIN))]


def router() -> APIRouter:
    """Return the routes of this page."""
    routes = APIRouter()

    @routes.get("/technical", response_class=HTMLResponse)
    def technical(request: Request, pages: Shared, person: Admin) -> HTMLResponse:
        """Show the state of the gateway."""
        return page(request, "technical.html.j2", **content(pages))

    @routes.get("/technical/rows", response_class=HTMLResponse)
    def rows(request: Request, pages: Shared, person: Admin) -> HTMLResponse:
        """Return the tables alone, with which an open page renews itself."""
        return page(request, "technical_rows.html.j2", **content(pages))

    stale = faults({409: "it is not in the state that allows this"})

    @routes.post(
        "/technical/deliveries/{delivery_id}/replay", response_class=RedirectResponse, status_code=303, responses=stale
    )
    def replay(pages: Shared, person: Admin, delivery_id: Number) -> Response:
        """Queue a given-up delivery again."""
        if not outbox.replay(pages.store, delivery_id):
            raise HTTPException(409, "this delivery is not given up, or its bytes were erased")
        trail.note(pages.store, person, trail.REPLAYED, detail=f"delivery {delivery_id}")
        return RedirectResponse("/technical", 303)

    @routes.post("/technical/jobs/{job_id}/again", response_class=RedirectResponse, status_code=303, responses=stale)
    def again(pages: Shared, person: Admin, job_id: Number) -> Response:
        """Send an image that could not be analysed back to the queue."""
        if not jobs.try_again(pages.store, job_id):
            raise HTTPException(409, "this image is not quarantined")
        trail.note(pages.store, person, trail.AGAIN, detail=f"job {job_id}")
        return RedirectResponse("/technical", 303)

    @routes.get("/audit", response_class=HTMLResponse)
    def trail_page(request: Request, pages: Shared, person: Admin) -> HTMLResponse:
        """Show who saw or did what, the newest first."""
        trail.note(pages.store, person, trail.READ_AUDIT)
        return page(request, "audit.html.j2", events=trail.latest(pages.store, _EVENTS), most=_EVENTS)

    return routes


def content(pages: Pages) -> dict[str, Any]:
    """Return the values of the page."""
    disk = shutil.disk_usage(pages.config.folder)
    with pages.store.read() as session:
        images = select(func.sum(Image.size)).where(Image.file.is_not(None))
        return {
            "jobs": list(jobs.counts(session).items()),
            "waiting_since": jobs.waiting_since(session),
            "destinations": _destinations(pages, session),
            "feeds": _feeds(pages, session),
            "dead": _dead(session),
            "quarantined": _quarantined(session),
            "processes": _processes(pages, session),
            "stages": _stages(session),
            "disk": {
                "free": f"{disk.free / 2**30:.1f} GiB",
                "share": f"{100 * disk.free / disk.total:.0f} %",
                "images": f"{(session.scalar(images) or 0) / 2**20:,.0f} MiB",
                "low": disk.free < 2 * (pages.config.receive.free_mb << 20),
                "limit": f"{pages.config.receive.free_mb:,} MiB",
            },
            "versions": _versions(pages),
            "shadow": pages.config.shadow,
            "moment": database_time(session),
        }


def _destinations(pages: Pages, session: Session) -> list[dict[str, Any]]:
    counts = outbox.counts(session)
    configured = {item.name: item for item in pages.config.destination}
    every = list(dict.fromkeys([*configured, *(name for name, _ in counts)]))
    return [
        {
            "name": name,
            "kind": configured[name].kind if name in configured else "no longer configured",
            "counts": [counts.get((name, state), 0) for state in DELIVERY_STATES],
            "waiting_since": outbox.waiting_since(session, name),
            "reason": outbox.refused(session, name),
        }
        for name in every
    ]


def _feeds(pages: Pages, session: Session) -> list[dict[str, Any]]:
    feeds = {feed.name: feed for feed in session.scalars(select(Feed))}
    return [{"name": item.name, "feed": feeds.get(item.name)} for item in pages.config.orthanc]


def _dead(session: Session) -> list[dict[str, Any]]:
    kind = joinedload(Delivery.object).load_only(Object.kind)
    query = select(Delivery).where(Delivery.state == DEAD).options(kind)
    return [
        {"id": row.id, "to": row.destination, "kind": row.object.kind, "at": row.created_at, "reason": row.reason}
        for row in session.scalars(query.order_by(Delivery.id.desc()).limit(_MOST))
    ]


def _quarantined(session: Session) -> list[dict[str, Any]]:
    query = select(Job).where(Job.state == QUARANTINED).options(joinedload(Job.image)).order_by(Job.id.desc())
    query = query.limit(_MOST)
    return [
        {
            "id": job.id,
            "image_id": job.image_id,
            "at": job.ended_at,
            "reason": job.reason,
            "attempts": job.attempts,
            "again": job.image.version == 1,
        }
        for job in session.scalars(query)
    ]


def _processes(pages: Pages, session: Session) -> list[dict[str, Any]]:
    beats = {beat.name: (beat.at, beat.pid) for beat in session.scalars(select(Beat))}
    mine = [] if pages.config.host else names(pages.config)  # with several hosts only the start says which run here
    every = dict.fromkeys([*mine, *sorted(beats)])
    return [{"name": name, "at": beats.get(name, (None, None))[0], "pid": beats.get(name, (None, None))[1]}
            for name in every]  # fmt: skip


def _stages(session: Session) -> list[dict[str, Any]]:
    """Return the seconds of each stage over the latest answers: median and 95th percentile."""
    answered = select(Image.received_at, Job.ended_at, Result.milliseconds).join(Image.job).join(Job.result)
    rows = session.execute(
        answered.where(Job.state == DONE).order_by(Result.id.desc()).limit(_LATEST)
    ).all()  # fmt: skip
    sent = select(Delivery.created_at, Delivery.sent_at).where(Delivery.state.in_((SENT, COMMITTED)))
    left = session.execute(sent.order_by(Delivery.sent_at.desc()).limit(_LATEST)).all()
    return [
        _times("from receipt to answer", [_between(start, end) for start, end, _ in rows if end is not None]),
        _times("of these, reading and network", [float(spent) / 1000 for *_, spent in rows]),
        _times("from answer to delivery", [_between(start, end) for start, end in left if end is not None]),
    ]


def _between(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds()


def _times(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    middle, late = (None, None) if not seconds else map(float, np.percentile(seconds, (50, 95)))
    return {"name": name, "n": len(seconds), "median": middle, "p95": late}


def _versions(pages: Pages) -> list[tuple[str, str]]:
    version, _ = revision(pages.store)
    return [
        ("Pneumoscope", __version__),
        ("Bundle", pages.bundle.label),
        ("Tables", f"{pages.store.engine.dialect.name}, version {version}"),
        ("Python", platform.python_version()),
        ("System", platform.system()),
    ]
