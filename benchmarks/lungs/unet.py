"""A small U-Net on the first five stages of EfficientNet-Lite0: where are the lungs?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from pneumoscope.networks.network import build_network
from pneumoscope.networks.weights import load_weights

_STAGES = 5  # of seven; the last two hold two thirds of the weights
_SKIPS = {0: 16, 1: 24, 2: 40}  # stage: channels, at a half, a quarter and an eighth of the input


class UNet(nn.Module):
    """From grey pixels to the logit of lung, each image by its own brightness and contrast alone."""

    def __init__(self) -> None:
        super().__init__()
        network, _ = build_network("tf_efficientnet_lite0", classes=2)
        self.source = load_weights(network, "tf_efficientnet_lite0", "offline").source
        model: Any = network.encoder.model
        self.stem = nn.Sequential(model.conv_stem, model.bn1)
        self.stages = nn.ModuleList(model.blocks[:_STAGES])
        self.context = _block(112, 112, stride=2)
        self.up = nn.ModuleList([_block(112 + 40, 64), _block(64 + 24, 48), _block(48 + 16, 24)])
        self.last = nn.Conv2d(24, 1, 1)
        self.train()  # the encoder came in eval mode, which Lightning would keep

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits float32 [B, S, S] from uint8 or float32 [B, S, S] in 0..255, S a multiple of 32."""
        grey = pixels[:, None].float()
        centred = grey - grey.mean((1, 2, 3), keepdim=True)
        # 2 of 255 grey levels: a constant image stays one.
        grey = centred / (centred.square().mean((1, 2, 3), keepdim=True).sqrt() + 2.0)
        x = self.stem(grey.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
        skips = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in _SKIPS:
                skips.append(x)
        x = x + _doubled(self.context(x))
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([_doubled(x), skip], dim=1))
        logits: Tensor = _doubled(self.last(x))[:, 0]
        return logits

    def parts(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters that know ImageNet, and those that know nothing yet."""
        old = [*self.stem.parameters(), *self.stages.parameters()]
        known = {id(parameter) for parameter in old}
        return old, [parameter for parameter in self.parameters() if id(parameter) not in known]


class Deployed(nn.Module):
    """What is shipped: probabilities instead of logits."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 [B, S, S] in 0..1 from uint8 [B, S, S]."""
        return torch.sigmoid(self.net(pixels))


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _doubled(x: Tensor) -> Tensor:
    return nnf.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
