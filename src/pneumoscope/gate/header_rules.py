"""Which images are refused by their DICOM header, for `predict` and the gateway alike.

Files without a header, such as JPEG, are not refused by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, model_validator

from pneumoscope.config import Section
from pneumoscope.gate.refusal import Refusal
from pneumoscope.images.header import Header

Ages = tuple[float, float]
Names = Annotated[tuple[str, ...], AfterValidator(lambda names: tuple(name.strip().upper() for name in names))]

PLAIN = ("CR", "DX", "RG")  # DICOM PS3.3 C.7.3.1.1.1: the modalities of plain radiographs
# PS3.6: Digital X-Ray, Mammography X-Ray and Intra-Oral X-Ray Image Storage, For Processing.
_RAW = frozenset(f"1.2.840.10008.5.1.4.1.1.{number}.1" for number in ("1.1", "1.2", "1.3"))
# Postures, which change no projection. AXIAL is none: with the tube tilted the clavicles lie above the apices, and the
# bases look denser (DICOM CID 4010 lists it apart). Nor is a decubitus view.
_POSTURES = frozenset({"ERECT", "UPRIGHT", "STANDING", "SITTING", "SUPINE", "PORTABLE"})
# Words of descriptions, where no view is given: English, German, French, Spanish. A study's may name both views.
_FRONTAL = re.compile(r"\b(ap|pa|p\.a|a\.p|frontal|de face)\b", re.IGNORECASE)
_LATERAL = re.compile(r"\b(lateral|lat|ll|rl|seitlich|seitl|profil|perfil|oblique|obl)\b", re.IGNORECASE)


class Rules(Section):
    """Which headers are analysed; upper and lower case are the same.

    `views`: values of View Position; postures may stand beside them. `body_parts`: Body Part Examined must contain one.
    `age_years`: lowest and highest age, the bundle's own where missing, no limit where the bundle names none.
    `unknown`: whether an image without modality, view, body part or age is analysed.
    """

    modalities: Names = PLAIN
    views: Names = ("PA", "AP")
    body_parts: Names = ("CHEST", "THORAX", "LUNG")
    age_years: Ages | None = None
    unknown: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Rules:
        if self.age_years and not 0 <= self.age_years[0] <= self.age_years[1]:
            raise ValueError("age_years goes from the lowest to the highest")
        return self


def ages_of(rules: Rules, card: Mapping[str, Any]) -> Ages | None:
    """Return the ages that are analysed, in years: the rules', else those of the card's gate, else of its population.

    None where there are none. A bundle that was adapted to a site has a gate of that site.
    """
    if rules.age_years is not None:
        return rules.age_years
    ages = card.get("gate", {}).get("ages") or card.get("population", {}).get("age_years")
    return None if not ages else (float(ages[0]), float(ages[1]))


def judge(header: Header | None, rules: Rules, ages: Ages | None, *, gate: bool = True) -> Refusal | None:
    """Return why an image is not analysed, or None where its header gives no reason.

    `header`: None where the file has none. `gate`: False leaves out view, body part and age, not the modality.
    """
    if header is None:
        return None
    refusal = _format(header) or _modality(header, rules)
    if refusal is not None or not gate:
        return refusal
    return _view(header, rules) or _body_part(header, rules) or _age(header, rules, ages)


def _format(header: Header) -> Refusal | None:
    if not header.rows or not header.columns:
        return Refusal("no pixels", "it holds no pixels")
    if (header.frames or 1) > 1:
        return Refusal("frames", f"it has {header.frames} frames, and one is expected")
    if header.intent == "FOR PROCESSING" or header.sop_class in _RAW:
        return Refusal("raw", "it is raw data for processing, not an image for reading")
    return None


def _modality(header: Header, rules: Rules) -> Refusal | None:
    if header.modality is None:
        return None if rules.unknown else Refusal("modality", "its modality is not given")
    if header.modality in rules.modalities:
        return None
    return Refusal("modality", f"its modality is {header.modality}, not {_either(rules.modalities)}")


def _view(header: Header, rules: Rules) -> Refusal | None:
    words = (header.view or "").replace("_", " ").split()
    projection = " ".join(word for word in words if word not in _POSTURES)
    if header.view in rules.views or projection in rules.views:
        return None
    if projection:
        return Refusal("view", f"its view is {header.view}, not {_either(rules.views)}")
    description = (header.description or "").replace("_", " ")
    wanted = any(_LATERAL.search(view) for view in rules.views)  # a site may have lateral views analysed as well
    if not wanted and _LATERAL.search(description) and not _FRONTAL.search(description):
        return Refusal("view", "its description says that it is no frontal view")
    return None if rules.unknown else Refusal("view", "its view is not given")


def _body_part(header: Header, rules: Rules) -> Refusal | None:
    if header.body_part is None:
        return None if rules.unknown else Refusal("body part", "its body part is not given")
    if any(name in header.body_part for name in rules.body_parts):  # such as CHEST PA, PORT CHEST
        return None
    return Refusal("body part", f"it shows {header.body_part}, not {_either(rules.body_parts)}")


def _age(header: Header, rules: Rules, ages: Ages | None) -> Refusal | None:
    if ages is None:
        return None
    if header.age_years is None:
        return None if rules.unknown else Refusal("age", "the patient's age is not given")
    if ages[0] <= header.age_years < int(ages[1]) + 1:  # five years old lasts until the sixth birthday
        return None
    answers = f"answers are for {ages[0]:g} to {ages[1]:g} years"
    return Refusal("age", f"the patient is {header.age_years:.3g} years old, and {answers}")


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(names)
