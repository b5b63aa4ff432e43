"""The web application: pages for people; health, readiness, metrics and STOW-RS for machines."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from sqlalchemy import select
from starlette.exceptions import HTTPException

from pneumoscope.errors import PneumoscopeError, StorageError
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.settings.process_names import kind_of, names, signed
from pneumoscope.serving.store.database import Store, database_time
from pneumoscope.serving.store.tables import Beat
from pneumoscope.serving.watch.logs import logger
from pneumoscope.serving.watch.prometheus import render
from pneumoscope.serving.web import review_page, signin, study_page, technical, upload, worklist
from pneumoscope.serving.web.guard import Guard, SignInNeededError, dress, faults, from_our_page, signed_in
from pneumoscope.serving.web.pages import Pages, page
from pneumoscope.serving.web.stow import create_router
from pneumoscope.version import __version__

_SILENT = timedelta(seconds=60)  # without a sign of life a process is not ready
_BEAT = 5.0
_EVERYWHERE = faults(
    {
        401: "nobody is signed in",
        403: "the role or the secret of the form does not fit",
        411: "the request has no Content-Length",
        413: "the request is too large",
        422: "the request does not fit its description",
        429: "too many requests or attempts",
        500: "a fault of the gateway",
    }
)
_STORED = {"content": {"application/dicom+json": {"schema": {"type": "object"}}}}
_STOW = faults(  # PS3.18, table 10.5.3-1
    {
        400: "the body is not what its header says",
        415: "no multipart/related of DICOM files",
        503: "the disk is full",
    }
) | {
    200: {"description": "all objects were stored", **_STORED},
    202: {"description": "some objects were stored", **_STORED},
    409: {"description": "no object was stored", **_STORED},
}


class Readiness(BaseModel):
    """Whether the gateway is ready, and which of its processes are not."""

    ready: bool
    not_ready: list[str]


def create_app(config: Gateway, store: Store) -> FastAPI:
    """Return the application of a gateway."""
    app = FastAPI(
        title="Pneumoscope",
        summary=RESEARCH_ONLY,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # the description is its own route, guarded like any other
        responses=_EVERYWHERE,
        dependencies=[Depends(signed_in), Depends(from_our_page)],
    )
    app.state.pages = Pages(config, store)
    if config.web.oidc is not None:
        from pneumoscope.serving.web import oidc

        oidc.add_to(app, config.web, config.web.oidc)
    app.add_middleware(Guard, settings=config.web)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    _add_machines(app, config, store)
    for part in (signin, worklist, study_page, review_page, technical, upload):
        app.include_router(part.router())
    if config.stow is not None:
        app.include_router(create_router(config, app.state.pages.intake), responses=_STOW)
    _add_faults(app, config)
    return app


def _add_machines(app: FastAPI, config: Gateway, store: Store) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Say that this process answers."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    def readyz() -> JSONResponse:
        """Say whether images can be received, analysed and sent: 503 names the processes that are not ready."""
        missing = not_ready(config, store)
        return JSONResponse({"ready": not missing, "not_ready": missing}, 503 if missing else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Return the metrics of the service."""
        return Response(render(config, store), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/openapi.json", include_in_schema=False)
    def openapi() -> dict[str, Any]:
        """Return the description of all routes."""
        return app.openapi()

    @app.get("/", include_in_schema=False)
    def home() -> RedirectResponse:
        """Redirect to the worklist."""
        return RedirectResponse(signin.HOME, 303)


def _add_faults(app: FastAPI, config: Gateway) -> None:
    """Report faults as a page to browsers, as JSON to programs."""

    @app.exception_handler(SignInNeededError)
    def sign_in_first(request: Request, error: SignInNeededError) -> Response:
        return RedirectResponse(f"/signin?back={error.back}", 303)

    @app.exception_handler(HTTPException)
    def http_fault(request: Request, error: HTTPException) -> Response:
        return _fault(request, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(PneumoscopeError)
    def known_fault(request: Request, error: PneumoscopeError) -> Response:
        logger("web").error("page failed", error=type(error).__name__)
        return _fault(request, 500, error.what)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        wrong = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        return _fault(request, 422, f"the request does not fit: {wrong}")

    @app.exception_handler(Exception)  # answered outside the guard, and raised again for the server to log
    def unforeseen(request: Request, error: Exception) -> Response:
        answered = _fault(request, 500, "an internal fault of the gateway; its log says where")
        dress(answered.headers, config.web)
        return answered


def _fault(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return page(request, "fault.html.j2", status, message=message, code=status)
    return JSONResponse({"detail": message}, status, headers)


def not_ready(config: Gateway, store: Store) -> list[str]:
    """Return what is not ready: processes without a sign of life for a minute, or the database.

    With several hosts one process of each kind must be ready, on any host.
    """
    try:
        with store.read() as session:
            moment = database_time(session)
            alive = set(session.scalars(select(Beat.name).where(Beat.at >= moment - _SILENT)))
    except StorageError:
        return ["database"]
    missing = [name for name in names(config) if name != "web" and signed(config, name) not in alive]
    elsewhere = {kind_of(name) for name in alive} if config.host else set()
    return [name for name in missing if kind_of(name) not in elsewhere]


def run(config: Gateway, store: Store, stop: threading.Event, name: str = "web") -> None:
    """Serve until `stop` is set. `name`: of the process."""
    settings = uvicorn.Config(
        create_app(config, store),
        host=config.web.bind,
        port=config.web.port,
        log_config=None,
        access_log=False,
        server_header=False,
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)  # beside the main thread it takes no signal handlers
    thread.start()
    while not stop.wait(_BEAT) and thread.is_alive():
        store.beat(name, os.getpid())
    failed = not stop.is_set()
    server.should_exit = True
    thread.join()
    if failed:
        raise SystemExit(1)
