"""One shape for every network: an encoder that makes a feature map, pooling, a small head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from pneumoscope.errors import ConfigError
from pneumoscope.networks.custom_cnn import CustomCNN
from pneumoscope.networks.resnet import resnet20_mlnet

CUSTOM = "custom-cnn"
OURS = (CUSTOM, resnet20_mlnet.__name__)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """The convolutional (or transformer) part of a timm network, as a module of its own so that it can be hooked."""

    model: Any  # timm's networks share forward_features and forward_head without a common type

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the last feature map, [B, C, h, w] (or tokens [B, N, C]), from float32 [B, 3, S, S]."""
        features: Tensor = self.model.forward_features(x)
        return features


class Network(nn.Module):
    """Encoder, pooling and a linear head; `head` alone can be trained on features computed once."""

    def __init__(self, model: nn.Module, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = Encoder(model)
        self.features = features
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))

    def embed(self, x: Tensor) -> Tensor:
        """Return pooled features float32 [B, F] from float32 [B, 3, S, S]."""
        pooled: Tensor = self.encoder.model.forward_head(self.encoder(x), pre_logits=True)
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Return logits float32 [B, classes] from float32 [B, 3, S, S]."""
        logits: Tensor = self.head(self.embed(x))
        return logits


def build_network(
    name: str, *, classes: int, dropout: float = 0.0, drop_path: float = 0.0
) -> tuple[Network, dict[str, Any]]:
    """Build an untrained network by name: one of `OURS`, or any network that timm knows.

    Returns:
        The network, and `{"mean", "std"}` that its usual ImageNet weights expect.

    Raises:
        ConfigError: no network has this name, or it has no stochastic depth and `drop_path` is given.
    """
    if name == CUSTOM:
        if drop_path:
            raise _no_drop_path(name)
        custom = CustomCNN()
        return Network(custom, custom.num_features, classes, dropout), {
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        }
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5]
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all"
        raise ConfigError(f"no network is called {name!r}", remedy=f"use {', '.join(OURS)} or a timm name; {hint}")
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        model: Any = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise _no_drop_path(name) from error
    if isinstance(getattr(model, "pre_logits", None), nn.Module) and hasattr(model, "features"):
        # VGG: its two 4096-wide layers hold nine tenths of the weights; averaging the map replaces them.
        model.pre_logits = nn.Identity()
    model.eval()
    with torch.no_grad():
        size = model.pretrained_cfg["input_size"][-1]
        pooled = model.forward_head(model.forward_features(torch.zeros(1, 3, size, size)), pre_logits=True)
    if pooled.ndim != 2:
        raise ConfigError(f"{name!r} does not pool its features to one vector", remedy="choose another network")
    settings = {"mean": tuple(model.pretrained_cfg["mean"]), "std": tuple(model.pretrained_cfg["std"])}
    return Network(model, pooled.shape[1], classes, dropout), settings


def require_size(network: Network, name: str, size: int) -> None:
    """Raise `ConfigError` where a network cannot take images of `size` pixels a side."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        usual = network.encoder.model.pretrained_cfg["input_size"][-1]
        raise ConfigError(f"{name!r} cannot take images of {size} px", remedy=f"its usual size is {usual}") from error
    finally:
        network.train(training)


def _no_drop_path(name: str) -> ConfigError:
    return ConfigError(f"{name!r} has no stochastic depth", remedy="leave model.drop_path out")


def stages(network: Network) -> list[list[str]]:
    """Return the names of the encoder's parameters, stage by stage, from the image to the head."""
    model = network.encoder.model
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, CustomCNN):
        return _grouped(names, lambda name: int(name.split(".")[1]))
    if hasattr(model, "pre_logits") and isinstance(getattr(model, "features", None), nn.Sequential):
        return _grouped(names, _vgg_stage(model.features))
    by_id = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    return _grouped(names, lambda name: by_id[name])


def _vgg_stage(features: nn.Sequential) -> Any:
    pools = [int(index) for index, layer in features.named_children() if isinstance(layer, nn.MaxPool2d)]

    def stage(name: str) -> int:
        match = re.match(r"features\.(\d+)", name)
        layer = int(match[1]) if match else 10**6
        return sum(pool < layer for pool in pools)

    return stage


def _grouped(names: list[str], stage: Any) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(stage(name), []).append(f"encoder.model.{name}")
    return [groups[key] for key in sorted(groups)]


def freeze(network: Network, unfrozen_stages: int | None) -> None:
    """Let the head learn, and the last `unfrozen_stages` stages of the encoder (None: all, 0: none)."""
    ordered = stages(network)
    keep = ordered if unfrozen_stages is None else ordered[len(ordered) - min(unfrozen_stages, len(ordered)) :]
    free = {name for stage in keep for name in stage}
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name in free or name.startswith("head.")


def frozen_modules(network: Network, *, batchnorm: bool) -> list[nn.Module]:
    """Return the modules that must stay in eval mode while training.

    These are normalisation layers whose parameters are frozen (their running statistics are part of the
    fixed extractor), and with `batchnorm` all of them.
    """
    result: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            fixed = all(not parameter.requires_grad for parameter in module.parameters())
            if batchnorm or fixed:
                result.append(module)
    return result


def pneumonia_score(logits: Tensor) -> Tensor:
    """Return the log-odds of pneumonia, float32 [B], from logits [B, C] with class 0 normal."""
    return logits[:, 1:].logsumexp(dim=1) - logits[:, 0]


def answer(network: nn.Module, images: Tensor, *, mirror: bool) -> Tensor:
    """Return logits [B, C] of images [B, 3, S, S]; with `mirror` the mean over each image and its mirror image."""
    if not mirror:
        alone: Tensor = network(images)
        return alone
    both: Tensor = network(torch.cat([images, images.flip(-1)]).contiguous(memory_format=torch.channels_last))
    return both.reshape(2, -1, both.shape[-1]).mean(dim=0)


def round_weights(network: Network) -> None:
    """Round matrices to half precision in place, as a bundle stores them.

    Done before calibration, so that what is calibrated and validated is what is loaded later. Biases and
    batch-norm statistics keep single precision: small variances would become zero.
    """
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.copy_(tensor.half().float())


def restore(name: str, classes: int, tensors: Mapping[str, NDArray[Any]]) -> Network:
    """Return a network for use, not training, from the arrays of a bundle; raises `RuntimeError` on a misfit."""
    network, _ = build_network(name, classes=classes)
    # Copied, because PyTorch wants arrays that may be written to.
    loaded = {key: torch.from_numpy(np.array(array)) for key, array in tensors.items()}
    network.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in loaded.items()}
    )
    network.eval()
    network.requires_grad_(False)
    return network.to(memory_format=torch.channels_last)
