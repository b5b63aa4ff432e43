"""Users of the page: names, roles, passwords and sign-ins."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pneumoscope.errors import ConfigError
from pneumoscope.serving.store.database import Store, database_time
from pneumoscope.serving.store.tables import SignIn, User

VIEWER, READER, ADMIN = "viewer", "reader", "admin"
ROLES = (VIEWER, READER, ADMIN)  # each has the rights of those before it
SHORTEST, LONGEST = 12, 256  # characters of a password
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True)
class Person:
    """A signed-in user at a browser. `token`: the secret in the browser's cookie."""

    user_id: int
    sign_in_id: int
    name: str
    role: str
    token: str

    def may(self, role: str) -> bool:
        """Say whether this user has the rights of a role."""
        return ROLES.index(self.role) >= ROLES.index(role)


def add_user(store: Store, name: str, role: str, password: str) -> None:
    """Add a user.

    Raises:
        ConfigError: the name is taken or has other characters, there is no such role, or the password is too short.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no user name", remedy="use up to 40 letters, digits, dots, dashes")
    if role not in ROLES:
        raise ConfigError(f"there is no role {role!r}", remedy=f"use {', '.join(ROLES)}")
    if not SHORTEST <= len(password) <= LONGEST:
        raise ConfigError("the password is too short or too long", remedy=f"use {SHORTEST} to {LONGEST} characters")
    hashed = PasswordHasher().hash(password)
    try:
        with store.write() as session:
            session.add(User(name=name, role=role, password=hashed, disabled=False, created_at=database_time(session)))
    except IntegrityError as error:
        raise ConfigError(f"a user {name!r} exists", remedy="choose another name") from error


def users(store: Store) -> list[User]:
    """Return all users, by name."""
    with store.read() as session:
        rows = list(session.scalars(select(User).order_by(User.name)))
        session.expunge_all()
        return rows


def disable_user(store: Store, name: str) -> None:
    """Disable a user and end open sign-ins; raises `ConfigError` where there is no such user."""
    with store.write() as session:
        user = session.scalar(select(User).where(User.name == name))
        if user is None:
            raise ConfigError(f"there is no user {name!r}", remedy="see `pneumoscope users list`")
        user.disabled = True
        open_ones = update(SignIn).where(SignIn.user_id == user.id, SignIn.ended_at.is_(None))
        session.execute(open_ones.values(ended_at=database_time(session)))


def sign_in(store: Store, name: str, password: str, minutes: int) -> Person | None:
    """Open a sign-in; None where name and password do not fit, which takes equally long for an unknown name."""
    with store.read() as session:
        user = session.scalar(select(User).where(User.name == name))
        if user is not None and (user.disabled or user.subject is not None):
            user = None
        user_id, hashed = (None, _unknown()) if user is None else (user.id, user.password)
    if not _fits(hashed, password) or user_id is None:
        return None
    with store.write() as session:
        return _open(session, session.get_one(User, user_id), minutes)


def vouched(store: Store, subject: str, name: str, role: str, minutes: int) -> Person | None:
    """Open a sign-in for a user of an issuer, with the role that it gives; None where the user is disabled here.

    `subject` identifies the user for ever. A new one is added as `name`, with a suffix where that name is taken: so a
    name that an issuer gives to another person opens no account.
    """
    with store.write() as session:
        user = session.scalar(select(User).where(User.subject == subject))
        if user is None:
            name = _free_name(session, name, subject)
            user = User(name=name, role=role, password="", subject=subject, disabled=False)
            user.created_at = database_time(session)
            session.add(user)
        if user.disabled:
            return None
        user.role = role
        session.flush()
        return _open(session, user, minutes)


def _open(session: Session, user: User, minutes: int) -> Person:
    token, moment = secrets.token_urlsafe(32), database_time(session)
    opened = SignIn(
        user_id=user.id, token=_digest(token), created_at=moment, expires_at=moment + timedelta(minutes=minutes)
    )
    session.add(opened)
    session.flush()
    return Person(user.id, opened.id, user.name, user.role, token)


def _free_name(session: Session, wanted: str, subject: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-._")[:40] or "user"
    if session.scalar(select(User.id).where(User.name == plain)) is None:
        return plain
    return f"{plain[:31]}-{_digest(subject)[:8]}"


def person_of(store: Store, token: str | None) -> Person | None:
    """Return the signed-in user with this token, None where the sign-in has ended or never was."""
    if not token:
        return None
    query = select(SignIn.id, User.id, User.name, User.role).join(SignIn.user)
    valid = (
        SignIn.token == _digest(token),
        SignIn.ended_at.is_(None),
        User.disabled.is_(False),
    )
    with store.read() as session:
        row = session.execute(query.where(*valid, SignIn.expires_at > database_time(session))).one_or_none()
    if row is None:
        return None
    sign_in_id, user_id, name, role = row
    return Person(user_id, sign_in_id, name, role, token)


def sign_out(store: Store, person: Person) -> None:
    """End a sign-in."""
    with store.write() as session:
        session.execute(update(SignIn).where(SignIn.id == person.sign_in_id).values(ended_at=database_time(session)))


def form_secret(token: str) -> str:
    """Return the secret of forms on pages shown to the browser with this token."""
    return hashlib.sha256(b"form " + token.encode()).hexdigest()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _fits(hashed: str, password: str) -> bool:
    try:
        return PasswordHasher().verify(hashed, password[:LONGEST])
    except VerificationError:
        return False


@cache
def _unknown() -> str:
    return PasswordHasher().hash(secrets.token_hex(16))
