"""The guard of every route: sign-in, form secrets, limits of rate and size, and security headers."""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, HTTPException, Request
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.serving.people.accounts import Person, form_secret, person_of
from pneumoscope.serving.settings.gateway import Web

COOKIE = "pneumoscope"
FIELD = "form_secret"
OIDC = "/signin/oidc"  # to the issuer, and back
OIDC_ANSWER = f"{OIDC}/answer"
PUBLIC = frozenset({"/healthz", "/readyz", "/metrics", "/signin", OIDC, OIDC_ANSWER})
MACHINES = "/dicom-web/"  # these routes have their own token and their own limit of size
UPLOAD = "/upload"
# Any route's fault in the description of the interface: a page for browsers, JSON for programs.
_FAULT = {
    "application/json": {
        "schema": {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
    },
    "text/html": {"schema": {"type": "string"}},
    "text/plain": {"schema": {"type": "string"}},
}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FORM_BYTES = 64 << 10
_OVERHEAD = 64 << 10  # of a multipart form around its file
_PER_MINUTE = 1200  # requests of one address
_ADDRESSES = 10_000  # in memory at once
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


def dress(headers: MutableHeaders, settings: Web) -> None:
    """Add the headers of every answer."""
    for name, value in HEADERS.items():
        headers[name] = value
    if settings.https:
        headers["Strict-Transport-Security"] = "max-age=31536000"


def faults(statuses: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return a route's faults for the description of the interface."""
    return {status: {"description": text, "content": _FAULT} for status, text in statuses.items()}


class Limiter:
    """Counts the events of a key within a time; forgets the oldest keys."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self._clock = most, seconds, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def full(self, key: str) -> bool:
        """Say whether a key has reached its limit for now."""
        with self._lock:
            return len(self._recent(key)) >= self.most

    def count(self, key: str) -> bool:
        """Count one event; False, and not counted, where the key is full."""
        with self._lock:
            times = self._recent(key)
            if len(times) >= self.most:
                return False
            times.append(self._clock())
            return True

    def _recent(self, key: str) -> deque[float]:
        times = self._times.setdefault(key, deque())
        self._times.move_to_end(key)
        while len(self._times) > _ADDRESSES:
            self._times.popitem(last=False)
        since = self._clock() - self.seconds
        while times and times[0] <= since:
            times.popleft()
        return times


class Guard:
    """ASGI middleware: limits of rate and size, and the headers of every answer."""

    def __init__(self, app: ASGIApp, settings: Web) -> None:
        self.app, self.settings = app, settings
        self.limiter = Limiter(_PER_MINUTE, 60.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with a reason."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                dress(MutableHeaders(scope=message), self.settings)
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, dressed)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        if scope["path"].startswith(MACHINES):
            return None
        client = scope.get("client")
        if not self.limiter.count(client[0] if client else ""):
            return PlainTextResponse("too many requests: wait a minute\n", 429, {"Retry-After": "60"})
        if scope["method"] in _SAFE:
            return None
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return PlainTextResponse("the request has no Content-Length\n", 411)
        most = (self.settings.upload_mb << 20) + _OVERHEAD if scope["path"] == UPLOAD else _FORM_BYTES
        if int(length) > most:
            return PlainTextResponse(f"too large: at most {most >> 10} KiB\n", 413)
        return None


class SignInNeededError(Exception):
    """A page was requested without a sign-in. `back`: the page to show afterwards."""

    def __init__(self, back: str) -> None:
        super().__init__(back)
        self.back = back


def signed_in(request: Request) -> Person | None:
    """Return the signed-in user; a dependency of every route, so that a new one cannot forget it."""
    if request.url.path.startswith(MACHINES):
        return None
    person = person_of(request.app.state.pages.store, request.cookies.get(COOKIE))
    request.state.person = person
    if person is None and request.url.path not in PUBLIC:
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            query = f"?{request.url.query}" if request.url.query else ""
            raise SignInNeededError(quote(request.url.path + query))
        raise HTTPException(401, "sign in first")
    return person


async def from_our_page(request: Request, person: Annotated[Person | None, Depends(signed_in)]) -> None:
    """Refuse changes that were not sent from a page of this browser (CSRF)."""
    if request.method in _SAFE or request.url.path.startswith(MACHINES):
        return
    shown: object = request.headers.get("x-form-secret")
    if shown is None:
        shown = (await request.form()).get(FIELD)
    token = request.cookies.get(COOKIE)
    if not token or not isinstance(shown, str) or not hmac.compare_digest(shown.encode(), form_secret(token).encode()):
        raise HTTPException(403, "this form is out of date: open the page again")


def needs(role: str) -> Callable[..., Person]:
    """Return the dependency of a route for users with the rights of a role."""

    def allowed(person: Annotated[Person | None, Depends(signed_in)]) -> Person:
        if person is None:
            raise HTTPException(401, "sign in first")
        if not person.may(role):
            raise HTTPException(403, f"this is for the role {role}, and you have {person.role}")
        return person

    return allowed
