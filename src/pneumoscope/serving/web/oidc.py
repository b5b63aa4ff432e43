"""Signing in at an issuer: OpenID Connect's authorization code flow with PKCE, state and nonce, by Authlib.

Who somebody is there (issuer and subject) is who the user is here; what the account may do is read from a claim of the
signed ID token at each sign-in. What a sign-in needs until the issuer answers lies in a signed cookie of the browser.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import httpx2  # what Authlib speaks with, where it is installed
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from joserfc.errors import JoseError
from starlette.concurrency import run_in_threadpool
from starlette.middleware.sessions import SessionMiddleware

from pneumoscope.serving.people import trail
from pneumoscope.serving.people.accounts import ROLES, vouched
from pneumoscope.serving.settings.gateway import Oidc, Web, is_private
from pneumoscope.serving.settings.secret import read_secret
from pneumoscope.serving.watch.logs import logger
from pneumoscope.serving.web.guard import OIDC, OIDC_ANSWER
from pneumoscope.serving.web.pages import Here, Pages
from pneumoscope.serving.web.signin import HOME, give, inside
from pneumoscope.serving.wire.tls import client_tls

COOKIE = "pneumoscope_oidc"
_PENDING = 600  # seconds in which somebody must sign in at the issuer
_SECONDS = 10.0  # that the issuer may take for an answer
_LEEWAY = 60  # seconds by which its clock may be wrong
# Signed by the issuer's private key alone: neither `none` nor a secret that this gateway knows too.
_SIGNED = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")


class Issuer:
    """An issuer as its client here sees it; what it says of itself is asked for once."""

    def __init__(self, settings: Oidc) -> None:
        """Read the secret.

        Raises:
            ConfigError: it is empty, or a certificate cannot be used.
            StorageError: it cannot be read.
        """
        self.settings = settings
        options = {
            "scope": " ".join(settings.scopes),
            "code_challenge_method": "S256",
            "timeout": _SECONDS,
            "trust_env": False,
            "verify": client_tls(settings.tls),
        }
        self._client = OAuth().register(
            "issuer",
            client_id=settings.client_id,
            client_secret=read_secret(settings.client_secret_file),
            server_metadata_url=discovery(settings),
            client_kwargs=options,
        )

    async def send(self, request: Request) -> Response:
        """Return the way to the issuer; raises `HTTPException` 503 where it cannot be reached or is another one."""
        more = {"prompt": "login"} if self.settings.ask_again else {}
        try:
            await self._known()
            found: Response = await self._client.authorize_redirect(request, answer_address(self.settings), **more)
        except (httpx2.HTTPError, ValueError, RuntimeError) as error:
            raise _down(error) from error
        return found

    async def claims(self, request: Request) -> Mapping[str, Any]:
        """Return the claims of the ID token that the answer in a request leads to.

        Raises:
            HTTPException: 401 where state, nonce, audience, issuer, signature or time do not fit; 503 where the issuer
                cannot be reached.
        """
        wanted = {
            "iss": {"essential": True, "value": self.settings.issuer},
            "aud": {"essential": True, "value": self.settings.client_id},
        }
        try:
            await self._known()
            token = await self._client.authorize_access_token(request, claims_options=wanted, leeway=_LEEWAY)
        except (AuthlibBaseError, JoseError) as error:
            logger("web").warning("sign-in refused", error=type(error).__name__)
            raise HTTPException(401, "the sign-in did not succeed: try again") from error
        except (httpx2.HTTPError, ValueError, RuntimeError) as error:
            raise _down(error) from error
        if not token.get("userinfo"):
            raise HTTPException(401, "the issuer gave no ID token")
        found: Mapping[str, Any] = token["userinfo"]
        return found

    async def _known(self) -> None:
        """Ask the issuer what it is (OpenID Connect Discovery 1.0, 4.3), and believe no other."""
        told = await self._client.load_server_metadata()
        if fault := why_not(told, self.settings):
            told.clear()  # so that it is asked again
            raise ValueError(fault)
        offered = told.get("id_token_signing_alg_values_supported", ["RS256"])
        told["id_token_signing_alg_values_supported"] = [name for name in offered if name in _SIGNED] or ["RS256"]


def discovery(settings: Oidc) -> str:
    """Return where the issuer says what it is."""
    return f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration"


def answer_address(settings: Oidc) -> str:
    """Return where the issuer leads browsers back to; it must know this address."""
    return f"{settings.address.rstrip('/')}{OIDC_ANSWER}"


def why_not(told: Mapping[str, Any], settings: Oidc) -> str | None:
    """Return why what an issuer says of itself cannot be used, None where it can."""
    if told.get("issuer") != settings.issuer:
        return f"it calls itself {told.get('issuer')!r}, not {settings.issuer!r}"
    missing = [name for name in _ENDPOINTS if not is_private(str(told.get(name, "")))]
    return f"its {missing[0]} is missing or not https" if missing else None


def role_of(claims: Mapping[str, Any], settings: Oidc) -> str | None:
    """Return the highest role that a claim gives, None where it gives none. The claim is a name, or a dotted path."""
    found: Any = claims.get(settings.claim)
    if found is None:
        found = claims
        for name in settings.claim.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    named = found if isinstance(found, list) else [found]
    roles = [settings.roles[name] for name in named if isinstance(name, str) and name in settings.roles]
    return max(roles, key=ROLES.index) if roles else None


def add_to(app: FastAPI, web: Web, settings: Oidc) -> None:
    """Add the routes, and the cookie that a sign-in needs until the issuer answers."""
    app.add_middleware(
        SessionMiddleware,
        secret_key=secrets.token_hex(32),  # who is on the way when the gateway ends begins anew
        session_cookie=COOKIE,
        max_age=_PENDING,
        path=OIDC,
        same_site="lax",
        https_only=web.https,
    )
    app.include_router(router(settings))


def router(settings: Oidc) -> APIRouter:
    """Return the routes: to the issuer, and back."""
    routes, issuer = APIRouter(), Issuer(settings)

    @routes.get(OIDC, include_in_schema=False)
    async def leave(request: Request, back: str = HOME) -> Response:
        """Lead to the issuer."""
        request.session.clear()  # one sign-in at a time
        answer = await issuer.send(request)
        request.session["back"] = inside(back)
        return answer

    @routes.get(OIDC_ANSWER, include_in_schema=False)
    async def arrive(request: Request, pages: Here) -> Response:
        """Open a sign-in for whom the issuer vouches."""
        back = inside(str(request.session.get("back", HOME)))
        try:
            claims = await issuer.claims(request)
        except HTTPException:
            await run_in_threadpool(trail.note, pages.store, None, trail.REFUSED, detail="oidc")
            raise
        finally:
            request.session.clear()
        token = await run_in_threadpool(_open, pages, claims, settings)
        answer = RedirectResponse(back, 303)
        give(answer, pages, token)
        return answer

    return routes


def _open(pages: Pages, claims: Mapping[str, Any], settings: Oidc) -> str:
    role = role_of(claims, settings)
    if role is None:
        trail.note(pages.store, None, trail.REFUSED, detail="oidc: no role")
        raise HTTPException(403, "your account has no role here: ask who manages accounts for one")
    subject, name = f"{settings.issuer} {claims['sub']}", str(claims.get(settings.name_claim) or "user")
    who = vouched(pages.store, subject, name, role, pages.config.web.session_minutes)
    if who is None:
        trail.note(pages.store, None, trail.REFUSED, detail="oidc: disabled")
        raise HTTPException(403, "your account is disabled here")
    trail.note(pages.store, who, trail.SIGNED_IN, detail="oidc")
    return who.token


def _down(error: Exception) -> HTTPException:
    logger("web").error("issuer cannot be used", error=type(error).__name__)
    return HTTPException(503, "the sign-in service cannot be reached or used: try again later")
