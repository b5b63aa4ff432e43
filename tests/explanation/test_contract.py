"""Every method on every network: one shape, repeatable, and the network is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pneumoscope.explanation import METHODS
from pneumoscope.predict import Classifier
from pneumoscope.preparation import Pixels

NETWORKS = {
    "custom-cnn": 64,
    "resnet18": 64,
    "vgg11": 64,
    "tf_efficientnet_lite0": 64,
    "mobilenetv3_small_100": 64,
    "densenet121": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 224,
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def classifier(
    request: pytest.FixtureRequest, make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Classifier:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    return Classifier.load(make_bundle(folder, network=request.param, size=NETWORKS[request.param]))


@pytest.fixture
def canvas(classifier: Classifier) -> Pixels:
    side = classifier.bundle.preparation.canvas
    return np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)


def leftovers(network: nn.Module) -> list[str]:
    """What an explanation might leave behind: hooks, gradients, a changed mode."""
    found = []
    for name, module in network.named_modules():
        hooks = (
            module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        )  # fmt: skip
        if any(hooks):
            found.append(f"hook on {name}")
        if module.training:
            found.append(f"training mode of {name}")
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            found.append(f"gradient of {name}")
        if parameter.requires_grad:
            found.append(f"requires_grad of {name}")
    return found


@pytest.mark.parametrize("method", list(METHODS))
def test_a_map_in_0_to_1_of_the_size_of_the_input(classifier: Classifier, canvas: Pixels, method: str) -> None:
    network = classifier.bundle.network
    state = {key: value.clone() for key, value in network.state_dict().items()}
    before = classifier.logits(canvas[None])
    original = canvas.copy()
    heatmap = METHODS[method](classifier, canvas)
    side = classifier.bundle.preparation.size
    assert heatmap.values.shape == (side, side)
    assert heatmap.values.dtype == np.float32
    assert np.isfinite(heatmap.values).all()
    assert heatmap.values.min() >= 0
    assert heatmap.values.max() <= 1
    assert heatmap.values.max() == pytest.approx(0 if heatmap.verdict == "blank" else 1)
    assert (heatmap.method, heatmap.seconds > 0) == (method, True)
    assert heatmap.layer
    assert heatmap.target
    again = METHODS[method](classifier, canvas)
    assert np.array_equal(again.values, heatmap.values)
    assert leftovers(network) == []
    assert np.array_equal(classifier.logits(canvas[None]), before)
    assert np.array_equal(canvas, original)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


class BrokenError(RuntimeError):
    pass


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("place", ["encoder", "head"])
def test_nothing_is_left_behind_after_a_failure_inside(
    classifier: Classifier, canvas: Pixels, method: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = classifier.bundle.network
    before = classifier.logits(canvas[None])

    def fail(*args: object, **kwargs: object) -> None:
        raise BrokenError

    part = network.encoder.model if place == "encoder" else network.head[1]
    with monkeypatch.context() as patch:
        patch.setattr(part, "forward_features" if place == "encoder" else "forward", fail)
        with pytest.raises(BrokenError):
            METHODS[method](classifier, canvas)
    assert leftovers(network) == []
    assert np.array_equal(classifier.logits(canvas[None]), before)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", list(METHODS))
def test_another_image_has_another_map(classifier: Classifier, canvas: Pixels, method: str) -> None:
    """A map that does not depend on the image explains nothing."""
    weight = classifier.bundle.network.head[1].weight
    different = []
    for sign in (1, -1):  # of an untrained head one sign may find nothing that speaks for pneumonia
        with torch.no_grad():
            weight.mul_(sign)
        maps = [METHODS[method](classifier, image).values for image in (canvas, np.rot90(canvas).copy())]
        different.append(not np.array_equal(*maps))
    with torch.no_grad():
        weight.mul_(-1)
    assert any(different)
