"""The web application: health, readiness, metrics, STOW-RS; pages join here."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from pneumoscope import __version__
from pneumoscope.serving.config import Gateway
from pneumoscope.serving.metrics import render
from pneumoscope.serving.processes import names, open_intake
from pneumoscope.serving.store import Store, now
from pneumoscope.serving.stow import create_router
from pneumoscope.serving.tables import Beat

_SILENT = timedelta(seconds=60)  # a process that said nothing for so long is not well
_BEAT = 5.0


def create_app(config: Gateway, store: Store) -> FastAPI:
    """Return the application of a gateway."""
    app = FastAPI(title="Pneumoscope", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Say that this process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        """Say whether images can come in, be analysed and leave: 503 names who is not well."""
        missing = not_ready(config, store)
        return JSONResponse({"ready": not missing, "not_ready": missing}, 503 if missing else 200)

    @app.get("/metrics")
    def metrics() -> Response:
        """Return the figures of the service."""
        return Response(render(config, store), media_type="text/plain; version=0.0.4; charset=utf-8")

    if config.stow is not None:
        app.include_router(create_router(config, open_intake(config, store)))
    return app


def not_ready(config: Gateway, store: Store) -> list[str]:
    """Return who is not well: processes that did not speak for a minute, or the database."""
    try:
        with store.read() as session:
            beats = dict(session.execute(select(Beat.name, Beat.at)).tuples().all())
    except OperationalError:
        return ["database"]
    moment = now()
    wanted = [name for name in names(config) if name != "web"]
    return [name for name in wanted if name not in beats or moment - beats[name] > _SILENT]


def run(config: Gateway, store: Store, stop: threading.Event) -> None:
    """Serve until told to stop."""
    settings = uvicorn.Config(
        create_app(config, store), host=config.web.bind, port=config.web.port, log_config=None, access_log=False
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)  # beside the main thread it takes no signal handlers
    thread.start()
    while not stop.wait(_BEAT) and thread.is_alive():
        store.beat("web", os.getpid())
    failed = not stop.is_set()
    server.should_exit = True
    thread.join()
    if failed:
        raise SystemExit(1)
