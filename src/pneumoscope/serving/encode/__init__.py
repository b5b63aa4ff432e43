"""Results for a PACS and for a hospital's information systems: what a finding becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from pneumoscope.errors import ConfigError
from pneumoscope.serving.encode import fhir, gsps, hl7, sc, seg, sr
from pneumoscope.serving.encode.instance import Case, Encoded
from pneumoscope.serving.finding import Finding

__all__ = ["KINDS", "Encoded", "encode"]

_BUILDERS: Mapping[str, Callable[[Case], Encoded | None]] = MappingProxyType(
    {
        sr.KIND: sr.build,
        sc.KIND: sc.build,
        gsps.KIND: gsps.build,
        seg.KIND: seg.build,
        fhir.KIND: fhir.build,
        hl7.KIND: hl7.build,
    }
)
KINDS = tuple(_BUILDERS)


def encode(
    finding: Finding, kinds: Sequence[str], made: datetime, *, report: sr.Form = "comprehensive-3d"
) -> tuple[Encoded, ...]:
    """Return the results of a finding, in the order of `kinds`; equal arguments give equal bytes.

    A kind that has nothing to lie on is left out: `seg` unless a plain radiograph was flagged with a map, `gsps` for a
    radiograph that is not grey. Every other kind says also that an image was not analysed, and why.

    Args:
        finding: answer and radiograph; its header may be odd or incomplete.
        kinds: of `KINDS`.
        made: the moment that the results carry.
        report: the form of `sr`, for destinations that refuse Comprehensive 3D SR.

    Raises:
        ConfigError: a kind is unknown.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"no such kind of result: {unknown[0]}", remedy=f"use one of {', '.join(KINDS)}")
    case = Case(finding, made)
    built = [sr.build(case, report) if kind == sr.KIND else _BUILDERS[kind](case) for kind in kinds]
    return tuple(result for result in built if result is not None)
