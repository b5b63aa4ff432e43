"""`pneumoscope serve --check`: finds what would stop the gateway before it starts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydicom.uid import ImplicitVRLittleEndian

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.errors import ConfigError, PneumoscopeError
from pneumoscope.files import private_folder
from pneumoscope.gate.header_rules import ages_of
from pneumoscope.journal.journal import format_of
from pneumoscope.journal.schema import SCHEMA
from pneumoscope.serving.settings.gateway import SHORTEST_TOKEN, Gateway, Oidc
from pneumoscope.serving.settings.neighbours import Destination, Orthanc
from pneumoscope.serving.settings.secret import read_secret
from pneumoscope.serving.store.database import Store, revision
from pneumoscope.serving.wire.association import VERIFICATION, associate
from pneumoscope.serving.wire.http import open_client
from pneumoscope.serving.wire.orthanc import Client, OrthancError
from pneumoscope.serving.wire.tls import client_tls, refusal, server_tls


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `fault`: None where it passed; `fatal`: the gateway would not work with the fault."""

    subject: str
    message: str
    fault: str | None = None
    fatal: bool = True


def check(config: Gateway) -> Iterator[Check]:
    """Yield the checks, one by one."""
    yield _tried("folder", lambda: str(private_folder(config.folder)))
    if config.folder.is_dir() and config.folder.stat().st_mode & 0o077:
        fault = "others on this machine may read it, and it holds identities"
        yield Check("folder", f"{config.folder}: {fault}; chmod 700", fault, fatal=False)
    yield _database(config)
    yield _tried("journal", lambda: _journal(config.journal_file))
    yield _tried("bundle", lambda: _bundle(config))
    yield _tried("receive", lambda: _free(config.receive.bind, config.receive.port, "receive.port"))
    yield _tried("web", lambda: _free(config.web.bind, config.web.port, "web.port"))
    if config.web.oidc is not None:
        yield _issuer(config.web.oidc)
    if config.stow is not None:
        yield _tried("stow", lambda: _senders(config))
    if config.receive.tls is not None:
        tls = config.receive.tls
        yield _tried(
            "receive.tls",
            lambda: "client certificates " + ("asked for" if server_tls(tls).verify_mode else "not asked for"),
        )
    for source in config.orthanc:
        yield _polled(source)
    for item in config.destination:
        if item.enabled:
            yield _reach(item)


def _tried(subject: str, look: Callable[[], str]) -> Check:
    try:
        return Check(subject, look())
    except PneumoscopeError as error:
        return Check(subject, str(error), error.what)


def _database(config: Gateway) -> Check:
    """Check the tables without a migration: there is no way back to an older version."""
    try:
        store = Store(config.database)
        kind, file = store.engine.dialect.name, store.engine.url.database
        if store.sqlite and not Path(file or "").exists():
            return Check("database", f"{kind}: does not exist yet, the start creates it")
        version, needed = revision(store)
        store.close()
    except PneumoscopeError as error:
        return Check("database", str(error), error.what)
    if version is None:
        return Check("database", f"{kind}: no tables yet, the start creates them")
    if version < needed:
        fault = f"tables of version {version}: the start brings them to {needed}, for good; back them up first"
        return Check("database", f"{kind}: {fault}", fault, fatal=False)
    if version > needed:
        fault = f"tables of version {version}, and this version knows {needed} at most: install the newer one"
        return Check("database", f"{kind}: {fault}", fault)
    return Check("database", kind)


def _journal(file: Path) -> str:
    if not file.exists():
        return f"{file}: does not exist yet, the start creates it"
    version = format_of(file)
    return str(file) if version == SCHEMA else f"{file}: of format {version}, the start brings it to {SCHEMA}"


def _bundle(config: Gateway) -> str:
    bundle = load_bundle(config.bundle.path)
    point = config.bundle.operating_point or bundle.card["operating_point"]
    if point not in bundle.card["operating_points"]:
        raise ConfigError(f"the bundle has no operating point {point!r}", remedy="mend bundle.operating_point")
    ages = ages_of(config.analyse, bundle.card)
    years = "no limit of age, neither in analyse.age_years nor in the bundle"
    return f"{bundle.label}, {point}, " + (years if ages is None else f"{ages[0]:g} to {ages[1]:g} years")


def _issuer(settings: Oidc) -> Check:
    """An issuer that is down is no fatal fault: signed-in users stay so."""
    from pneumoscope.serving.web.oidc import discovery, unusable

    try:
        read_secret(settings.client_secret_file)
        answer = httpx.get(discovery(settings), verify=client_tls(settings.tls), timeout=5.0, trust_env=False)
        fault = unusable(answer.raise_for_status().json(), settings)
    except PneumoscopeError as error:
        return Check("web.oidc", str(error), error.what)
    except (httpx.HTTPError, ValueError) as error:
        return Check("web.oidc", f"{settings.issuer} does not answer", type(error).__name__, fatal=False)
    return Check("web.oidc", fault or settings.issuer, fault)


def _senders(config: Gateway) -> str:
    file = None if config.stow is None else config.stow.token_file
    if file is None:
        return "this machine alone may send"
    read_secret(file, shortest=SHORTEST_TOKEN)
    return "senders with the token may send"


def _free(host: str, port: int, key: str) -> str:
    try:
        with socket.create_server((host, port)):
            return f"{host}:{port}"
    except OSError as error:
        raise ConfigError(f"{host}:{port} cannot be listened at ({error.strerror})", remedy=f"change {key}") from error


def _polled(source: Orthanc) -> Check:
    """An Orthanc that is down is no fatal fault: its images wait there."""
    subject = f"orthanc {source.name}"
    try:
        with open_client(
            source.tls, min(5.0, source.seconds), token_file=source.token_file, user_file=source.user_file
        ) as http:
            return Check(subject, f"answers, version {Client(source.url, http).version()}")
    except PneumoscopeError as error:
        return Check(subject, str(error), error.what)
    except OrthancError as error:
        return Check(subject, f"does not answer ({error})", str(error), fatal=False)


def _reach(to: Destination) -> Check:
    """A destination that is down is no fatal fault: its deliveries wait."""
    subject = f"destination {to.name}"
    try:
        if to.tls is not None:
            client_tls(to.tls)
    except ConfigError as error:
        return Check(subject, str(error), error.what)
    if to.kind == "dicom":
        association = associate(to, [(VERIFICATION, [ImplicitVRLittleEndian])], min(5.0, to.seconds))
        if not association.is_established:
            fault = to.tls and refusal(str(to.host), int(to.port or 0), to.tls, min(5.0, to.seconds))
            return Check(subject, fault or "does not answer", fault or "does not answer", fatal=False)
        answered = association.send_c_echo().get("Status") == 0
        association.release()
        return (
            Check(subject, "answers C-ECHO") if answered else Check(subject, "refuses C-ECHO", "refuses", fatal=False)
        )
    return Check(subject, to.url or str(to.folder or f"{to.host}:{to.port}"))
