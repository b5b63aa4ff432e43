"""The page of a gateway, browsers that are signed in, and images with answers."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import select
from tests.support.findings import heat
from tests.support.gateway import chest, gateway

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.serving.intake.receipt import open_intake
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, now, open_store
from pneumoscope.serving.store.tables import DONE, Event, Result, Review
from pneumoscope.serving.store.tables import Job as JobRow
from pneumoscope.serving.web.server import create_app

PASSWORD = "correct horse battery"


HTML = {"accept": "text/html"}


@dataclass
class WebApp:
    """A gateway with its pages, and a browser for each role."""

    config: Gateway
    store: Store
    app: Any

    def browser(self) -> TestClient:
        return TestClient(self.app, base_url="http://testserver", follow_redirects=False, headers=HTML)

    def as_(self, role: str) -> TestClient:
        browser = self.browser()
        assert sign_in(browser, role).status_code == 303
        return browser


def sign_in(browser: TestClient, name: str, password: str = PASSWORD, back: str = "/worklist") -> Any:
    secret = secret_of(browser.get("/signin").text)
    return browser.post("/signin", data={"name": name, "password": password, "back": back, "form_secret": secret})


def secret_of(page: str) -> str:
    match = re.search(r'name="form_secret" value="([0-9a-f]{64})"', page)
    assert match is not None
    return match[1]


@contextmanager
def opened(folder: Path, with_users: Path | str, **changes: Any) -> Iterator[WebApp]:
    """A gateway with a copy of a database: a SQLite file, or the URL of a PostgreSQL."""
    if isinstance(with_users, str):
        changes["store"] = {"url": with_users}
    config = gateway(folder, **changes)
    for path in (config.folder, config.images, config.incoming):
        path.mkdir(exist_ok=True, parents=True)
    if isinstance(with_users, Path):
        shutil.copy(with_users, config.folder / "gateway.sqlite")
    store = open_store(config.database)
    try:
        yield WebApp(config, store, create_app(config, store))
    finally:
        store.close()


def bring(web: WebApp, source: pydicom.Dataset) -> int:
    """Take an image as the listener does; returns its row."""
    arrival = web.config.incoming / "a.dcm"
    source.save_as(arrival, enforce_file_format=True)
    image_id = open_intake(web.config, web.store).take(arrival, "dicom:XRAYROOM1").image_id
    assert image_id is not None
    return image_id


def answer(web: WebApp, image_id: int, probability: float | None = 0.97, **changes: Any) -> int:
    """Answer about an image as the worker does; returns the result's row."""
    bundle, moment = load_bundle(), now()
    buffer = io.BytesIO()
    PIL.Image.fromarray((heat(64) * 255).astype(np.uint8)).save(buffer, "PNG")
    threshold = float(bundle.card["operating_points"]["balanced"]["threshold"])
    label = None if probability is None else PNEUMONIA if probability >= threshold else NORMAL
    values: dict[str, Any] = {
        "bundle": bundle.label, "bundle_sha256": bundle.sha256, "probability": probability, "label": label,
        "threshold": threshold, "subtype": None, "abstained": probability is None, "reason": None, "quality": {},
        "milliseconds": 21.0, "map_png": buffer.getvalue() if probability is not None else None,
        "explained_by": "gradcam, stable", "answer": "a" * 32, "urgent": label == PNEUMONIA, "shadow": False,
        "created_at": moment,
    }  # fmt: skip
    with web.store.write() as session:
        job = session.scalars(select(JobRow).where(JobRow.image_id == image_id)).one()
        job.state, job.ended_at = DONE, moment
        job.result = Result(**{**values, **changes})
        session.flush()
        return job.result.id


def events(web: WebApp, action: str) -> list[Event]:
    with web.store.read() as session:
        rows = list(session.scalars(select(Event).where(Event.action == action)))
        session.expunge_all()
        return rows


def routes(web: WebApp) -> list[tuple[str, str]]:
    """Every route with every method, its parameters filled."""
    methods = []
    stack = list(web.app.router.routes)
    while stack:
        route = stack.pop()
        if isinstance(route, APIRoute):
            methods += [(method, re.sub(r"\{\w+\}", "1", route.path)) for method in sorted(route.methods)]
        else:
            stack += getattr(getattr(route, "original_router", None), "routes", [])
    return methods


def upload(browser: TestClient, content: bytes, name: str = "a.dcm") -> Any:
    secret = secret_of(browser.get("/upload").text)
    return browser.post("/upload", data={"form_secret": secret}, files={"file": (name, content)})


def yesterdays(web: WebApp, count: int, **changes: Any) -> None:
    """Take so many studies in and answer about them as of yesterday: the network abstained from the first."""
    for n in range(count):
        image_id = bring(web, chest(StudyInstanceUID=f"1.2.{n}", PatientID=f"p{n}"))
        answer(web, image_id, None if n == 0 else n / count, created_at=now() - timedelta(days=1), **changes)


def asked(web: WebApp) -> list[tuple[int, str, float]]:
    """What samples ask about: results, names of samples, probabilities."""
    with web.store.read() as session:
        rows = session.execute(select(Review.result_id, Review.sample, Review.inclusion).order_by(Review.id))
        return [(int(a), str(b), float(c)) for a, b, c in rows]
