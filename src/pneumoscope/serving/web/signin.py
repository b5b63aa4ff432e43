"""Signing in and out."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from pneumoscope.serving.people import trail
from pneumoscope.serving.people.accounts import LONGEST, VIEWER, Person, form_secret, sign_in, sign_out
from pneumoscope.serving.web.guard import COOKIE, OIDC, Limiter, needs
from pneumoscope.serving.web.pages import PRINTABLE, Pages, Shared, page

HOME = "/worklist"
FAILURES, WITHIN = 5, 300.0  # of one name or address, within so many seconds; then it is locked out


def router() -> APIRouter:
    """Return the routes of this page; failed attempts are counted in memory."""
    routes, failures = APIRouter(), Limiter(FAILURES, WITHIN)

    redirect: dict[int | str, dict[str, Any]] = {303: {"description": "redirected to a page"}}

    @routes.get("/signin", response_class=HTMLResponse, responses=redirect)
    def form(request: Request, pages: Shared, back: str = HOME) -> Response:
        """Show the form."""
        if request.state.person is not None:
            return RedirectResponse(inside(back), 303)
        return _form(request, pages, back, None)

    @routes.post("/signin", response_class=RedirectResponse, status_code=303)
    def enter(
        request: Request,
        pages: Shared,
        name: Annotated[str, Form(max_length=40, pattern=PRINTABLE)],
        password: Annotated[str, Form(max_length=LONGEST)],
        back: Annotated[str, Form(max_length=200)] = HOME,
    ) -> Response:
        """Open a sign-in with a new secret, so that an earlier one is worthless."""
        if not pages.config.web.passwords:
            raise HTTPException(403, "sign-in by password is disabled here")
        keys = (f"name {name.lower()}", f"address {request.client.host if request.client else ''}")
        if any(failures.full(key) for key in keys):
            return _form(request, pages, back, "Too many attempts: wait five minutes.", 429)
        person = sign_in(pages.store, name, password, pages.config.web.session_minutes)
        if person is None:
            for key in keys:
                failures.count(key)
            trail.note(pages.store, None, trail.REFUSED)
            return _form(request, pages, back, "Name and password do not fit.", 401)
        trail.note(pages.store, person, trail.SIGNED_IN)
        answer = RedirectResponse(inside(back), 303)
        give(answer, pages, person.token)
        return answer

    @routes.post("/signout", response_class=RedirectResponse, status_code=303)
    def leave(pages: Shared, person: Annotated[Person, Depends(needs(VIEWER))]) -> Response:
        """End the sign-in."""
        sign_out(pages.store, person)
        trail.note(pages.store, person, trail.SIGNED_OUT)
        answer = RedirectResponse("/signin", 303)
        answer.delete_cookie(COOKIE)
        return answer

    return routes


def _form(request: Request, pages: Pages, back: str, fault: str | None, status: int = 200) -> HTMLResponse:
    """Show the form, bound to this browser by a secret without a user."""
    token = request.cookies.get(COOKIE) or secrets.token_urlsafe(32)
    web = pages.config.web
    values = {"back": inside(back), "fault": fault, "form_secret": form_secret(token), "passwords": web.passwords}
    answer = page(request, "signin.html.j2", status, oidc=web.oidc, oidc_path=OIDC, **values)
    give(answer, pages, token)
    return answer


def give(answer: Response, pages: Pages, token: str) -> None:
    """Set the cookie with a browser's secret."""
    answer.set_cookie(COOKIE, token, httponly=True, samesite="lax", secure=pages.config.web.https)


def inside(back: str) -> str:
    """Return a path on these pages, so that no link to the form redirects elsewhere."""
    inside = back.startswith("/") and not back.startswith("//") and "\\" not in back and back.isprintable()
    return back if inside else HOME
