"""The bundle: weights and everything that must travel with them, in a folder that notices a changed byte.

    weights.safetensors   tensors only; matrices in half precision
    model.onnx            the same network for fast runtimes (or model.xml and model.bin, where it was quantised)
    gate.safetensors      which images it answers about; older bundles have none
    fingerprints.safetensors  of the images it learned from (`fingerprints`); older bundles have none
    card.json             network, preparation, calibration, operating points, population, training, evidence

`card["sha256"]` identifies what computes: the weights, the gate, and every section that changes an answer. Evidence
(measured figures) may be added later without changing that identity; `card["card_sha256"]` guards the whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from pneumoscope.bundle.card import CARD, RUNTIME_FILES, SCHEMA, Card, identity, read_card, sealed
from pneumoscope.bundle.fingerprints import Fingerprints, read_fingerprints
from pneumoscope.bundle.forked import refuse_fork
from pneumoscope.errors import BundleError, StorageError, storage_errors
from pneumoscope.files import atomic_folder, plain, sha256_bytes, write_json
from pneumoscope.images.preparation import Preparation
from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from pneumoscope.networks.network import Network

SHIPPED = {name: Path(__file__).parent / "shipped" / name for name in ("default", "fast")}
WEIGHTS, GATE, _ONNX = "weights.safetensors", "gate.safetensors", "model.onnx"
FINGERPRINTS = "fingerprints.safetensors"
_OPTIONAL = {"gate": GATE, "fingerprints": FINGERPRINTS}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; its network is built at first use, which takes PyTorch."""

    folder: Path
    card: Card
    preparation: Preparation

    @property
    def network(self) -> Network:
        """The network in eval mode, without gradients, channels last.

        Raises:
            BundleError: it does not fit.
            ConfigError: this process was forked from one that used PyTorch.
        """
        refuse_fork()
        return self._network

    @cached_property
    def _network(self) -> Network:
        import torch

        from pneumoscope.networks.network import restore

        tensors = _read_weights(self.folder / WEIGHTS, self.card["weights"]["sha256"])
        try:
            # Built inside a caller's inference mode, its weights could never carry a gradient.
            with torch.inference_mode(False):
                return restore(self.card["network"]["name"], len(self.card["network"]["classes"]), tensors)
        except RuntimeError as error:
            reason = re.sub(r"\s+", " ", str(error))[:200]
            raise BundleError(
                f"does not fit its network ({reason})", path=self.folder, remedy="train it again"
            ) from error

    def head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return weights [classes, F] and bias [classes] of the linear head; None where the network has another."""
        tensors = _read_weights(self.folder / WEIGHTS, self.card["weights"]["sha256"])
        weight, bias = (tensors.get(f"head.1.{name}") for name in ("weight", "bias"))
        if weight is None or bias is None:
            return None
        return weight.astype(np.float32), bias.astype(np.float32)

    def runtime_files(self) -> dict[str, bytes]:
        """Return the files that a fast runtime reads, by name: ONNX, or OpenVINO's graph and weights; or none.

        Raises:
            BundleError: a file is missing or changed.
        """
        facts = self.card["runtime"]["files"]
        return {name: _read(self.folder / name, fact["sha256"]) for name, fact in facts.items()}

    def gate_file(self) -> bytes | None:
        """Return the bytes of its gate, None where it has none; raises `BundleError` where it is missing or changed."""
        gate = self.card.get("gate")
        return None if gate is None else _read(self.folder / GATE, gate["sha256"])

    def fingerprints_file(self) -> dict[str, bytes]:
        """Return the bytes of its fingerprints by file name, nothing where it has none; raises `BundleError`."""
        known = self.card.get("fingerprints")
        return {} if known is None else {FINGERPRINTS: _read(self.folder / FINGERPRINTS, known["sha256"])}

    def fingerprints(self) -> Fingerprints | None:
        """Return the fingerprints of the images it learned from, None where it has none; raises `BundleError`."""
        data = self.fingerprints_file()
        return read_fingerprints(data[FINGERPRINTS], self.card["fingerprints"], self.folder) if data else None

    @property
    def calibration(self) -> tuple[float, float]:
        """Temperature and bias."""
        fitted = self.card["calibration"]
        return float(fitted["temperature"]), float(fitted.get("bias", 0.0))

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


def save_bundle(
    path: Path,
    network: Network,
    preparation: Preparation,
    sections: Mapping[str, Any],
    fingerprints: Fingerprints | None = None,
) -> None:
    """Write a trained network as a bundle, atomically.

    Args:
        path: its folder; replaced where it exists.
        network: weights as left by `round_weights`.
        preparation: how images become input.
        sections: `name`, `network` {name, classes}, `calibration` {temperature, bias}, `operating_points`,
            `operating_point`, `population`, `training`, `limits`; kept as they are.
        fingerprints: of the images it learned from.
    """
    from pneumoscope.networks.export import to_onnx

    files = {WEIGHTS: save_tensors({key: _stored(tensor) for key, tensor in network.state_dict().items()})}
    runtime: dict[str, Any] = {"precision": "fp32"}
    try:
        files[_ONNX] = to_onnx(network, preparation)
    except RuntimeError as error:
        runtime = {"precision": None, "reason": f"could not be exported: {' '.join(str(error).split())[:200]}"}
    if fingerprints is not None:
        files[FINGERPRINTS] = fingerprints.to_bytes()
        sections = {**sections, "fingerprints": fingerprints.section()}
    write_bundle(path, files, {**sections, "preparation": asdict(preparation), "runtime": runtime})


def write_bundle(path: Path, files: Mapping[str, bytes], sections: Mapping[str, Any]) -> None:
    """Seal a bundle's files and write them atomically.

    Args:
        path: its folder; replaced where it exists.
        files: by name: `weights.safetensors`, what a fast runtime reads, and the gate and the fingerprints if any.
        sections: of the card, all but the notice and the hashes; `gate` and `fingerprints` if there are such files.

    Raises:
        StorageError: the folder holds something else, or cannot be written.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / CARD).is_file():
        raise StorageError("holds other files, which a bundle would replace", path=path, remedy="choose another folder")
    facts = {name: {"sha256": sha256_bytes(data), "bytes": len(data)} for name, data in files.items()}
    card = {
        "schema": SCHEMA,
        "pneumoscope": __version__,
        "notice": RESEARCH_ONLY,
        **sections,
        "weights": {"file": WEIGHTS, **facts[WEIGHTS]},
        "runtime": {
            **sections["runtime"],
            "files": {name: facts[name] for name in sorted(RUNTIME_FILES.intersection(facts))},
        },
    }
    for section, file in _OPTIONAL.items():
        card.pop(section, None)  # that of the bundle from which this one was made
        if file in files:
            card[section] = {**sections[section], "file": file, **facts[file]}
    card = plain(card)
    card["sha256"] = identity(card)
    with atomic_folder(path) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        write_json(temporary / CARD, sealed(card))


def add_evidence(path: Path, evidence: Mapping[str, Any]) -> None:
    """Write measured figures into the card; the identity stays, the card's own hash is renewed."""
    card: dict[str, Any] = dict(read_card(path))
    for measured in evidence.values():
        if measured.get("bundle", card)["sha256"] != card["sha256"]:
            raise BundleError("evidence of another bundle was offered", path=path, remedy="evaluate this one")
    card["evidence"] = {**card.get("evidence", {}), **plain(evidence)}
    write_json(path / CARD, sealed(card))


def _stored(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    halve = array.dtype == np.float32 and array.ndim > 1
    return np.array(array, dtype=np.float16 if halve else array.dtype, order="C")


def load_bundle(path: Path | None = None) -> Bundle:
    """Read a bundle: a folder, or the name of one that the package ships (`default`, `fast`); by default `default`.

    Raises:
        BundleError: a file is missing or changed, or the format is newer than this version.
    """
    folder = path or SHIPPED["default"]
    if str(folder) in SHIPPED and not folder.exists():
        folder = SHIPPED[str(folder)]
    card = read_card(folder)
    for name, fact in {WEIGHTS: card["weights"], **card["runtime"]["files"]}.items():
        _read(folder / name, fact["sha256"])
    sections: Mapping[str, Any] = card
    for section, file in _OPTIONAL.items():
        if section in card:
            _read(folder / file, sections[section]["sha256"])
        elif (folder / file).exists():
            raise BundleError(f"holds {file}, which its card does not name", path=folder, remedy="copy it again")
    try:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in card["preparation"].items()}
        return Bundle(folder, card, Preparation(**fields))
    except (AttributeError, TypeError) as error:
        raise BundleError(
            f"the card's preparation is not of this version ({error})", path=folder / CARD, remedy="train it again"
        ) from error


def _read(file: Path, sha256: str) -> bytes:
    if not file.is_file():
        raise BundleError("is missing, so the bundle is incomplete", path=file, remedy="copy the bundle again")
    with storage_errors(file):
        data = file.read_bytes()
    if sha256_bytes(data) != sha256:
        raise BundleError("the file was changed or damaged", path=file, remedy="copy the bundle again")
    return data


def _read_weights(file: Path, sha256: str) -> dict[str, NDArray[Any]]:
    data = _read(file, sha256)
    try:
        return dict(load_tensors(data))
    except SafetensorError as error:
        raise BundleError(f"is not a safetensors file ({error})", path=file, remedy="copy it again") from error
