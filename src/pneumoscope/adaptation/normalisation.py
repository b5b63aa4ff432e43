"""Batch-norm statistics of another site's images, without labels."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import nn

from pneumoscope.images.preparation import Pixels, Preparation
from pneumoscope.networks.network import Network
from pneumoscope.networks.transforms import prepare

PRIOR = 16  # images that the original statistics count for
MOST = 256  # images that show the statistics; more change nothing measurable
LEAST = 16
_BATCH = 32


def has_batch_norm(network: Network) -> bool:
    """Whether a network has batch norm with running statistics."""
    return bool(_layers(network))


def renormalised(network: Network, canvases: Pixels, preparation: Preparation, *, seed: int) -> Network:
    """Return a copy whose batch-norm statistics are those of these images, blended with the original's.

    `canvases`: uint8 [n, canvas, canvas], n >= 2. The original counts as much as `PRIOR` images (Schneider et al.,
    NeurIPS 2020, eq. 1); of more than `MOST` images a random choice is shown. The given network is not changed.
    """
    rng = np.random.default_rng(seed)
    shown = rng.permutation(len(canvases))[:MOST]
    copy = deepcopy(network)
    layers = _layers(copy)
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]  # type: ignore[union-attr]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average over batches
        layer.train()
    with torch.no_grad():
        for rows in np.array_split(shown, max(1, round(len(shown) / _BATCH))):
            copy.embed(prepare(torch.from_numpy(np.array(canvases[rows])), preparation))
        own = PRIOR / (PRIOR + len(shown))
        originals = _layers(network)
        for layer, (mean, variance), original in zip(layers, before, originals, strict=True):
            _blend(layer.running_mean, mean, own)
            _blend(layer.running_var, variance, own)
            layer.momentum = original.momentum
            if layer.num_batches_tracked is not None and original.num_batches_tracked is not None:
                layer.num_batches_tracked.copy_(original.num_batches_tracked)
    copy.eval()
    return copy


def _blend(local: torch.Tensor | None, original: torch.Tensor, share: float) -> None:
    if local is not None:
        local.mul_(1 - share).add_(share * original)


def _layers(network: Network) -> list[nn.modules.batchnorm._BatchNorm]:
    modules = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [module for module in modules if module.track_running_stats and module.running_mean is not None]
