"""Results for a PACS and for a hospital's information systems, made from a finding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, cast

from pneumoscope.errors import ConfigError
from pneumoscope.serving.results.finding import Encoded, Finding

if TYPE_CHECKING:
    from pneumoscope.serving.results.instance import Case
    from pneumoscope.serving.results.sr import Form

__all__ = ["KINDS", "Encoded", "encode"]

# Each is a module of this package with a function `build`, loaded on first use.
KINDS = ("sr", "sc", "gsps", "seg", "fhir", "hl7")


def encode(
    finding: Finding, kinds: Sequence[str], made: datetime, *, report: Form = "comprehensive-3d"
) -> tuple[Encoded, ...]:
    """Return the results of a finding, in the order of `kinds`; equal arguments give equal bytes.

    Left out are `seg` unless a plain radiograph was flagged with a map, and `gsps` for a radiograph that is not grey.
    Every other kind also says that an image was not analysed, and why.

    Args:
        finding: answer and radiograph; its header may be odd or incomplete.
        kinds: of `KINDS`.
        made: the time that the results carry.
        report: the form of `sr`, for destinations that refuse Comprehensive 3D SR.

    Raises:
        ConfigError: a kind is unknown.
    """
    from pneumoscope.serving.results import sr
    from pneumoscope.serving.results.instance import Case

    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"no such kind of result: {unknown[0]}", remedy=f"use one of {', '.join(KINDS)}")
    case = Case(finding, made)
    built = [sr.build(case, report) if kind == "sr" else _builder(kind)(case) for kind in kinds]
    return tuple(result for result in built if result is not None)


def _builder(kind: str) -> Callable[[Case], Encoded | None]:
    return cast("Callable[[Case], Encoded | None]", import_module(f"{__name__}.{kind}").build)
