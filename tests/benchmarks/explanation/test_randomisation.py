"""Whether a map depends on what the network learned, on methods that do and one that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.explanation.randomisation import randomisation, randomised

from pneumoscope.explanation import METHODS, Options
from pneumoscope.explanation.method import finish
from pneumoscope.explanation.perturbation import network_input
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import Heatmap

RNG = np.random.default_rng


def test_random_weights_are_the_old_ones_in_another_order(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    classifier = Classifier.load(make_bundle(tmp_path / "b", network="resnet18"), threads=1)
    network = classifier.bundle.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    head, everything = (randomised(classifier, depth, seed=0).bundle.network for depth in (0, 99))
    for name, weight in network.named_parameters():
        assert torch.equal(weight, before[name]), "the given network stays"
        moved = dict(everything.named_parameters())[name]
        assert torch.equal(moved.flatten().sort().values, weight.flatten().sort().values)
        assert torch.equal(dict(head.named_parameters())[name], weight) or name.startswith("head")
    assert not torch.equal(everything.encoder.model.conv1.weight, network.encoder.model.conv1.weight)
    canvas = RNG(0).integers(0, 256, (1, 40, 40), dtype=np.uint8)
    assert not np.allclose(randomised(classifier, 0, seed=0).logits(canvas), classifier.logits(canvas))


def test_a_method_that_looks_at_the_image_alone_is_found_out(trained: Path) -> None:
    classifier = Classifier.load(trained / "bundle", threads=1)
    canvases = [RNG(seed).integers(0, 256, (40, 40), dtype=np.uint8) for seed in range(4)]

    def edges(classifier: Classifier, canvas: Pixels, options: Options) -> Heatmap:
        image = network_input(classifier, canvas).astype(np.float32)
        return finish(np.abs(np.gradient(image)[0]).astype(np.float32), 0.0, method="edges", layer="input")

    for layer in randomisation(edges, classifier, canvases, options=Options()):
        assert layer.rho == pytest.approx(1)
    found = randomisation(METHODS["occlusion"], classifier, canvases, options=Options(samples=25), depths=(99,))
    assert found[0].rho < 0.7
    assert found[0].depth == len(randomisation(edges, classifier, canvases[:1], options=Options())) - 1
