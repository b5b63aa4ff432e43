"""The custom CNN: a small network trained from scratch, the baseline that the others must beat."""

from __future__ import annotations

from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a residual connection; the first halves the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.refine = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.activate = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)  # (B, outputs, H/2, W/2)
        out: Tensor = self.activate(x + self.refine(x))
        return out


class CustomCNN(nn.Module):
    """Five residual stages from 24 to 192 channels, 1.1 million parameters, stride 32.

    Residual connections after He et al. 2016 (arXiv:1512.03385), batch norm after Ioffe and Szegedy 2015.
    """

    widths = (24, 48, 96, 160, 192)

    def __init__(self) -> None:
        super().__init__()
        inputs = 3
        stages = []
        for width in self.widths:
            stages.append(_Block(inputs, width))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.num_features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the feature map float32 [B, 192, S/32, S/32] from float32 [B, 3, S, S]."""
        out: Tensor = self.stages(x)
        return out

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        """Return the map averaged to float32 [B, 192]; `pre_logits` is timm's convention, there is no classifier."""
        return features.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features float32 [B, 192]."""
        return self.forward_head(self.forward_features(x))
