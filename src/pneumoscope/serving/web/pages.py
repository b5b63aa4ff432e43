"""Shared by the pages: configuration, tables, journal, bundle and templates of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from pneumoscope.bundle.bundle import Bundle, load_bundle
from pneumoscope.journal.journal import Journal
from pneumoscope.journal.pseudonyms import Pseudonyms, default_key
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.serving.intake.receipt import Intake, open_intake
from pneumoscope.serving.people.accounts import ADMIN, READER, form_secret
from pneumoscope.serving.settings.gateway import Gateway
from pneumoscope.serving.store.database import Store, now
from pneumoscope.serving.web.guard import COOKIE, FIELD
from pneumoscope.version import __version__


@dataclass(frozen=True)
class Pages:
    """The gateway behind the pages; costly parts are opened on first use."""

    config: Gateway
    store: Store

    @cached_property
    def bundle(self) -> Bundle:
        """The current bundle; raises `BundleError` where it is damaged."""
        return load_bundle(self.config.bundle.path)

    @cached_property
    def intake(self) -> Intake:
        """The intake for uploads and STOW-RS."""
        return open_intake(self.config, self.store)

    @cached_property
    def journal(self) -> Journal:
        """The journal that monitoring reads."""
        return Journal(self.config.journal_file)

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """The pseudonyms of the journal."""
        return Pseudonyms.load(self.config.journal.key or default_key(self.config.journal_file))

    @cached_property
    def templates(self) -> Environment:
        """Every value is escaped, and a missing one is an error."""
        environment = Environment(
            loader=PackageLoader("pneumoscope.serving.web"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        environment.filters |= {"ago": ago, "clock": clock, "day": day, "person_name": person_name}
        return environment


def pages_of(request: Request) -> Pages:
    """Return the shared parts of the pages of a request."""
    pages: Pages = request.app.state.pages
    return pages


Shared = Annotated[Pages, Depends(pages_of)]
PRINTABLE = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$"  # of texts; databases refuse some control characters
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]  # of a row


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page from a template, with the signed-in user and the secret of its forms."""
    token = request.cookies.get(COOKIE, "")
    shared = {
        "person": getattr(request.state, "person", None),
        "path": request.url.path,
        "form_field": FIELD,
        "form_secret": form_secret(token),
        "notice": RESEARCH_ONLY,
        "version": __version__,
        "reader": READER,
        "admin": ADMIN,
        "reviews": pages_of(request).config.review is not None,
        "now": now(),
    }
    text = pages_of(request).templates.get_template(template).render(shared | values)
    return HTMLResponse(text, status)


def ago(moment: datetime | None, until: datetime) -> str:
    """Write a time span in the largest fitting unit: `40 s`, `12 min`, `3 h`, `2 d`."""
    if moment is None:
        return "never"
    seconds = max(timedelta(0), until - moment).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def clock(moment: datetime | None) -> str:
    """Write a time in UTC, `not yet` where there is none."""
    return "not yet" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def day(date: str | None) -> str:
    """Write a DICOM date (PS3.5, 6.2) as `2026-03-04`; other text stays as it is."""
    if date is None:
        return "unknown"
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdigit() else date


def person_name(name: str | None) -> str:
    """Write a DICOM name (PS3.5, 6.2.1) for people: `Doe, Jane`; the first representation that is not empty."""
    if not name:
        return "no name"
    first = next((part for part in name.split("=") if part.strip("^ ")), "")
    parts = [part.strip() for part in first.split("^")]
    return ", ".join(part for part in (parts[0], " ".join(filter(None, parts[1:3]))) if part) or "no name"
