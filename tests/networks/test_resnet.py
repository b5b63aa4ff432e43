"""ML.NET's residual network by its name: shape, blocks and how it wants its input."""

from __future__ import annotations

import timm
import torch

from pneumoscope.networks.network import build_network
from pneumoscope.networks.resnet import default_cfgs, resnet20_mlnet


def test_stages_have_two_two_two_and_three_blocks() -> None:
    network = timm.create_model(resnet20_mlnet.__name__, num_classes=3)
    assert [len(stage) for stage in (network.layer1, network.layer2, network.layer3, network.layer4)] == [2, 2, 2, 3]
    assert network.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_it_is_built_by_name_and_wants_greys_less_the_channel_means() -> None:
    network, usual = build_network("resnet20_mlnet", classes=3)
    assert network.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    black = [-mean / std for mean, std in zip(usual["mean"], usual["std"], strict=True)]
    assert [round(value, 2) for value in black] == [-123.15, -115.9, -103.06]
    assert default_cfgs["resnet20_mlnet"]["classifier"] == "fc"
