"""Uploading a DICOM file, which goes through the intake like every image."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from pneumoscope.errors import ImageError, StorageError, storage_errors
from pneumoscope.serving.intake.receipt import OWN_RESULT, Receipt
from pneumoscope.serving.people import trail
from pneumoscope.serving.people.accounts import READER, Person
from pneumoscope.serving.web.guard import UPLOAD, faults, needs
from pneumoscope.serving.web.pages import Pages, Shared, page

Reader = Annotated[Person, Depends(needs(READER))]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "form_secret"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "form_secret": {"type": "string"},
                    },
                }
            }
        },
    }
}


def router() -> APIRouter:
    """Return the routes of this page."""
    routes = APIRouter()

    @routes.get(UPLOAD, response_class=HTMLResponse)
    def form(request: Request, pages: Shared, person: Reader) -> HTMLResponse:
        """Show the form."""
        return _form(request, pages, None)

    # The guard reads the form after the sign-in is checked, so that no stranger fills the disk.
    @routes.post(
        UPLOAD,
        response_class=RedirectResponse,
        status_code=303,
        responses=faults({507: "the disk is full"}),
        openapi_extra=_BODY,
    )
    async def take(request: Request, pages: Shared, person: Reader) -> Response:
        """Take a file, and show the image."""
        file = (await request.form()).get("file")
        if not isinstance(file, UploadFile):
            raise HTTPException(422, "the form holds no file")
        try:
            receipt = await run_in_threadpool(bring, pages, person, file)
        except ImageError as error:
            return _form(request, pages, f"The file was not taken: {error.what}.", 422)
        except StorageError as error:
            return _form(request, pages, f"The file was not taken: {error.what}.", 507)
        if receipt.outcome == OWN_RESULT or receipt.image_id is None:
            return _form(request, pages, "The file was not taken: it is a result of this software.", 422)
        return RedirectResponse(f"/study/{receipt.image_id}", 303)

    return routes


def bring(pages: Pages, person: Person, upload: UploadFile) -> Receipt:
    """Copy an upload into the folder of incoming files, and take it; its name is not used.

    Raises:
        ImageError: it is no DICOM object.
        StorageError: the disk is full.
    """
    with storage_errors(pages.config.folder):
        for folder in (pages.config.incoming, pages.config.images):
            folder.mkdir(parents=True, exist_ok=True)
        pages.intake.room()
        with tempfile.NamedTemporaryFile(dir=pages.config.incoming, prefix="page-", delete=False) as empty:
            arrival = Path(empty.name)
    try:
        with storage_errors(arrival), arrival.open("wb") as target:
            shutil.copyfileobj(upload.file, target)
        receipt = pages.intake.take(arrival, f"page:{person.name}")
    finally:
        arrival.unlink(missing_ok=True)
    trail.note(pages.store, person, trail.UPLOADED, receipt.image_id, receipt.outcome)
    return receipt


def _form(request: Request, pages: Pages, fault: str | None, status: int = 200) -> HTMLResponse:
    names = [item.name for item in pages.config.deliveries]
    return page(request, "upload.html.j2", status, fault=fault, destinations=names, most=pages.config.web.upload_mb)
