"""Networks whose reasons are known, because they were written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.images.preparation import Pixels, Preparation
from pneumoscope.networks.network import Network
from pneumoscope.predict import Classifier

CARD = {
    "name": "constructed", "sha256": "0" * 64, "calibration": {"temperature": 1.0, "bias": 0.0},
    "operating_points": {"balanced": {"threshold": 0.5}}, "operating_point": "balanced",
    "runtime": {"files": {}},
}  # fmt: skip
SIDE, CELLS = 60, 6
PLACE = (2, 4)  # row and column of the cell that counts


class Fields(nn.Module):
    """How bright each of 6 x 6 fields is, beyond `least`, times the weight of its place."""

    num_features = 1
    weight: Tensor

    def __init__(self, weight: np.ndarray, least: float) -> None:
        super().__init__()
        self.least = least
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32))

    def forward_features(self, x: Tensor) -> Tensor:
        light = x[:, :1] - self.least
        if self.least:
            light = F.relu(light, inplace=True)  # as torchvision's networks do, which breaks careless hooks
        return F.avg_pool2d(light, SIDE // CELLS) * self.weight

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        return features.sum(dim=(2, 3))


def classifier_of(network: Network, preparation: Preparation) -> Classifier:
    bundle = Bundle(Path(), CARD, preparation)
    vars(bundle)["network"] = network.eval().requires_grad_(False)  # where the bundle keeps what it has read
    return Classifier(bundle, engine="torch")


def summing(weight: np.ndarray, least: float) -> Classifier:
    network = Network(Fields(weight, least), 1, 2, 0.0).requires_grad_(False)
    network.head[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    network.head[1].bias.zero_()
    return classifier_of(network, Preparation(SIDE, SIDE, "squash", (0.0,) * 3, (1.0,) * 3))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def hand_made() -> Callable[[Network, Preparation], Classifier]:
    """Make a classifier of a network that no bundle holds."""
    return classifier_of


@pytest.fixture(scope="session")
def planted() -> Classifier:
    """Its log-odds are how much brighter than a third one field of 36 is, and nothing else."""
    weight = np.zeros((CELLS, CELLS))
    weight[PLACE] = 12.0
    return summing(weight, 1 / 3)


@pytest.fixture(scope="session")
def coefficients() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 3, (CELLS, CELLS))


@pytest.fixture(scope="session")
def linear(coefficients: np.ndarray) -> Classifier:
    """Its log-odds are a weighted sum of how bright 36 fields are."""
    return summing(coefficients, 0.0)


@pytest.fixture
def bright_place() -> Pixels:
    """Noise, and a bright field where the planted network looks."""
    image = np.random.default_rng(0).integers(0, 160, (SIDE, SIDE), dtype=np.uint8)
    row, column = (10 * index for index in PLACE)
    image[row : row + 10, column : column + 10] = 240
    return image


@pytest.fixture(scope="session")
def place() -> np.ndarray:
    """Where that field is, bool [60, 60]."""
    mask = np.zeros((SIDE, SIDE), bool)
    row, column = (10 * index for index in PLACE)
    mask[row : row + 10, column : column + 10] = True
    return mask
