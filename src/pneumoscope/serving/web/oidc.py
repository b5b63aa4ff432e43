"""Signing in at an issuer: OpenID Connect's authorization code flow with PKCE, state and nonce, by Authlib.

Issuer and subject identify the user; the role is read from a claim of the signed ID token at each sign-in. Until the
issuer answers, the state of a sign-in lies in a signed cookie of the browser.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import httpx2  # Authlib's client, where it is installed
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
from pneumoscope.serving.web.pages import Pages, Shared
from pneumoscope.serving.web.signin import HOME, give, inside
from pneumoscope.serving.wire.tls import client_tls

COOKIE = "pneumoscope_oidc"
_PENDING = 600  # seconds for the sign-in at the issuer
_SECONDS = 10.0  # for an answer of the issuer
_LEEWAY = 60  # seconds by which the issuer's clock may be wrong
# Signatures by the issuer's private key: neither `none` nor a secret that this gateway knows too.
_SIGNED = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")


class Issuer:
    """The client of an issuer; its metadata are requested once."""

    def __init__(self, settings: Oidc) -> None:
        """Read the secret.

        Raises:
            ConfigError: the secret is empty, or a certificate cannot be used.
            StorageError: the secret cannot be read.
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
        """Return the redirection to the issuer; raises `HTTPException` 503 where it cannot be reached or used."""
        more = {"prompt": "login"} if self.settings.ask_again else {}
        try:
            await self._check()
            response: Response = await self._client.authorize_redirect(request, answer_address(self.settings), **more)
        except (httpx2.HTTPError, ValueError, RuntimeError) as error:
            raise _down(error) from error
        return response

    async def claims(self, request: Request) -> Mapping[str, Any]:
        """Return the claims of the ID token for the code in a request.

        Raises:
            HTTPException: 401 where state, nonce, audience, issuer, signature or time do not fit; 503 where the issuer
                cannot be reached.
        """
        required = {
            "iss": {"essential": True, "value": self.settings.issuer},
            "aud": {"essential": True, "value": self.settings.client_id},
        }
        try:
            await self._check()
            token = await self._client.authorize_access_token(request, claims_options=required, leeway=_LEEWAY)
        except (AuthlibBaseError, JoseError) as error:
            logger("web").warning("sign-in refused", error=type(error).__name__)
            raise HTTPException(401, "the sign-in did not succeed: try again") from error
        except (httpx2.HTTPError, ValueError, RuntimeError) as error:
            raise _down(error) from error
        if not token.get("userinfo"):
            raise HTTPException(401, "the issuer gave no ID token")
        claims: Mapping[str, Any] = token["userinfo"]
        return claims

    async def _check(self) -> None:
        """Check the issuer's metadata (OpenID Connect Discovery 1.0, 4.3)."""
        metadata = await self._client.load_server_metadata()
        if fault := unusable(metadata, self.settings):
            metadata.clear()  # so that they are requested again
            raise ValueError(fault)
        offered = metadata.get("id_token_signing_alg_values_supported", ["RS256"])
        metadata["id_token_signing_alg_values_supported"] = [name for name in offered if name in _SIGNED] or ["RS256"]


def discovery(settings: Oidc) -> str:
    """Return the URL of the issuer's metadata."""
    return f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration"


def answer_address(settings: Oidc) -> str:
    """Return the URL to which the issuer sends browsers back; it must be registered there."""
    return f"{settings.address.rstrip('/')}{OIDC_ANSWER}"


def unusable(metadata: Mapping[str, Any], settings: Oidc) -> str | None:
    """Return why an issuer's metadata cannot be used, None where they can."""
    if metadata.get("issuer") != settings.issuer:
        return f"it calls itself {metadata.get('issuer')!r}, not {settings.issuer!r}"
    missing = [name for name in _ENDPOINTS if not is_private(str(metadata.get(name, "")))]
    return f"its {missing[0]} is missing or not https" if missing else None


def role_of(claims: Mapping[str, Any], settings: Oidc) -> str | None:
    """Return the highest role of a claim, None where it has none. The claim is a name, or a dotted path."""
    value: Any = claims.get(settings.claim)
    if value is None:
        value = claims
        for name in settings.claim.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
    named = value if isinstance(value, list) else [value]
    roles = [settings.roles[name] for name in named if isinstance(name, str) and name in settings.roles]
    return max(roles, key=ROLES.index) if roles else None


def add_to(app: FastAPI, web: Web, settings: Oidc) -> None:
    """Add the routes, and the cookie of sign-ins that wait for the issuer."""
    app.add_middleware(
        SessionMiddleware,
        secret_key=secrets.token_hex(32),  # after a restart, pending sign-ins start again
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
        """Redirect to the issuer."""
        request.session.clear()  # one sign-in at a time
        answer = await issuer.send(request)
        request.session["back"] = inside(back)
        return answer

    @routes.get(OIDC_ANSWER, include_in_schema=False)
    async def arrive(request: Request, pages: Shared) -> Response:
        """Open a sign-in for the issuer's user."""
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
        raise HTTPException(403, "your account has no role here: ask an administrator for one")
    subject, name = f"{settings.issuer} {claims['sub']}", str(claims.get(settings.name_claim) or "user")
    person = vouched(pages.store, subject, name, role, pages.config.web.session_minutes)
    if person is None:
        trail.note(pages.store, None, trail.REFUSED, detail="oidc: disabled")
        raise HTTPException(403, "your account is disabled here")
    trail.note(pages.store, person, trail.SIGNED_IN, detail="oidc")
    return person.token


def _down(error: Exception) -> HTTPException:
    logger("web").error("issuer cannot be used", error=type(error).__name__)
    return HTTPException(503, "the sign-in service cannot be reached or used: try again later")
