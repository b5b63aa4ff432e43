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
from pneumoscope.records import Heatmap
from pneumoscope.training.module import pneumonia_score
from pneumoscope.transforms import Pixels, prepare

LAYER = "encoder"
_BLANK = 1e-12


def gradcam(classifier: Classifier, canvas: Pixels) -> Heatmap:
    """Return the Grad-CAM of the pneumonia log-odds.

    The layer is the encoder's output: the last map with places, for every network that has one.

    Args:
        classifier: its network must end in a map [B, C, h, w] or in h*h tokens with up to five prefix tokens.
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
    image.requires_grad_(True)
    method = LayerGradCam(lambda x: pneumonia_score(network(x))[:, None], network.encoder)
    with torch.enable_grad():
        if _map_shape(network, image) == 4:
            weights = method.attribute(image, target=0, relu_attributions=True)
        else:
            weights = _token_cam(network, image)
    grown = LayerAttribution.interpolate(weights.detach(), (preparation.size, preparation.size), "bilinear")
    values = grown[0, 0].float().cpu().numpy()
    top = float(values.max())
    blank = not top > _BLANK
    return Heatmap(
        values=np.zeros_like(values) if blank else np.clip(values / top, 0, 1).astype(np.float32),
        method="gradcam",
        layer=LAYER,
        target="log-odds of pneumonia",
        verdict="blank" if blank else "not tested",
        seconds=time.perf_counter() - started,
    )


def _map_shape(network: Network, image: Tensor) -> int:
    with torch.no_grad():
        return int(network.encoder(image).ndim)


def _token_cam(network: Network, image: Tensor) -> Tensor:
    """Grad-CAM over the tokens of a transformer, laid back onto their places: float [1, 1, h, h]."""
    tokens = network.encoder(image)
    pooled = network.encoder.model.forward_head(tokens, pre_logits=True)
    gradient = torch.autograd.grad(pneumonia_score(network.head(pooled)).sum(), tokens)[0]
    prefix = int(getattr(network.encoder.model, "num_prefix_tokens", 0))
    places = tokens.shape[1] - prefix
    side = round(places**0.5)
    if tokens.ndim != 3 or side * side != places:
        raise ConfigError(
            "this network keeps no map of places, so Grad-CAM cannot be drawn", remedy="use another network"
        )
    weight = gradient[:, prefix:].mean(dim=1, keepdim=True)
    cam: Tensor = (weight * tokens[:, prefix:]).sum(dim=2).relu().reshape(1, 1, side, side)
    return cam
