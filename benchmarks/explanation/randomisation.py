"""Does the map depend on what the network learned? The check by random weights.

Source: Adebayo et al. 2018 (arXiv:1810.03292).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch

from pneumoscope.bundle.bundle import Bundle
from pneumoscope.explanation.method import Method, Options
from pneumoscope.explanation.stability import rank_correlation, ranked
from pneumoscope.images.preparation import Pixels
from pneumoscope.networks.network import stages
from pneumoscope.predict import Classifier


@dataclass(frozen=True, slots=True)
class Layer:
    """`depth`: how many stages, counted from the head, hold random weights; `rho`: mean |rho| to the true maps."""

    depth: int
    rho: float


def randomised(classifier: Classifier, depth: int, seed: int) -> Classifier:
    """Return a classifier whose head and last `depth` stages have their weights in random order; the given one stays.

    Reordering within each tensor keeps the scale of the weights, so that signals neither vanish nor explode.
    """
    network = deepcopy(classifier.bundle.network)
    ordered = stages(network)
    names = {name for stage in ordered[max(0, len(ordered) - depth) :] for name in stage}
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in names or name.startswith("head."):
                order = torch.randperm(weight.numel(), generator=rng).to(weight.device)
                weight.copy_(weight.flatten()[order].reshape(weight.shape))
    bundle = Bundle(classifier.bundle.folder, classifier.bundle.card, classifier.bundle.preparation)
    vars(bundle)["_network"] = network  # where the bundle keeps what it has read
    return Classifier(bundle, engine="torch", device=classifier.device)


def randomisation(
    method: Method,
    classifier: Classifier,
    canvases: Sequence[Pixels],
    *,
    options: Options,
    depths: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Layer]:
    """Return how like the true maps those of ever more randomised networks are; a sound method goes to 0.

    Args:
        method: a method of `METHODS`.
        classifier: the trained one.
        canvases: uint8 [canvas, canvas] each.
        options: of the method.
        depths: numbers of stages to randomise beside the head; None cascades from the head alone to all.
        seed: of the random weights.
    """
    deepest = len(stages(classifier.bundle.network))
    true = [ranked(method(classifier, canvas, options)) for canvas in canvases]
    layers = []
    for depth in range(deepest + 1) if depths is None else depths:
        other = randomised(classifier, depth, seed)
        maps = [ranked(method(other, canvas, options)) for canvas in canvases]
        rho = float(np.mean([abs(rank_correlation(a, b)) for a, b in zip(true, maps, strict=True)]))
        layers.append(Layer(min(depth, deepest), rho))
    return layers
