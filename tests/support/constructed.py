"""Networks whose reasons are known, because they are written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.images.preparation import Preparation
from pneumoscope.networks.network import Network
from pneumoscope.predict import Classifier

CARD = {
    "name": "constructed", "sha256": "0" * 64, "calibration": {"temperature": 1.0, "bias": 0.0},
    "operating_points": {"balanced": {"threshold": 0.5}}, "operating_point": "balanced",
    "runtime": {"files": {}},
}  # fmt: skip


class Fields(nn.Module):
    """How bright each of the fields of `weight` is, beyond `least`, times the weight of its place."""

    num_features = 1
    weight: Tensor

    def __init__(self, weight: NDArray[np.float64], least: float) -> None:
        super().__init__()
        self.least = least
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32))

    def forward_features(self, x: Tensor) -> Tensor:
        light = x[:, :1] - self.least
        if self.least:
            light = F.relu(light, inplace=True)  # as torchvision's networks do, which breaks careless hooks
        return F.avg_pool2d(light, x.shape[-1] // len(self.weight)) * self.weight

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        return features.sum(dim=(2, 3))


def classifier_of(network: Network, preparation: Preparation) -> Classifier:
    """Return a classifier of a network that no bundle holds."""
    bundle = Bundle(Path(), CARD, preparation)
    vars(bundle)["_network"] = network.eval().requires_grad_(False)  # where the bundle keeps what it has read
    return Classifier(bundle, engine="torch")


def summing(weight: NDArray[np.float64], least: float, side: int, bias: float = 0.0) -> Classifier:
    """Return a classifier of images of `side` pixels whose log-odds are the sum of `Fields`, and `bias`."""
    network = Network(Fields(weight, least), 1, 2, 0.0).requires_grad_(False)
    network.head[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    network.head[1].bias.copy_(torch.tensor([0.0, bias]))
    return classifier_of(network, Preparation(side, side, "squash", (0.0,) * 3, (1.0,) * 3))  # type: ignore[arg-type]
