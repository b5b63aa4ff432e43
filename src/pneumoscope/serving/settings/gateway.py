"""The gateway in one TOML file; an unknown key, a wrong type or keys that contradict each other are errors."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from pneumoscope.config import Section, read_toml
from pneumoscope.gate.header_rules import Rules
from pneumoscope.serving.settings.neighbours import (
    AETitle,
    ClientTls,
    Count,
    Destination,
    File,
    Orthanc,
    Peer,
    Port,
    Seconds,
    Tls,
)

_Section = TypeVar("_Section", bound=Section)

PAGE = "docs/reference/gateway.md"
SHORTEST_TOKEN = 16  # characters of a sender's token


class Receive(Section):
    """The DICOM listener. `callers`: the titles that may send; at least one.

    `associations`: at once; `peer_associations`: from one address. `seconds`: how long a peer may be silent or take for
    one PDU. `object_seconds`, `object_mb`: how long one object may take and how large it may be, from an Orthanc too.
    `free_mb`: with less space on the disk images are refused (0xA700). `port` 0 takes a free one. `commitment`: answer
    requests for storage commitment; senders may erase what is committed, and the gateway is no archive.
    `commitment_peer`: senders that release the association before the report.
    """

    aet: AETitle = "PNEUMOSCOPE"
    port: Port = 11112
    bind: str = "127.0.0.1"
    callers: Annotated[tuple[AETitle, ...], Field(min_length=1)]
    associations: Count = 20
    peer_associations: Count = 10
    seconds: Seconds = 60.0
    object_seconds: Seconds = 300.0
    object_mb: Count = 512
    free_mb: Annotated[int, Field(ge=0)] = 500
    commitment: bool = False
    commitment_peer: tuple[Peer, ...] = ()
    tls: Tls | None = None

    @model_validator(mode="after")
    def _fits(self) -> Receive:
        if self.commitment_peer and not self.commitment:
            raise ValueError("commitment_peer needs commitment = true")
        return self


class BundleChoice(Section):
    """`path`: a folder, or `default` or `fast`. `explain`: a method of `pneumoscope explain`, or `none`."""

    path: File = Path("default")
    operating_point: str | None = None
    explain: str = "gradcam"


class Worker(Section):
    """`seconds` and `memory_mb` for one image: an analysis that needs more is killed; quarantine after `attempts`."""

    count: Annotated[int, Field(ge=1, le=64)] = 1
    seconds: Seconds = 60.0
    start_seconds: Seconds = 180.0
    memory_mb: Annotated[int, Field(ge=256)] = 6144
    attempts: Count = 3


class Priority(Section):
    """`max_wait_minutes`: an image that has waited longer goes before urgent ones, so none waits for ever."""

    max_wait_minutes: Seconds = 60.0


class Database(Section):
    """`url`: of SQLAlchemy, `sqlite` or `postgresql+psycopg`; a SQLite file in the gateway's folder by default.

    `host`: what this machine is called among several with one PostgreSQL; its own name by default.
    """

    url: Annotated[str, Field(pattern=r"^(sqlite|postgresql\+psycopg)://")] | None = None
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,40}$")] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Database:
        if self.host is not None and (self.url is None or self.url.startswith("sqlite")):
            raise ValueError("host is for several machines, which need a PostgreSQL in url")
        return self


def is_private(url: str) -> bool:
    """Say whether a URL is HTTPS, or HTTP to this machine: nobody on the way can read or change the traffic."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return bool(parts.hostname) and (parts.scheme == "https" or (local and parts.scheme == "http"))


def _private(url: str) -> str:
    if not is_private(url):
        raise ValueError("must begin with https://; http:// is for this machine alone (127.0.0.1)")
    return url


PrivateUrl = Annotated[str, AfterValidator(_private)]


class Oidc(Section):
    """Signing in at an issuer of OpenID Connect.

    `issuer`: as it names itself. `address`: where browsers reach the pages; the issuer must know
    `ADDRESS/signin/oidc/answer`. `claim`: a name or dotted path in the ID token; `roles` maps its values to roles, and
    the highest counts. `ask_again`: the issuer asks for the password each time, for screens that several people share.
    """

    issuer: PrivateUrl
    client_id: Annotated[str, Field(min_length=1)]
    client_secret_file: File
    address: PrivateUrl
    claim: Annotated[str, Field(min_length=1)] = "roles"
    roles: Annotated[dict[str, Literal["viewer", "reader", "admin"]], Field(min_length=1)]
    name_claim: str = "preferred_username"
    scopes: tuple[str, ...] = ("openid", "profile")
    label: str = "your organisation's account"
    ask_again: bool = True
    tls: ClientTls | None = None

    @model_validator(mode="after")
    def _fits(self) -> Oidc:
        if "openid" not in self.scopes:
            raise ValueError("scopes must name openid")
        return self


class Web(Section):
    """Pages, health and metrics.

    `https`: browsers reach the pages through an HTTPS proxy only; cookies are then marked secure. `session_minutes`: a
    user then signs in again. `upload_mb`: the largest file accepted. `passwords`: false allows sign-in by `oidc` alone.
    """

    bind: str = "127.0.0.1"
    port: Port = 8042
    https: bool = False
    session_minutes: Annotated[int, Field(ge=1, le=1440)] = 600
    upload_mb: Annotated[int, Field(ge=1, le=1024)] = 128
    passwords: bool = True
    oidc: Oidc | None = None

    @model_validator(mode="after")
    def _fits(self) -> Web:
        if not self.passwords and self.oidc is None:
            raise ValueError("with passwords = false nobody could sign in: add the section web.oidc")
        return self


class Stow(Section):
    """Receiving over DICOMweb at the address of the pages; an empty section is enough.

    `token_file`: senders must show this token; without it only this machine may send. `request_mb` and `objects`: the
    most in one request.
    """

    token_file: File | None = None
    request_mb: Count = 1024
    objects: Count = 500


class Retention(Section):
    """Days until data are erased; without a number they are kept for ever. See `serving.keeping.retention`."""

    images: Count | None = None
    results: Count | None = None
    jobs: Count | None = None
    events: Count | None = None
    journal: Count | None = None


class Review(Section):
    """Studies that readers are asked about, without the answer. `per_day`: how many of each day.

    `repeats`: share 0..1 that is asked about twice. `seed`: of the draw.
    """

    per_day: Annotated[int, Field(ge=1, le=1000)]
    repeats: Annotated[float, Field(ge=0, le=1)] = 0.1
    seed: Annotated[int, Field(ge=0)] = 0


class Journal(Section):
    """The pseudonymous record of predictions. `key`: secret of the pseudonyms, made where it is missing."""

    path: File | None = None
    key: File | None = None
    site: str | None = None


class Logs(Section):
    """`file`: standard error where it is missing."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    file: File | None = None


class Gateway(Section):
    """The whole file. `folder`: where images, database and journal lie. `shadow`: analyse, journal, send nothing."""

    folder: File
    shadow: bool = False
    receive: Receive
    analyse: Rules = Rules()
    bundle: BundleChoice = BundleChoice()
    worker: Worker = Worker()
    destination: tuple[Destination, ...] = ()
    priority: Priority = Priority()
    store: Database = Database()
    web: Web = Web()
    stow: Stow | None = None
    orthanc: tuple[Orthanc, ...] = ()
    review: Review | None = None
    journal: Journal = Journal()
    retention: Retention = Retention()
    logs: Logs = Logs()

    @model_validator(mode="after")
    def _fits(self) -> Gateway:
        for kind, items in (("destinations", self.destination), ("orthancs", self.orthanc)):
            names = [item.name for item in items]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two {kind} are called {twice[0]}")
        return self

    @property
    def images(self) -> Path:
        """Where received images lie."""
        return self.folder / "images"

    @property
    def incoming(self) -> Path:
        """Where images lie until they are complete, on the same file system as `images`; each host has its own."""
        return self.folder / "incoming" / (self.host or "")

    @property
    def host(self) -> str | None:
        """The name of this machine among those that share the database; None with SQLite, which serves one machine."""
        if self.database.startswith("sqlite"):
            return None
        return self.store.host or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:40]

    @property
    def database(self) -> str:
        """URL of the database."""
        return self.store.url or f"sqlite:///{self.folder / 'gateway.sqlite'}"

    @property
    def journal_file(self) -> Path:
        """The journal."""
        return self.journal.path or self.folder / "journal.sqlite"

    @property
    def deliveries(self) -> tuple[Destination, ...]:
        """Destinations that get results: none in shadow mode."""
        if self.shadow:
            return ()
        title = {"calling": self.receive.aet}
        return tuple(i if i.calling else i.model_copy(update=title) for i in self.destination if i.enabled)


def load_gateway(path: Path) -> Gateway:
    """Read `gateway.toml`; its paths are relative to its folder.

    Raises:
        ConfigError: a key is unknown, ill-typed or out of range, or keys do not fit together.
        StorageError: the file cannot be read.
    """
    return _anchored(read_toml(path, Gateway, PAGE), path.resolve().parent)


def _anchored(section: _Section, folder: Path) -> _Section:
    """Return a section with its paths relative to `folder`; the name of a shipped bundle stays a name."""
    values: dict[str, object] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Path) and not (isinstance(section, BundleChoice) and str(value) in ("default", "fast")):
            values[key] = folder / value
        elif isinstance(value, Section):
            values[key] = _anchored(value, folder)
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            values[key] = tuple(_anchored(item, folder) for item in value)
    return section.model_copy(update=values)
