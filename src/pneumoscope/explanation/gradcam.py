"""Grad-CAM, without a gradient where the answer is linear in the mean of the last map.

There the gradient at each place is the head's weight over the number of places, so the fast runtime's own map is all
that is needed: a gateway that draws maps need not load PyTorch.
"""

from __future__ import annotations

import time

import numpy as np
from PIL import Image
from scipy.special import softmax

from pneumoscope.explanation.method import DEFAULTS, ENCODER, Options, finish
from pneumoscope.images.preparation import Pixels, to_input
from pneumoscope.predict import Classifier
from pneumoscope.records import FloatArray, Heatmap


def gradcam(classifier: Classifier, canvas: Pixels, options: Options = DEFAULTS) -> Heatmap:
    """Return Grad-CAM: the channels of a layer, weighted by their mean gradient.

    It explains the log-odds of pneumonia at `options.layer`, named as in the network or in its encoder (`layer3`). By
    default that is the encoder's output: the last spatial map, for every network that has one. A transformer that
    answers from its class token alone is explained at the entry of its last block: after that no other token reaches
    the answer, and their gradient is zero. Where the answer is the mean over the image and its mirror image,
    so is the map. Evidence against pneumonia stays in `signed`.

    Args:
        classifier: the layer must give a map [B, C, h, w] or [B, h, w, C], or h*h tokens.
        canvas: uint8 [canvas, canvas].
        options: the layer.

    Raises:
        ConfigError: the network has no such layer, or the layer has no spatial map.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391); the case without a gradient is Zhou et al. 2016
    (arXiv:1512.04150), as appendix A of the former shows.
    """
    started = time.perf_counter()
    maps = _linear_maps(classifier, canvas) if options.layer is None else None
    if maps is None:
        from pneumoscope.explanation.cam import gradcam as by_gradient

        return by_gradient(classifier, canvas, options)
    size = classifier.bundle.preparation.size
    return finish(
        _grown(maps.mean(axis=0), size),
        started,
        positive=_grown(np.clip(maps, 0, None).mean(axis=0), size),
        method="gradcam",
        layer=ENCODER,
        evaluations=len(maps),
    )


def _linear_maps(classifier: Classifier, canvas: Pixels) -> FloatArray | None:
    """Return the signed map of each view, float32 [V, h, w], upright; None where a gradient is needed."""
    bundle = classifier.bundle
    last_maps = classifier.runtime.maps(to_input(canvas[None], bundle.preparation))
    head = None if last_maps is None else bundle.head()
    if last_maps is None or head is None:
        return None
    weights, bias = head
    views = last_maps[:, 0]
    maps = []
    for view in views:
        logits = weights @ view.mean(axis=(1, 2)) + bias
        # d (logsumexp of the pneumonias - normal) / d logits
        slope = np.concatenate([[-1.0], softmax(logits[1:])]).astype(np.float32)
        maps.append(np.tensordot(slope @ weights, view, axes=1) / np.float32(view[0].size))
    if len(maps) == 2:
        maps[1] = maps[1][:, ::-1]
    return np.stack(maps)


def _grown(small: FloatArray, size: int) -> FloatArray:
    """Return float32 [size, size] from [h, w], bilinear."""
    image = Image.fromarray(np.ascontiguousarray(small, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32)
