"""Grad-CAM: which places of the last feature map carry the score (Selvaraju et al. 2017, arXiv:1610.02391)."""

from __future__ import annotations

import time

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor

from pneumoscope.errors import ConfigError
from pneumoscope.models.network import Network
from pneumoscope.predict import Classifier
from pneumoscope.preparation import Pixels
from pneumoscope.records import Heatmap
from pneumoscope.training.module import pneumonia_score
from pneumoscope.transforms import prepare

_ENCODER = "encoder"
_BLANK = 1e-12


def gradcam(classifier: Classifier, canvas: Pixels) -> Heatmap:
    """Return the Grad-CAM of the pneumonia log-odds.

    The layer is the encoder's output: the last map with places, for every network that has one. A transformer
    that answers from its class token alone is explained at the entry of its last block: after that the
    places no longer reach the answer, and their gradient is nothing. Where the answer is the mean over the image
    and its mirror image, so is the map.

    Args:
        classifier: its network must end in a map [B, C, h, w] or [B, h, w, C], or in h*h tokens.
        canvas: uint8 [canvas, canvas].

    Returns:
        float32 [S, S] in 0..1, scaled by its maximum; `verdict` is `blank` where nothing speaks for pneumonia
        (all weights of the map are negative), else `not tested`: faithfulness was not measured.

    Raises:
        ConfigError: the network keeps no map of places.
    """
    network, preparation = classifier.bundle.network, classifier.bundle.preparation
    started = time.perf_counter()
    image = prepare(torch.from_numpy(np.array(canvas))[None].to(classifier.device), preparation)
    layer, weights = _cam(network, image)
    if preparation.mirror:
        weights = (weights + _cam(network, image.flip(-1))[1].flip(-1)) / 2
    grown = LayerAttribution.interpolate(weights.detach(), (preparation.size, preparation.size), "bilinear")
    values = grown[0, 0].float().cpu().numpy()
    top = float(values.max())
    blank = not top > _BLANK
    return Heatmap(
        values=np.zeros_like(values) if blank else np.clip(values / top, 0, 1).astype(np.float32),
        method="gradcam",
        layer=layer,
        target="log-odds of pneumonia",
        verdict="blank" if blank else "not tested",
        seconds=time.perf_counter() - started,
    )


def _cam(network: Network, image: Tensor) -> tuple[str, Tensor]:
    """Return the layer and its Grad-CAM, float [1, 1, h, w], of an image [1, 3, S, S]."""
    image = image.detach().requires_grad_(True)
    with torch.enable_grad():
        if _channels_first(network, image):
            method = LayerGradCam(lambda x: pneumonia_score(network(x))[:, None], network.encoder)
            return _ENCODER, method.attribute(image, target=0, relu_attributions=True)
        layer = _layer_of_places(network)
        return layer, _cam_at(network, layer, image)


def _channels_first(network: Network, image: Tensor) -> bool:
    if getattr(network.encoder.model, "output_fmt", "NCHW") == "NHWC":
        return False
    with torch.no_grad():
        features: Tensor = network.encoder(image)
    return features.ndim == 4


def _layer_of_places(network: Network) -> str:
    model = network.encoder.model
    if getattr(model, "global_pool", "") == "token" and hasattr(model, "blocks"):
        return f"{_ENCODER}.model.blocks.{len(model.blocks) - 1}.norm1"
    return _ENCODER


def _cam_at(network: Network, layer: str, image: Tensor) -> Tensor:
    """Grad-CAM over tokens [1, N, C], or a map [1, h, w, C], laid back onto their places: float [1, 1, h, w]."""
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, given, output: kept.append(output))
    try:
        score = pneumonia_score(network(image)).sum()
    finally:
        handle.remove()
    places = kept[-1]
    gradient = torch.autograd.grad(score, places)[0]
    if places.ndim == 3:
        prefix = int(getattr(network.encoder.model, "num_prefix_tokens", 0))
        places, gradient = _square(places[:, prefix:]), _square(gradient[:, prefix:])
    weight = gradient.mean(dim=(1, 2), keepdim=True)
    return (weight * places).sum(dim=3).relu()[:, None]


def _square(tokens: Tensor) -> Tensor:
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ConfigError(
            "this network keeps no map of places, so Grad-CAM cannot be drawn", remedy="use another network"
        )
    return tokens.reshape(1, side, side, -1)
