"""Signing in at an issuer: a small one on loopback that signs its own tokens, and everything it may get wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from pydantic import ValidationError
from sqlalchemy import select
from tests.support.gateway import CALLER, gateway
from tests.support.servers import Handler, http_server
from tests.support.web import WebApp, events, opened, sign_in

from pneumoscope.errors import ConfigError, StorageError
from pneumoscope.serving.people import accounts, trail
from pneumoscope.serving.run import check
from pneumoscope.serving.settings.gateway import Oidc, load_gateway
from pneumoscope.serving.store.tables import User
from pneumoscope.serving.web.oidc import role_of

CLIENT, SECRET, ADDRESS = "pneumoscope", "issuer's secret", "http://127.0.0.1:8042"
ROLES = {"radiology": "reader", "it": "admin"}


@dataclass
class Issuer:
    """What it says of the next user; `changes` to the claims, and to what it says of itself."""

    url: str = ""
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one"}))
    published: RSAKey | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    discovery: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)  # of the browser that was led here
    algorithm: str = "RS256"
    signing: Any = None
    status: int = 200

    def metadata(self) -> dict[str, Any]:
        paths = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        return {
            "issuer": self.url,
            **{name: f"{self.url}/{path}" for name, path in paths.items()},
            "id_token_signing_alg_values_supported": ["none", "HS256", "RS256"],
            **self.discovery,
        }

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        client = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        proof = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        honest = form["code"] == "the code" and proof.decode() == self.asked["code_challenge"]
        if not honest or authorization != f"Basic {client}" or form["redirect_uri"] != self.asked["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        moment = int(time.time())
        claims = {
            "iss": self.url, "aud": CLIENT, "sub": "17", "iat": moment, "exp": moment + 300,
            "nonce": self.asked["nonce"], "preferred_username": "jane", "roles": ["staff", "radiology"],
        }  # fmt: skip
        claims = {name: value for name, value in {**claims, **self.changes}.items() if value is not None}
        header = {"alg": self.algorithm, "kid": "one"}
        signed = jwt.encode(header, claims, self.signing or self.key, algorithms=[self.algorithm])
        return self.status, {"access_token": "a", "token_type": "Bearer", "id_token": signed}


@contextmanager
def serving(issuer: Issuer) -> Iterator[Issuer]:
    class Endpoints(Handler):
        def do_GET(self) -> None:
            keys = {"keys": [(issuer.published or issuer.key).as_dict(private=False)]}
            self.reply(200, keys if self.path == "/keys" else issuer.metadata())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            self.reply(*issuer.token(form, self.headers.get("authorization", "")))

        def reply(self, status: int, content: dict[str, Any]) -> None:
            self.answer(status, json.dumps(content).encode(), Content_Type="application/json")

    with http_server(Endpoints) as issuer.url:
        yield issuer


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serving(Issuer()) as issuer:
        yield issuer


def settings(by: Issuer, folder: Path, **changes: Any) -> dict[str, Any]:
    secret = folder / "oidc.secret"
    secret.write_text(f"{SECRET}\n")
    values = {
        "issuer": by.url,
        "client_id": CLIENT,
        "client_secret_file": secret,
        "address": ADDRESS,
        "roles": ROLES,
    }
    return {**values, **changes}


@pytest.fixture
def web(tmp_path: Path, with_users: Path, issuer: Issuer) -> Iterator[WebApp]:
    with opened(tmp_path, with_users, web={"oidc": settings(issuer, tmp_path)}) as running:
        yield running


def led_to(browser: TestClient, issuer: Issuer, back: str = "/worklist") -> Any:
    """Press the link; what the issuer is asked is kept as it would see it."""
    answered = browser.get("/signin/oidc", params={"back": back})
    if answered.status_code == 302:
        assert answered.headers["location"].startswith(f"{issuer.url}/authorize?")
        query = parse_qs(urlsplit(answered.headers["location"]).query)
        issuer.asked = {name: values[0] for name, values in query.items()}
    return answered


def return_with(browser: TestClient, issuer: Issuer, **changes: str) -> Any:
    return browser.get("/signin/oidc/answer", params={"code": "the code", "state": issuer.asked["state"], **changes})


def through(web: WebApp, issuer: Issuer, back: str = "/worklist", **changes: Any) -> tuple[TestClient, Any]:
    browser, issuer.changes = web.browser(), changes
    assert led_to(browser, issuer, back).status_code == 302
    return browser, return_with(browser, issuer)


def test_who_the_issuer_vouches_for_is_signed_in(web: WebApp, issuer: Issuer) -> None:
    browser, answered = through(web, issuer, "/study/7")
    assert (answered.status_code, answered.headers["location"]) == (303, "/study/7")
    asked = issuer.asked
    assert (asked["response_type"], asked["code_challenge_method"], asked["prompt"]) == ("code", "S256", "login")
    assert (asked["redirect_uri"], asked["scope"]) == (f"{ADDRESS}/signin/oidc/answer", "openid profile")
    page = browser.get("/worklist")
    assert page.status_code == 200
    assert "jane" in page.text
    assert [browser.get(path).status_code for path in ("/upload", "/technical")] == [200, 403]
    (event,) = events(web, trail.SIGNED_IN)
    assert event.detail == "oidc"
    secret = page.text.split('name="form_secret" value="')[1][:64]
    assert browser.post("/signout", data={"form_secret": secret}).status_code == 303
    assert len(events(web, trail.SIGNED_OUT)) == 1
    assert browser.get("/worklist").status_code == 303


def test_the_same_account_is_the_same_user_with_the_role_of_today(web: WebApp, issuer: Issuer) -> None:
    through(web, issuer)
    browser, _ = through(web, issuer, roles=["it", "radiology"], preferred_username="jane.new-name")
    assert browser.get("/technical").status_code == 200
    with web.store.read() as session:
        (user,) = session.scalars(select(User).where(User.subject.is_not(None)))
        assert (user.name, user.role, user.subject) == ("jane", "admin", f"{issuer.url} 17")


def test_a_name_is_no_way_into_an_account(web: WebApp, issuer: Issuer) -> None:
    through(web, issuer, preferred_username="admin")
    through(web, issuer, preferred_username="admin", sub="18")
    through(web, issuer, preferred_username="Zoë Ärzt@h.example", sub="19")
    names = [user.name for user in accounts.users(web.store) if user.subject]
    assert names[0] == "Zo-rzt-h.example" or "Zo-rzt-h.example" in names
    assert sum(name.startswith("admin-") for name in names) == 2
    assert sign_in(web.browser(), names[-1], "").status_code in (401, 422)
    assert accounts.sign_in(web.store, names[0], "", 5) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "another"}, {"nonce": None}, {"aud": "another"}, {"aud": "another", "azp": CLIENT},
        {"exp": int(time.time()) - 600}, {"exp": None}, {"iss": "https://another.example"}, {"sub": None},
    ],
)  # fmt: skip
def test_a_token_that_does_not_fit_lets_nobody_in(web: WebApp, issuer: Issuer, changes: dict[str, Any]) -> None:
    browser, answered = through(web, issuer, **changes)
    assert answered.status_code == 401
    assert "try again" in answered.text
    assert browser.get("/worklist").status_code == 303
    assert [event.detail for event in events(web, trail.REFUSED)] == ["oidc"]
    assert events(web, trail.SIGNED_IN) == []


@pytest.mark.filterwarnings("ignore:JWS algorithm")  # that is what is tried
@pytest.mark.parametrize("how", ["another key", "none", "the client's secret"])
def test_a_token_that_the_issuer_did_not_sign(web: WebApp, issuer: Issuer, how: str) -> None:
    if how == "another key":
        issuer.published = RSAKey.generate_key(2048, {"kid": "one"})
    elif how == "none":
        issuer.algorithm = "none"
    else:
        issuer.algorithm, issuer.signing = "HS256", OctKey.import_key(SECRET)
    assert through(web, issuer)[1].status_code == 401


def test_a_new_key_of_the_issuer_is_asked_for(web: WebApp, issuer: Issuer) -> None:
    through(web, issuer)
    issuer.key = RSAKey.generate_key(2048, {"kid": "two"})
    signed = jwt.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jwt, "encode", lambda header, *rest, **more: signed({**header, "kid": "two"}, *rest, **more))
        assert through(web, issuer)[1].status_code == 303


@pytest.mark.parametrize("roles", [["cleaning"], "cleaning", [], None, [7], {"radiology": True}])
def test_without_a_role_nobody_gets_in(web: WebApp, issuer: Issuer, roles: Any) -> None:
    browser, answered = through(web, issuer, roles=roles)
    assert answered.status_code == 403
    assert "no role" in answered.text
    assert "research use only" in answered.text
    assert browser.get("/worklist").status_code == 303
    assert [event.detail for event in events(web, trail.REFUSED)] == ["oidc: no role"]
    assert all(user.subject is None for user in accounts.users(web.store))


def test_a_disabled_user_stays_out(web: WebApp, issuer: Issuer) -> None:
    browser, _ = through(web, issuer)
    accounts.disable_user(web.store, "jane")
    assert browser.get("/worklist").status_code == 303
    assert through(web, issuer)[1].status_code == 403


def test_the_answer_is_for_the_browser_that_asked(web: WebApp, issuer: Issuer) -> None:
    led_to(browser := web.browser(), issuer)
    assert return_with(web.browser(), issuer).status_code == 401  # a link that somebody else sent
    assert return_with(browser, issuer, state="another").status_code == 401
    assert return_with(browser, issuer).status_code == 401  # used up
    led_to(browser, issuer)
    assert return_with(browser, issuer, error="access_denied").status_code == 401
    led_to(browser, issuer)
    assert return_with(browser, issuer, code="another").status_code == 401
    led_to(browser, issuer)
    issuer.asked["code_challenge"] = "another"
    assert return_with(browser, issuer).status_code == 401


def test_nobody_is_led_elsewhere(web: WebApp, issuer: Issuer) -> None:
    assert through(web, issuer, "https://evil.example/")[1].headers["location"] == "/worklist"
    assert through(web, issuer, "//evil.example")[1].headers["location"] == "/worklist"


def test_an_issuer_that_is_down_is_said_so_and_asked_again(tmp_path: Path, with_users: Path) -> None:
    with serving(Issuer()) as issuer:
        pass
    with opened(tmp_path, with_users, web={"oidc": settings(issuer, tmp_path)}) as web:
        answered = led_to(web.browser(), issuer)
        assert answered.status_code == 503
        assert "cannot be reached" in answered.text
        assert sign_in(web.browser(), "reader").status_code == 303  # passwords go on


def test_an_issuer_that_fails_in_between(web: WebApp, issuer: Issuer) -> None:
    issuer.status = 502
    browser, answered = through(web, issuer)
    assert answered.status_code == 503
    assert browser.get("/worklist").status_code == 303


def test_another_issuer_is_not_believed_until_it_is_put_right(web: WebApp, issuer: Issuer) -> None:
    for odd in ({"issuer": "https://another.example"}, {"token_endpoint": "http://hospital.example/token"}):
        issuer.discovery = odd
        assert led_to(web.browser(), issuer).status_code == 503
    issuer.discovery = {}
    assert through(web, issuer)[1].status_code == 303


def test_passwords_may_be_switched_off(tmp_path: Path, with_users: Path, issuer: Issuer) -> None:
    with opened(tmp_path, with_users, web={"passwords": False, "oidc": settings(issuer, tmp_path)}) as web:
        browser = web.browser()
        page = browser.get("/signin?back=/study/7").text
        assert 'type="password"' not in page
        assert 'href="/signin/oidc?back=/study/7"' in page
        from pneumoscope.serving.people.accounts import form_secret

        values = {"name": "reader", "password": "correct horse battery"}
        secret = form_secret(browser.cookies["pneumoscope"])
        assert browser.post("/signin", data={**values, "form_secret": secret}).status_code == 403
        assert through(web, issuer)[1].status_code == 303


def test_without_the_section_there_is_no_such_way(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users) as web:
        browser = web.browser()
        assert browser.get("/signin/oidc").status_code == 404
        assert "/signin/oidc" not in browser.get("/signin").text


def test_the_cookie_of_the_way_is_kept_from_scripts_and_other_pages(
    tmp_path: Path, with_users: Path, issuer: Issuer
) -> None:
    with opened(tmp_path, with_users, web={"https": True, "oidc": settings(issuer, tmp_path)}) as web:
        cookie = led_to(web.browser(), issuer).headers["set-cookie"].lower()
        assert all(part in cookie for part in ("path=/signin/oidc", "httponly", "samesite=lax", "secure"))
        assert SECRET not in cookie


@pytest.mark.parametrize(
    ("claim", "claims", "role"),
    [
        ("roles", {"roles": "it"}, "admin"), ("roles", {"roles": ["radiology", "it"]}, "admin"),
        ("realm_access.roles", {"realm_access": {"roles": ["radiology"]}}, "reader"),
        ("https://h.example/roles", {"https://h.example/roles": ["radiology"]}, "reader"),
        ("realm_access.roles", {"realm_access": "it"}, None), ("roles", {}, None),
    ],
)  # fmt: skip
def test_roles_of_a_claim(tmp_path: Path, claim: str, claims: dict[str, Any], role: str | None) -> None:
    oidc = Oidc.model_validate(settings(Issuer("https://id.example"), tmp_path, claim=claim))
    assert role_of(claims, oidc) == role


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("issuer", "http://id.hospital.example", "https"), ("address", "http://pages.hospital.example", "https"),
        ("issuer", "http://127.0.0.1.evil.example", "https"), ("roles", {"it": "root"}, "viewer"), ("roles", {}, "1"),
        ("scopes", ("profile",), "openid"),
    ],
)  # fmt: skip
def test_a_configuration_that_would_not_be_safe(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Oidc.model_validate(settings(Issuer("https://id.example"), tmp_path, **{key: value}))
    Oidc.model_validate(settings(Issuer("https://id.example"), tmp_path))


def test_passwords_off_needs_another_way(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"web\.oidc"):
        gateway(tmp_path, web={"passwords": False})


def test_the_file_is_read_and_a_missing_secret_is_named(tmp_path: Path, with_users: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'folder = "g"\n[receive]\ncallers = ["{CALLER}"]\n[web.oidc]\nissuer = "https://id.example"\n'
        f'client_id = "c"\nclient_secret_file = "s"\naddress = "{ADDRESS}"\n[web.oidc.roles]\nit = "admin"\n'
    )
    oidc = load_gateway(file).web.oidc
    assert oidc is not None
    assert oidc.client_secret_file == tmp_path / "s"
    with pytest.raises(StorageError, match="s"), opened(tmp_path / "g", with_users, web={"oidc": oidc.model_dump()}):
        pass
    (tmp_path / "s").write_text("\n")
    with (
        pytest.raises(ConfigError, match="not one line"),
        opened(tmp_path, with_users, web={"oidc": oidc.model_dump()}),
    ):
        pass


def test_check_asks_the_issuer(tmp_path: Path, issuer: Issuer) -> None:
    oidc = Oidc.model_validate(settings(issuer, tmp_path))
    assert check._issuer(oidc).fault is None
    issuer.discovery = {"issuer": "https://another.example"}
    assert "calls itself" in str(check._issuer(oidc).fault)
    down = Oidc.model_validate(settings(Issuer("http://127.0.0.1:1"), tmp_path))
    assert (check._issuer(down).fault, check._issuer(down).fatal) == ("ConnectError", False)
