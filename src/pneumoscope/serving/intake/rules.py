"""Which images are analysed, and of the others why not. Pure functions over a header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydicom import uid

from pneumoscope.images.header import Header
from pneumoscope.serving.settings.gateway import Analyse
from pneumoscope.serving.store.tables import HIGH, ROUTINE, URGENT

Ages = tuple[float, float]

_RAW = frozenset(
    {
        uid.DigitalXRayImageStorageForProcessing,
        uid.DigitalMammographyXRayImageStorageForProcessing,
        uid.DigitalIntraOralXRayImageStorageForProcessing,
    }
)
# Words of descriptions, where no view is told: English, German, French, Spanish. A study's may name both views.
_FRONTAL = re.compile(r"\b(ap|pa|p\.a|a\.p|frontal|de face)\b", re.IGNORECASE)
_LATERAL = re.compile(r"\b(lateral|lat|ll|rl|seitlich|seitl|profil|perfil|oblique|obl)\b", re.IGNORECASE)
_PRIORITIES = {"STAT": URGENT, "HIGH": HIGH}


def ages_of(rules: Analyse, card: Mapping[str, Any]) -> Ages | None:
    """Return the ages that are analysed, in years: those of the rules, else of the bundle, or None.

    A bundle tells them of its population, or with its gate.
    """
    if rules.age_years is not None:
        return rules.age_years
    told = card.get("population", {}).get("age_years") or card.get("gate", {}).get("ages")
    return None if not told else (float(told[0]), float(told[1]))


def why_not(header: Header, rules: Analyse, ages: Ages | None) -> str | None:
    """Return why an image is not analysed, as a sentence for people, or None where it is."""
    reason = _format(header) or _content(header, rules) or _patient(header, rules, ages)
    return None if reason is None else f"not analysed, because {reason}"


def priority_of(header: Header) -> int:
    """Return the priority that the order came with (0040,1003)."""
    return _PRIORITIES.get(header.priority or "", ROUTINE)


def _format(header: Header) -> str | None:
    if not header.rows or not header.columns:
        return "it holds no pixels"
    if (header.frames or 1) > 1:
        return f"it has {header.frames} frames, and one is expected"
    if header.intent == "FOR PROCESSING" or header.sop_class in _RAW:
        return "it is raw data for processing, not an image for reading"
    return None


def _content(header: Header, rules: Analyse) -> str | None:
    if header.modality not in rules.modalities:
        return f"its modality is {header.modality or 'not told'}, not {_either(rules.modalities)}"
    return _view(header, rules) or _body_part(header, rules)


def _view(header: Header, rules: Analyse) -> str | None:
    if header.view is not None:
        return None if header.view in rules.views else f"its view is {header.view}, not {_either(rules.views)}"
    told = header.description or ""
    if _LATERAL.search(told) and not _FRONTAL.search(told):
        return "its description says that it is no frontal view"
    return None if rules.unknown else "its view is not told"


def _body_part(header: Header, rules: Analyse) -> str | None:
    if header.body_part is None:
        return None if rules.unknown else "its body part is not told"
    return (
        None
        if header.body_part in rules.body_parts
        else f"it shows {header.body_part}, not {_either(rules.body_parts)}"
    )


def _patient(header: Header, rules: Analyse, ages: Ages | None) -> str | None:
    if ages is None:
        return None
    if header.age_years is None:
        return None if rules.unknown else "the patient's age is not told"
    if not ages[0] <= header.age_years < ages[1] + 1:  # who is five years old is so until the sixth birthday
        meant = f"the bundle is for {ages[0]:g} to {ages[1]:g} years"
        return f"the patient is {header.age_years:.3g} years old, and {meant}"
    return None


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(names)
