"""The bundle: weights and everything that must travel with them, in a folder that notices a changed byte.

    weights.safetensors   tensors only; matrices in half precision
    card.json             network, preparation, calibration, operating points, population, training, evidence

`card["sha256"]` identifies what computes: the weights and every section that changes an answer. Evidence
(measured figures) may be added later without changing that identity; `card["card_sha256"]` guards the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pneumoscope import __version__
from pneumoscope.errors import BundleError, storage_errors
from pneumoscope.files import atomic_folder, plain, sha256_bytes, write_json
from pneumoscope.models.network import Network, build_network
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.transforms import Preparation

SCHEMA = 1
DEFAULT_BUNDLE = Path(__file__).parent / "bundles" / "default"
_WEIGHTS, _CARD = "weights.safetensors", "card.json"
_COMPUTES = (
    "schema",
    "network",
    "preparation",
    "calibration",
    "operating_points",
    "operating_point",
    "weights",
)


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: its card, and the network in eval mode."""

    card: Mapping[str, Any]
    network: Network
    preparation: Preparation

    @property
    def name(self) -> str:
        """Name for people."""
        return str(self.card["name"])

    @property
    def sha256(self) -> str:
        """Identity of what computes, lower-case hex."""
        return str(self.card["sha256"])

    @property
    def label(self) -> str:
        """Name and the first twelve digits of the identity, as predictions carry it."""
        return f"{self.name}@{self.sha256[:12]}"


def round_weights(network: Network) -> None:
    """Round matrices to half precision in place, as the file stores them.

    Done before calibration, so that what is calibrated and validated is what is loaded later. Biases and
    batch-norm statistics keep single precision: small variances would become zero.
    """
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.copy_(tensor.half().float())


def save_bundle(path: Path, network: Network, preparation: Preparation, sections: Mapping[str, Any]) -> None:
    """Write a bundle atomically.

    Args:
        path: its folder; replaced where it exists.
        network: weights as left by `round_weights`.
        preparation: how images become input.
        sections: `name`, `network` {name, classes}, `calibration` {temperature}, `operating_points`,
            `operating_point`, `population`, `training`, `limits`; kept as they are.
    """
    stored = {key: _stored(tensor) for key, tensor in network.state_dict().items()}
    data = save_tensors(stored)
    card = {
        "schema": SCHEMA,
        "pneumoscope": __version__,
        "notice": RESEARCH_ONLY,
        **sections,
        "preparation": asdict(preparation),
        "weights": {"file": _WEIGHTS, "sha256": sha256_bytes(data), "bytes": len(data)},
    }
    card = plain(card)
    card["sha256"] = _hash({key: card[key] for key in _COMPUTES})
    with atomic_folder(path) as temporary:
        (temporary / _WEIGHTS).write_bytes(data)
        write_json(temporary / _CARD, _sealed(card))


def add_evidence(path: Path, evidence: Mapping[str, Any]) -> None:
    """Write measured figures into the card; the identity stays, the card's own hash is renewed."""
    card = dict(_read_card(path))
    card["evidence"] = {**card.get("evidence", {}), **plain(evidence)}
    write_json(path / _CARD, _sealed(card))


def _sealed(card: dict[str, Any]) -> dict[str, Any]:
    open_card = {key: value for key, value in card.items() if key != "card_sha256"}
    return {**open_card, "card_sha256": _hash(open_card)}


def _stored(tensor: Tensor) -> Tensor:
    halve = tensor.is_floating_point() and tensor.ndim > 1
    return (tensor.half() if halve else tensor).cpu().contiguous().clone()


def _hash(value: Any) -> str:
    return sha256_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def load_bundle(path: Path | None = None) -> Bundle:
    """Read a bundle; the one shipped in the package by default.

    Raises:
        BundleError: a file is missing or changed, or the format is newer than this version.
    """
    folder = DEFAULT_BUNDLE if path is None else path
    card = _read_card(folder)
    tensors = _read_weights(folder / _WEIGHTS, card["weights"]["sha256"])
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in card["preparation"].items()}
    preparation = Preparation(**fields)
    network, _ = build_network(card["network"]["name"], classes=len(card["network"]["classes"]))
    try:
        network.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
        )
    except RuntimeError as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise BundleError(f"does not fit its network ({reason})", path=folder, remedy="train it again") from error
    network.eval()
    network.requires_grad_(False)
    network.to(memory_format=torch.channels_last)
    return Bundle(card, network, preparation)


def _read_weights(file: Path, sha256: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise BundleError("is missing, so the bundle is incomplete", path=file, remedy="copy the bundle again")
    with storage_errors(file):
        data = file.read_bytes()
    if sha256_bytes(data) != sha256:
        raise BundleError("the file was changed or damaged", path=file, remedy="copy the bundle again")
    try:
        return dict(load_tensors(data))
    except SafetensorError as error:
        raise BundleError(f"is not a safetensors file ({error})", path=file, remedy="copy it again") from error


def _read_card(folder: Path) -> Mapping[str, Any]:
    file = folder / _CARD
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
        whole = card["card_sha256"] == _hash(body) and card["sha256"] == _hash({key: card[key] for key in _COMPUTES})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BundleError("is damaged or is no card", path=file, remedy="copy the bundle again") from error
    if not whole:
        raise BundleError("the card was changed after it was written", path=file, remedy="copy the bundle again")
    result: Mapping[str, Any] = card
    return result
