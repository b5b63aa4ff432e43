"""Class activation maps: one hook, one gradient, and a formula for each method."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pneumoscope.errors import ConfigError
from pneumoscope.explanation.method import DEFAULTS, ENCODER, Options, finish
from pneumoscope.images.preparation import Pixels
from pneumoscope.networks.network import Network, pneumonia_score
from pneumoscope.networks.transforms import prepare
from pneumoscope.predict import Classifier
from pneumoscope.records import FloatArray, Heatmap

Formula = Callable[[Tensor, Tensor], Tensor]  # activations and gradients [1, C, h, w] to a signed map [1, 1, h, w]


def gradcam(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return Grad-CAM of any layer; as `gradcam.gradcam`, which asks this where its short way does not serve."""
    return _cam(classifier, canvas, options, "gradcam", lambda a, g: g.mean(dim=(2, 3), keepdim=True) * a)


def gradcam_plus(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return Grad-CAM++: positive gradients, weighted so that several small findings count as one large one.

    Arguments and errors as in `gradcam.gradcam`. Source: Chattopadhay et al. 2018 (arXiv:1710.11063), equation 19, for
    the exponential of the score; its factor cancels.
    """

    def formula(a: Tensor, g: Tensor) -> Tensor:
        below = 2 * g**2 + a.sum(dim=(2, 3), keepdim=True) * g**3
        alpha = torch.where(below == 0, 0, g**2 / torch.where(below == 0, 1, below))
        return (alpha * g.relu()).sum(dim=(2, 3), keepdim=True) * a

    return _cam(classifier, canvas, options, "gradcam++", formula)


def hirescam(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return HiResCAM: activation times gradient, place by place.

    Arguments and errors as in `gradcam.gradcam`. Source: Draelos and Carin 2020 (arXiv:2011.08891).
    """
    return _cam(classifier, canvas, options, "hirescam", lambda a, g: g * a)


def layercam(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return LayerCAM: activation times positive gradient, place by place; serves early, fine layers too.

    Arguments and errors as in `gradcam.gradcam`. Source: Jiang et al. 2021 (IEEE TIP, doi:10.1109/TIP.2021.3089943).
    """
    return _cam(classifier, canvas, options, "layercam", lambda a, g: g.relu() * a)


def _cam(classifier: Classifier, canvas: Pixels, options: Options, method: str, formula: Formula) -> Heatmap:
    network, preparation = classifier.bundle.network, classifier.bundle.preparation
    started = time.perf_counter()
    layer = _layer(network, options.layer)
    image = prepare(torch.from_numpy(np.array(canvas))[None].to(classifier.device), preparation)
    maps = [_map_at(network, layer, image, formula)]
    if preparation.mirror:
        maps.append(_map_at(network, layer, image.flip(-1), formula).flip(-1))
    signed = torch.stack(maps).mean(dim=0)
    positive = torch.stack([signed_map.relu() for signed_map in maps]).mean(dim=0)
    size = preparation.size
    return finish(
        _grown(signed, size),
        started,
        positive=_grown(positive, size),
        method=method,
        layer=layer,
        evaluations=len(maps),
    )


def _grown(small: Tensor, size: int) -> FloatArray:
    """Return float32 [size, size] from [1, 1, h, w]."""
    grown = F.interpolate(small.float(), (size, size), mode="bilinear", align_corners=False)
    result: FloatArray = grown[0, 0].cpu().numpy()
    return result


def _layer(network: Network, chosen: str | None) -> str:
    model = network.encoder.model
    if chosen is None:
        if getattr(model, "global_pool", "") == "token" and hasattr(model, "blocks"):
            return f"{ENCODER}.model.blocks.{len(model.blocks) - 1}.norm1"
        return ENCODER
    modules = dict(network.named_modules())
    for name in (chosen, f"{ENCODER}.model.{chosen}"):
        if chosen and name in modules:
            return name
    raise ConfigError(
        f"the network has no layer {chosen!r}",
        remedy=f"use {ENCODER}, or one of {', '.join(name for name, _ in model.named_children())}",
    )


def _map_at(network: Network, layer: str, image: Tensor, formula: Formula) -> Tensor:
    """Return the signed map [1, 1, h, w] of an image [1, 3, S, S]."""
    outputs: list[Tensor] = []

    def hook(module: object, inputs: object, output: object) -> object:
        if not isinstance(output, Tensor):
            return None
        outputs.append(output)
        return output.clone()  # the next module may work in place, and would change the stored map

    image = image.detach().requires_grad_(True)
    handle = network.get_submodule(layer).register_forward_hook(hook)
    try:
        with torch.enable_grad():
            score = pneumonia_score(network(image)).sum()
    finally:
        handle.remove()
    if not outputs:
        raise _not_spatial(layer)
    gradient = torch.autograd.grad(score, outputs[-1], allow_unused=True)[0]
    if gradient is None:
        raise _not_spatial(layer)
    activations, gradient = (_channels_first(network, layer, x.detach()) for x in (outputs[-1], gradient))
    return formula(activations, gradient).sum(dim=1, keepdim=True)


def _channels_first(network: Network, layer: str, x: Tensor) -> Tensor:
    """Return [1, C, h, w] from a map of either order, or from tokens [1, N, C] in raster order."""
    model = network.encoder.model
    if x.ndim == 3:
        tokens = x[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise _not_spatial(layer)
        return tokens.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if x.ndim != 4:
        raise _not_spatial(layer)
    return x.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else x


def _not_spatial(layer: str) -> ConfigError:
    return ConfigError(
        f"the layer {layer} has no spatial map, so no CAM can be drawn of it",
        remedy="choose another --layer, or the method occlusion, lime or shap",
    )
