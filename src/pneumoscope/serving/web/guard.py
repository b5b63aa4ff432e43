"""What stands before every page: who asks, from which page, how often, and what browsers may do with the answer."""

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
MACHINES = "/dicom-web/"  # peers that are admitted by a token of their own, or not at all; their size has its own limit
UPLOAD = "/upload"
# What any route may answer, as the interface's description has it: a page to browsers, JSON to programs.
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
_ADDRESSES = 10_000  # remembered at once
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
    """Put in what every answer carries."""
    for name, value in HEADERS.items():
        headers[name] = value
    if settings.https:
        headers["Strict-Transport-Security"] = "max-age=31536000"


def faults(statuses: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Return what a route may answer besides success, for the description of the interface."""
    return {status: {"description": what, "content": _FAULT} for status, what in statuses.items()}


class Limiter:
    """Counts what happened under a key within a time; forgets the oldest keys."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self._clock = most, seconds, clock
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def full(self, key: str) -> bool:
        """Say whether nothing more is allowed under this key for now."""
        with self._lock:
            return len(self._recent(key)) >= self.most

    def count(self, key: str) -> bool:
        """Count once; False, and not counted, where it is full."""
        with self._lock:
            seen = self._recent(key)
            if len(seen) >= self.most:
                return False
            seen.append(self._clock())
            return True

    def _recent(self, key: str) -> deque[float]:
        seen = self._seen.setdefault(key, deque())
        self._seen.move_to_end(key)
        while len(self._seen) > _ADDRESSES:
            self._seen.popitem(last=False)
        since = self._clock() - self.seconds
        while seen and seen[0] <= since:
            seen.popleft()
        return seen


class Guard:
    """ASGI middleware: limits of rate and size, and the headers that every answer carries."""

    def __init__(self, app: ASGIApp, settings: Web) -> None:
        self.app, self.settings = app, settings
        self.limiter = Limiter(_PER_MINUTE, 60.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse and say why."""
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
        told = dict(scope["headers"]).get(b"content-length", b"")
        if not told.isdigit():
            return PlainTextResponse("the size of the request is not told\n", 411)
        most = (self.settings.upload_mb << 20) + _OVERHEAD if scope["path"] == UPLOAD else _FORM_BYTES
        if int(told) > most:
            return PlainTextResponse(f"too large: at most {most >> 10} KiB are taken here\n", 413)
        return None


class SignInNeededError(Exception):
    """A page was asked for by nobody. `back`: where to go afterwards."""

    def __init__(self, back: str) -> None:
        super().__init__(back)
        self.back = back


def signed_in(request: Request) -> Person | None:
    """Say who asks; stands before every route, so that a new one cannot forget it."""
    if request.url.path.startswith(MACHINES):
        return None
    who = person_of(request.app.state.pages.store, request.cookies.get(COOKIE))
    request.state.person = who
    if who is None and request.url.path not in PUBLIC:
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            query = f"?{request.url.query}" if request.url.query else ""
            raise SignInNeededError(quote(request.url.path + query))
        raise HTTPException(401, "sign in first")
    return who


async def from_our_page(request: Request, who: Annotated[Person | None, Depends(signed_in)]) -> None:
    """Refuse what changes something and was not sent by a page of this browser (CSRF)."""
    if request.method in _SAFE or request.url.path.startswith(MACHINES):
        return
    given: object = request.headers.get("x-form-secret")
    if given is None:
        given = (await request.form()).get(FIELD)
    token = request.cookies.get(COOKIE)
    if not token or not isinstance(given, str) or not hmac.compare_digest(given.encode(), form_secret(token).encode()):
        raise HTTPException(403, "this form is out of date: open the page again")


def needs(role: str) -> Callable[..., Person]:
    """Return the dependency of a route that only users with the rights of a role may use."""

    def allowed(who: Annotated[Person | None, Depends(signed_in)]) -> Person:
        if who is None:
            raise HTTPException(401, "sign in first")
        if not who.may(role):
            raise HTTPException(403, f"this is for the role {role}, and you have {who.role}")
        return who

    return allowed
