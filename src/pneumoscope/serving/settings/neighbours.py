"""The gateway's neighbours in its file: their addresses and certificates, and what each gets or is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pneumoscope.config import Section
from pneumoscope.gate.header_rules import PLAIN

DICOM_KINDS = ("sr", "sc", "gsps", "seg")

_SENDS = {
    "dicom": DICOM_KINDS,
    "stow": DICOM_KINDS,
    "fhir": ("fhir",),
    "hl7-file": ("hl7",),
    "hl7-mllp": ("hl7",),
}
_NEEDS = {
    "dicom": ("host", "port", "aet"),
    "stow": ("url",),
    "fhir": ("url",),
    "hl7-file": ("folder",),
    "hl7-mllp": ("host", "port"),
}


def _aet(value: str) -> str:
    """PS3.5, 6.2: at most 16 characters of the default repertoire, no backslash, not only spaces."""
    if not value.strip() or len(value) > 16 or not value.isascii() or not value.isprintable() or "\\" in value:
        raise ValueError("an application entity title has 1 to 16 printable ASCII characters and no backslash")
    return value.strip()


File = Annotated[Path, Field(strict=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
AETitle = Annotated[str, AfterValidator(_aet)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]
Url = Annotated[str, Field(pattern=r"^https?://\S+$")]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Tls(Section):
    """Certificate and key in PEM files. With `ca`, the other side must show a certificate that it signed."""

    certificate: File
    key: File
    ca: File | None = None


class ClientTls(Section):
    """`ca`: the authority of a destination's certificate, the system's without; `certificate`, `key`: our own."""

    ca: File | None = None
    certificate: File | None = None
    key: File | None = None

    @model_validator(mode="after")
    def _fits(self) -> ClientTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        return self


class Peer(Section):
    """A sender that may ask for storage commitment, and the address for a report that it did not wait for."""

    aet: AETitle
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    tls: ClientTls | None = None

    def destination(self, calling: str) -> Destination:
        """Return the same peer as a destination, for `associate`."""
        return Destination(
            name="peer", kind="dicom", host=self.host, port=self.port, aet=self.aet, calling=calling, tls=self.tls
        )


class Destination(Section):
    """Where results go.

    `kind`: `dicom` (C-STORE: host, port, aet), `stow` (url), `fhir` (url), `hl7-file` (folder), `hl7-mllp` (host,
    port). `objects`: `sr`, `sc`, `gsps`, `seg` for the first two; fixed for the others. `give_up_hours`: failed
    deliveries are tried again until then. `calling`: our title towards it. `commit`: ask a `dicom` destination to
    commit what it got; it may then call the listener to report.
    """

    name: Name
    kind: Literal["dicom", "stow", "fhir", "hl7-file", "hl7-mllp"]
    enabled: bool = True
    objects: tuple[str, ...] = ()
    host: str | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    aet: AETitle | None = None
    calling: AETitle | None = None
    url: Url | None = None
    folder: File | None = None
    token_file: File | None = None
    tls: ClientTls | None = None
    commit: bool = False
    seconds: Seconds = 30.0
    give_up_hours: Seconds = 72.0

    @model_validator(mode="after")
    def _fits(self) -> Destination:
        if missing := [key for key in _NEEDS[self.kind] if getattr(self, key) is None]:
            raise ValueError(f"destination {self.name} is {self.kind} and needs {', '.join(missing)}")
        if self.commit and self.kind != "dicom":
            raise ValueError(f"destination {self.name} is {self.kind}: commit is for dicom")
        allowed = _SENDS[self.kind]
        if wrong := [kind for kind in self.objects if kind not in allowed]:
            raise ValueError(f"destination {self.name} is {self.kind}: no {wrong[0]!r}, but {', '.join(allowed)}")
        return self

    @property
    def sends(self) -> tuple[str, ...]:
        """The kinds of objects that it gets: `objects`, else a report and a picture, or the only kind it takes."""
        return self.objects or _SENDS[self.kind][:2]


class Orthanc(Section):
    """An Orthanc that is asked for new images, over its REST API.

    `modalities`: others are not fetched. `start`: at its next image or at its first, when it is first asked.
    `user_file`: holds `name:password`; `token_file`: a bearer token. `seconds`: how long it may be silent.
    """

    name: Name
    url: Url
    modalities: Annotated[tuple[str, ...], Field(min_length=1)] = PLAIN
    start: Literal["now", "beginning"] = "now"
    poll_seconds: Seconds = 2.0
    user_file: File | None = None
    token_file: File | None = None
    tls: ClientTls | None = None
    seconds: Seconds = 30.0

    @model_validator(mode="after")
    def _fits(self) -> Orthanc:
        if self.user_file is not None and self.token_file is not None:
            raise ValueError(f"orthanc {self.name} has user_file and token_file: give one of them")
        return self
