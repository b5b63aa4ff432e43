"""Integrated gradients: how much each pixel adds on the way from an empty image to this one."""

from __future__ import annotations

import time

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from pneumoscope.explanation.method import DEFAULTS, INPUT, Options, finish
from pneumoscope.explanation.perturbation import FILLS, network_input
from pneumoscope.images.preparation import Pixels
from pneumoscope.networks.network import answer, pneumonia_score
from pneumoscope.networks.transforms import normalise
from pneumoscope.predict import Classifier
from pneumoscope.records import Heatmap

_STEPS, _AT_ONCE = 32, 8


def integrated_gradients(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return integrated gradients of the log-odds of pneumonia, by Gauss-Legendre quadrature.

    The start of the way is `options.fill`. `signed` adds up to the difference of the log-odds of image and start,
    as far as `options.samples` steps (32) suffice. Source: Sundararajan et al. 2017 (arXiv:1703.01365).

    Args:
        classifier: any network.
        canvas: uint8 [canvas, canvas].
        options: samples, fill.
    """
    started = time.perf_counter()
    network, preparation = classifier.bundle.network, classifier.bundle.preparation
    steps = options.samples or _STEPS
    image = network_input(classifier, canvas)
    pair = torch.from_numpy(np.stack([image, FILLS[options.fill](image)]))[:, None].to(classifier.device)
    ready = normalise(pair, preparation)

    def score(images: Tensor) -> Tensor:
        return pneumonia_score(answer(network, images, mirror=preparation.mirror))

    with torch.enable_grad():
        attributions = IntegratedGradients(score, multiply_by_inputs=True).attribute(
            ready[:1], baselines=ready[1:], n_steps=steps, internal_batch_size=_AT_ONCE
        )
    signed = attributions.detach()[0].sum(dim=0).float().cpu().numpy()
    return finish(signed, started, method="integrated-gradients", layer=INPUT, samples=steps, evaluations=steps)
