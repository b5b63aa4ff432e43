"""The card of a bundle: its sections, and the hashes that notice a changed byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from pneumoscope.errors import BundleError, storage_errors
from pneumoscope.files import sha256_bytes

SCHEMA = 1
CARD = "card.json"
RUNTIME_FILES = frozenset({"model.onnx", "model.xml", "model.bin"})
_COMPUTES = (
    "schema",
    "network",
    "preparation",
    "calibration",
    "operating_points",
    "operating_point",
    "weights",
    "runtime",
)
_MAY_COMPUTE = ("gate",)


class FileFact(TypedDict):
    """What identifies a file of the bundle."""

    sha256: str
    bytes: int


class NetworkFacts(TypedDict):
    """`classes`: normal first, then pneumonia or its subtypes."""

    name: str
    classes: list[str]
    parameters: NotRequired[int]


class CalibrationFacts(TypedDict):
    """As `calibration.Calibration`, with the method in words; `prevalence` where it is not that of the population."""

    method: str
    temperature: float
    bias: float
    nll_before: float
    nll_after: float
    n: int
    note: str
    prevalence: NotRequired[float]


class PointFacts(TypedDict):
    """As `calibration.OperatingPoint`; estimates in the form of `metrics.json`."""

    name: str
    threshold: float
    target: float | None
    sensitivity: dict[str, Any]
    specificity: dict[str, Any]
    n: int
    note: str
    carried: NotRequired[bool]


class RuntimeFacts(TypedDict):
    """`precision`: `fp32` or `int8`; None with a `reason` where only PyTorch computes it."""

    precision: str | None
    files: dict[str, FileFact]
    reason: NotRequired[str]


class Card(TypedDict):
    """All sections of `card.json`; `docs/reference/formats.md` explains them.

    `population`, `training`, `limits` and `evidence` are for people and reports; only what is listed in `_COMPUTES`
    changes an answer.
    """

    schema: int
    pneumoscope: str
    notice: str
    name: str
    network: NetworkFacts
    preparation: dict[str, Any]
    calibration: CalibrationFacts
    operating_points: dict[str, PointFacts]
    operating_point: str
    weights: dict[str, Any]
    runtime: RuntimeFacts
    sha256: str
    card_sha256: str
    created: NotRequired[str]
    population: NotRequired[dict[str, Any]]
    training: NotRequired[dict[str, Any]]
    limits: NotRequired[list[str]]
    evidence: NotRequired[dict[str, Any]]
    gate: NotRequired[dict[str, Any]]
    fingerprints: NotRequired[dict[str, Any]]


def identity(card: Mapping[str, Any]) -> str:
    """Return the hash of what computes; a bundle without a gate keeps the hash of older versions."""
    parts = {key: card[key] for key in _COMPUTES}
    return _hash(parts | {key: card[key] for key in _MAY_COMPUTE if key in card})


def sealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card with the hash of all its sections."""
    open_card = {key: value for key, value in card.items() if key != "card_sha256"}
    return {**open_card, "card_sha256": _hash(open_card)}


def _hash(value: Any) -> str:
    return sha256_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode(errors="backslashreplace"))


def read_card(folder: Path) -> Card:
    """Read and verify a card; raises `BundleError` where it is missing, damaged, changed or of a newer format."""
    file = folder / CARD
    if not file.is_file():
        what = "holds no card.json, so it is no bundle" if folder.is_dir() else "no such bundle"
        raise BundleError(what, path=folder, remedy="give the folder RUN/bundle that training wrote")
    with storage_errors(file):
        text = file.read_text(encoding="utf-8", errors="replace")
    try:
        card = json.loads(text)
        if card["schema"] > SCHEMA:
            raise BundleError(
                f"was written in format {card['schema']}, this version reads up to {SCHEMA}",
                path=file,
                remedy="update Pneumoscope",
            )
        body = {key: value for key, value in card.items() if key != "card_sha256"}
        whole = (
            RUNTIME_FILES.issuperset(card["runtime"]["files"])
            and card["card_sha256"] == _hash(body)
            and card["sha256"] == identity(card)
        )
    except (json.JSONDecodeError, AttributeError, KeyError, RecursionError, TypeError) as error:
        raise BundleError("is damaged or is no card", path=file, remedy="copy the bundle again") from error
    if not whole:
        raise BundleError("the card was changed after it was written", path=file, remedy="copy the bundle again")
    return cast(Card, card)
