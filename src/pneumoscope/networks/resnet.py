"""The residual network of Microsoft's ML.NET, with stages of 2, 2, 2 and 3 basic blocks, as a name that timm knows.

Its ImageNet weights (MIT licence) come from the package Microsoft.ML.DnnImageFeaturizer.ResNet18; a converted file is
given as `model.weights`. They want values of 0..255 less the channel means, so the standard deviation is 1 / 255.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet

_MEAN = (123.152, 115.903, 103.063)

default_cfgs = {
    "resnet20_mlnet": {
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "num_classes": 1000,
        "mean": tuple(value / 255 for value in _MEAN),
        "std": (1 / 255,) * 3,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "mit",
    }
}


@register_model
def resnet20_mlnet(pretrained: bool = False, **options: Any) -> ResNet:
    """Return the network; timm calls this by its name."""
    network: ResNet = build_model_with_cfg(
        ResNet, "resnet20_mlnet", pretrained, block=BasicBlock, layers=(2, 2, 2, 3), **options
    )
    return network
