"""Every method on every network: one shape, repeatable, and the network is left as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pneumoscope.bundle.runtime import Runtime
from pneumoscope.explanation import METHODS, Options
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import VERDICTS, Heatmap

CAMS = ("gradcam", "gradcam++", "hirescam", "layercam")
SEEDED = ("lime", "shap")
COMMON = {"custom-cnn": 64, "resnet18": 64, "vgg11": 64, "tf_efficientnet_lite0": 64}  # VGG16 behaves as VGG11
OTHERS = {"mobilenetv3_small_100": 64, "densenet121": 64, "convnext_atto": 64, "vit_tiny_patch16_224": 224}
QUICK = Options(samples=40, segments="grid")
# IG takes a forward and a backward pass for each.
FEW = {"integrated-gradients": Options(samples=4)}


def explain(method: str, classifier: Classifier, canvas: Pixels, options: Options | None = None) -> Heatmap:
    return METHODS[method](classifier, canvas, options or FEW.get(method, QUICK))


# Only the CAM family looks inside, so the common networks serve for the others.
PAIRS = [(name, method) for name in (*COMMON, *OTHERS) for method in (METHODS if name in COMMON else CAMS)]
on_every_network = pytest.mark.parametrize(("classifier", "method"), PAIRS, indirect=["classifier"])


@pytest.fixture(scope="module")
def load(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Classifier]:
    """Make an untrained network's classifier, each once."""

    @cache
    def make(name: str) -> Classifier:
        folder = tmp_path_factory.mktemp("bundle") / "b"
        # One thread: images this small gain nothing from more.
        return Classifier.load(make_bundle(folder, network=name, size={**COMMON, **OTHERS}[name]), threads=1)

    return make


@pytest.fixture
def classifier(request: pytest.FixtureRequest, load: Callable[[str], Classifier]) -> Classifier:
    return load(request.param)


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


@on_every_network
def test_a_map_in_0_to_1_of_the_size_of_the_input(classifier: Classifier, canvas: Pixels, method: str) -> None:
    network = classifier.bundle.network
    state = {key: value.clone() for key, value in network.state_dict().items()}
    before = classifier.logits(canvas[None])
    original = canvas.copy()
    heatmap = explain(method, classifier, canvas)
    side = classifier.bundle.preparation.size
    for values in (heatmap.values, heatmap.signed):
        assert values is not None
        assert values.shape == (side, side)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    assert heatmap.values.min() >= 0
    assert heatmap.values.max() <= 1
    assert heatmap.values.max() == pytest.approx(0 if heatmap.verdict == "blank" else 1)
    assert (heatmap.method, heatmap.seconds > 0) == (method, True)
    assert heatmap.layer
    assert heatmap.target == "log-odds of pneumonia, not calibrated"
    assert heatmap.verdict in VERDICTS
    assert (heatmap.reason is None) == (heatmap.verdict == "not tested")
    assert (heatmap.seed is not None) == (method in SEEDED)
    assert (heatmap.r2 is not None) == (method in SEEDED)
    assert (heatmap.samples is None) == (method in CAMS)
    assert heatmap.evaluations >= (heatmap.samples or 1) * 0.9
    assert (heatmap.segments is None) == (heatmap.contributions is None)
    again = explain(method, classifier, canvas)
    assert np.array_equal(again.values, heatmap.values)
    assert np.array_equal(again.signed, heatmap.signed)  # type: ignore[arg-type]
    assert again.r2 == heatmap.r2
    assert leftovers(network) == []
    assert np.array_equal(classifier.logits(canvas[None]), before)
    assert np.array_equal(canvas, original)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key


class BrokenError(RuntimeError):
    pass


@on_every_network
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
        patch.setattr(classifier, "runtime", Runtime("broken", fail))  # type: ignore[arg-type]
        with pytest.raises(BrokenError):
            explain(method, classifier, canvas)
    assert leftovers(network) == []
    assert np.array_equal(classifier.logits(canvas[None]), before)
    assert torch.is_grad_enabled()


@on_every_network
def test_another_image_has_another_map(classifier: Classifier, canvas: Pixels, method: str) -> None:
    """A map that does not depend on the image explains nothing."""
    one, other = (explain(method, classifier, image).signed for image in (canvas, np.rot90(canvas).copy()))
    assert not np.array_equal(one, other)  # type: ignore[arg-type]


# --- on a network whose reason is known -------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_one_place_that_counts_is_found(
    planted: Classifier, bright_place: Pixels, place: np.ndarray, method: str
) -> None:
    heatmap = explain(method, planted, bright_place, Options(samples=150, segments="grid"))
    assert heatmap.verdict == "not tested"
    strongest = heatmap.values == 1
    assert place[strongest].all(), "the strongest places lie in it"
    near = np.pad(place, 10)[20:, 10:-10] | np.pad(place, 10)[:-20, 10:-10] | place
    near |= np.pad(near, 10)[10:-10, 20:] | np.pad(near, 10)[10:-10, :-20]
    assert heatmap.values[~near].sum() <= 0.02 * heatmap.values.sum(), "and what is not beside it counts little"


@pytest.mark.parametrize("method", METHODS)
def test_two_hundred_calls_leave_nothing(planted: Classifier, bright_place: Pixels, method: str) -> None:
    options = Options(samples=3 if method == "integrated-gradients" else 40, segments="grid")
    for _ in range(5):
        explain(method, planted, bright_place, options)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(200):
        explain(method, planted, bright_place, options)
    gc.collect()
    assert len(gc.get_objects()) - before < 100, "objects that 200 calls would each have left behind"
    assert leftovers(planted.bundle.network) == []


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_drawn_at_random_depends_on_the_seed(
    linear: Classifier, bright_place: Pixels, method: str
) -> None:
    one, other = (
        explain(method, linear, bright_place, Options(seed=seed, samples=50, segments="grid")).signed for seed in (0, 1)
    )
    assert np.array_equal(one, other) != (method in SEEDED)  # type: ignore[arg-type]
