"""The CAM family against arithmetic done by hand, and on a network whose reason is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.bundle.bundle import SHIPPED
from pneumoscope.errors import ConfigError
from pneumoscope.explanation import cam
from pneumoscope.explanation.cam import gradcam_plus, hirescam, layercam
from pneumoscope.explanation.gradcam import gradcam
from pneumoscope.explanation.method import Method, Options
from pneumoscope.images.preparation import Pixels, Preparation
from pneumoscope.networks.network import Network, pneumonia_score
from pneumoscope.networks.transforms import prepare
from pneumoscope.predict import Classifier

HandMade = Callable[[Network, Preparation], Classifier]


def noise(side: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


# --- by hand ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 3])
def classifier(
    request: pytest.FixtureRequest, make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Classifier:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    return Classifier.load(make_bundle(folder, classes=request.param, size=96))


def by_hand(classifier: Classifier, canvas: Pixels) -> Tensor:
    """Selvaraju et al. 2017, equations 1 and 2, with torch.autograd alone: [h, w]."""
    network = classifier.bundle.network
    x = prepare(torch.from_numpy(canvas)[None], classifier.bundle.preparation)
    activation = network.encoder(x).detach().requires_grad_(True)
    score = pneumonia_score(network.head(activation.mean(dim=(2, 3))))
    (gradient,) = torch.autograd.grad(score.sum(), activation)
    alpha = gradient.mean(dim=(2, 3), keepdim=True)
    return (alpha * activation).sum(dim=1).relu()[0].detach()


@pytest.mark.parametrize("seed", range(4))
def test_the_map_is_that_of_the_equations(classifier: Classifier, seed: int) -> None:
    canvas = noise(104, seed)
    expected = by_hand(classifier, canvas)
    heatmap = gradcam(classifier, canvas)
    if expected.max() < 1e-12:
        assert heatmap.verdict == "blank"
        return
    grown = F.interpolate(expected[None, None], (96, 96), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(heatmap.values, (grown / grown.max()).numpy(), atol=1e-4)
    assert heatmap.values.max() == pytest.approx(1)
    assert heatmap.verdict == "not tested"


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    ("name", "linear"), [("custom-cnn", True), ("resnet18", True), ("vgg11", True), ("convnext_atto", False)]
)
def test_without_a_gradient_it_is_the_same_map(
    name: str, linear: bool, mirror: bool, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    classifier = Classifier.load(make_bundle(tmp_path / "bundle", name, mirror=mirror))
    canvas = noise(classifier.bundle.preparation.canvas, 1)
    found, expected = gradcam(classifier, canvas), cam.gradcam(classifier, canvas)
    places = classifier.runtime.maps(
        canvas[None, : classifier.bundle.preparation.size, : classifier.bundle.preparation.size]
    )
    assert (places is not None) == linear
    assert found.evaluations == expected.evaluations == 1 + mirror
    assert (found.method, found.layer) == (expected.method, expected.layer)
    scale = float(np.abs(expected.signed).max())
    np.testing.assert_allclose(found.signed, expected.signed, atol=1e-4 * scale)
    np.testing.assert_allclose(found.values, expected.values, atol=2e-3)


def test_what_shows_and_sends_results_loads_no_pytorch() -> None:
    code = f"""
import sys
import numpy as np
from pneumoscope.explanation import METHODS
from pneumoscope.explanation.overlay import layer
from pneumoscope.predict import Classifier
from pathlib import Path
classifier = Classifier.load(Path({str(SHIPPED["default"])!r}))
layer(METHODS["gradcam"](classifier, np.zeros((256, 256), np.uint8)).values)
import pneumoscope.serving.web.server, pneumoscope.serving.analysis.worker, pneumoscope.serving.results.sr
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def by_loops(method: str, activation: Tensor, gradient: Tensor) -> Tensor:
    """Each method's equation, place by place: [h, w] from [C, h, w]."""
    total = torch.zeros(activation.shape[1:], dtype=torch.float64)
    for a, g in zip(activation.double(), gradient.double(), strict=True):
        if method == "hirescam":
            total += g * a
        elif method == "layercam":
            total += g.relu() * a
        else:
            weight = 0.0
            for gradient_here in g.flatten().tolist():
                below = 2 * gradient_here**2 + float(a.sum()) * gradient_here**3
                weight += (gradient_here**2 / below if below else 0.0) * max(gradient_here, 0.0)
            total += weight * a
    return total.relu()


@pytest.mark.parametrize("method", [gradcam_plus, hirescam, layercam], ids=["gradcam++", "hirescam", "layercam"])
@pytest.mark.parametrize("layer", [None, "stages.1"])
def test_the_others_are_those_of_their_equations(classifier: Classifier, method: Method, layer: str | None) -> None:
    canvas = noise(104, 2)
    network = classifier.bundle.network
    x = prepare(torch.from_numpy(canvas)[None], classifier.bundle.preparation)
    blocks = list(network.encoder.model.stages)
    split = len(blocks) if layer is None else 2
    for block in blocks[:split]:
        x = block(x)
    activation = x.detach().requires_grad_(True)
    rest = activation.clone()
    for block in blocks[split:]:
        rest = block(rest)
    score = pneumonia_score(network.head(rest.mean(dim=(2, 3))))
    (gradient,) = torch.autograd.grad(score.sum(), activation)
    heatmap = method(classifier, canvas, Options(layer=layer))
    expected = by_loops(heatmap.method, activation[0].detach(), gradient[0])
    assert expected.max() > 0
    grown = F.interpolate(expected[None, None].float(), (96, 96), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(heatmap.values, (grown / grown.max()).numpy(), atol=1e-4)
    assert heatmap.layer == ("encoder" if layer is None else f"encoder.model.{layer}")


@pytest.mark.parametrize(
    ("layer", "message"),
    [("layer9", "no layer 'layer9'.*or one of"), ("head.1", "head.1 has no spatial map"), ("", "no layer ''")],
)
def test_a_layer_that_cannot_be_drawn_is_an_error(classifier: Classifier, layer: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gradcam(classifier, noise(104), Options(layer=layer))


def test_a_layer_followed_by_one_that_works_in_place_is_explained_as_it_was(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    classifier = Classifier.load(make_bundle(tmp_path / "b", network="vgg11", size=64))
    features = classifier.bundle.network.encoder.model.features
    (index,) = (i for i, layer in enumerate(features) if i == 18)
    assert isinstance(features[index], nn.Conv2d)
    features[index + 1].inplace = True
    one = gradcam(classifier, noise(72), Options(layer=f"features.{index}"))
    features[index + 1].inplace = False
    other = gradcam(classifier, noise(72), Options(layer=f"features.{index}"))
    assert one.values.any()
    np.testing.assert_array_equal(one.values, other.values)


def test_for_two_classes_it_is_the_class_activation_map(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """With mean pooling and a linear head the weights are the head's own (Zhou et al. 2016): no gradient needed."""
    classifier = Classifier.load(make_bundle(tmp_path / "b", classes=2, size=96))
    canvas = noise(104, 3)
    network = classifier.bundle.network
    weight = network.head[1].weight[1] - network.head[1].weight[0]
    with torch.no_grad():
        x = prepare(torch.from_numpy(canvas)[None], classifier.bundle.preparation)
        cam = torch.einsum("c,chw->hw", weight, network.encoder(x)[0]).relu()
    grown = F.interpolate(cam[None, None], (96, 96), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(gradcam(classifier, canvas).values, (grown / grown.max()).numpy(), atol=1e-4)


# --- a network whose reason is known ----------------------------------------------------------------------


class Bright(nn.Module):
    """Sees how much of each 8 x 8 field is brighter than three quarters of white, and how dark it is."""

    num_features = 2

    def forward_features(self, x: Tensor) -> Tensor:
        light = x[:, :1]
        return torch.cat([F.avg_pool2d((light - 0.75).relu(), 8), F.avg_pool2d((0.25 - light).relu(), 8)], dim=1)

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        return features.mean(dim=(2, 3))


@pytest.fixture
def bright(hand_made: HandMade) -> Classifier:
    network = Network(Bright(), 2, 2, 0.0).eval()
    with torch.no_grad():
        network.head[1].weight.copy_(torch.tensor([[0.0, 0.0], [50.0, -50.0]]))
        network.head[1].bias.zero_()
    return hand_made(network, Preparation(64, 64, "squash", (0.0,) * 3, (1.0,) * 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(("top", "left"), [(8, 8), (40, 16), (16, 48)])
def test_it_points_at_the_one_bright_square(bright: Classifier, top: int, left: int) -> None:
    canvas = np.full((64, 64), 120, np.uint8)
    canvas[top : top + 8, left : left + 8] = 255
    heatmap = gradcam(bright, canvas)
    row, column = np.unravel_index(heatmap.values.argmax(), heatmap.values.shape)
    assert top <= row < top + 8
    assert left <= column < left + 8
    inside = np.zeros((64, 64), bool)
    inside[max(0, top - 8) : top + 16, max(0, left - 8) : left + 16] = True  # a cell of the map to each side
    assert heatmap.values[~inside].max() == 0
    assert heatmap.verdict == "not tested"


def test_where_nothing_speaks_for_pneumonia_the_map_is_blank(bright: Classifier) -> None:
    canvas = np.full((64, 64), 120, np.uint8)
    canvas[8:16, 8:16] = 0  # what speaks against it is not shown as if it spoke for it
    heatmap = gradcam(bright, canvas)
    assert heatmap.verdict == "blank"
    assert heatmap.reason
    assert not heatmap.values.any()
    assert heatmap.signed is not None
    assert heatmap.signed.min() == heatmap.signed[12, 12] < 0, "but kept as what it is"


def test_brightness_counts_by_its_amount(bright: Classifier) -> None:
    canvas = np.full((64, 64), 120, np.uint8)
    canvas[8:16, 8:16], canvas[40:48, 40:48] = 255, 223
    values = gradcam(bright, canvas).values
    expected = (223 / 255 - 0.75) / 0.25
    assert values[43:45, 43:45].mean() / values[11:13, 11:13].mean() == pytest.approx(expected, abs=0.02)


class ChannelsLast(Bright):
    """The same with the channels at the end, as Swin transformers have them."""

    output_fmt = "NHWC"

    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x).permute(0, 2, 3, 1)

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        return features.mean(dim=(1, 2))


def test_channels_at_the_end_give_the_same_map(bright: Classifier, hand_made: HandMade) -> None:
    network = Network(ChannelsLast(), 2, 2, 0.0).eval()
    network.head.load_state_dict(bright.bundle.network.head.state_dict())
    canvas = noise(64, 4)
    expected = gradcam(bright, canvas).values
    assert 0 < expected.mean() < 1
    found = gradcam(hand_made(network, bright.bundle.preparation), canvas).values
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_transformer_is_explained_where_its_places_still_reach_the_answer(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """The last tokens but the class token do not: their gradient is nothing, whatever the image shows."""
    classifier = Classifier.load(make_bundle(tmp_path / "b", network="vit_tiny_patch16_224", size=224))
    network, canvas = classifier.bundle.network, noise(232, 1)
    model = network.encoder.model
    x = prepare(torch.from_numpy(canvas)[None], classifier.bundle.preparation)
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for block in model.blocks[:-1]:
        tokens = block(tokens)
    last = model.blocks[-1]
    entry = last.norm1(tokens).detach().requires_grad_(True)
    after = tokens + last.drop_path1(last.ls1(last.attn(entry)))
    after = after + last.drop_path2(last.ls2(last.mlp(last.norm2(after))))
    score = pneumonia_score(network.head(model.norm(after)[:, 0]))
    torch.testing.assert_close(score, pneumonia_score(network(x)))
    (gradient,) = torch.autograd.grad(score.sum(), entry)
    cam = (gradient[0, 1:].mean(dim=0) * entry[0, 1:]).sum(dim=1).relu().reshape(14, 14).detach()
    heatmap = gradcam(classifier, canvas)
    assert heatmap.layer == "encoder.model.blocks.11.norm1"
    assert cam.max() > 0
    grown = F.interpolate(cam[None, None], (224, 224), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(heatmap.values, (grown / grown.max()).numpy(), atol=1e-4)


class Placeless(Bright):
    """Hands on 6 tokens, which lie on no square."""

    def forward_features(self, x: Tensor) -> Tensor:
        return x[:, :2, 0, :6].transpose(1, 2)

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        return features.mean(dim=1)


def test_a_network_without_places_is_an_error(hand_made: HandMade) -> None:
    network = Network(Placeless(), 2, 2, 0.0).eval()
    preparation = Preparation(64, 64, "squash", (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no spatial map"):
        gradcam(hand_made(network, preparation), noise(64))


def test_a_mirrored_answer_has_a_mirrored_map(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    classifier = Classifier.load(make_bundle(tmp_path / "bundle", mirror=True))
    canvas = noise(40)
    one, other = gradcam(classifier, canvas), gradcam(classifier, np.ascontiguousarray(canvas[:, ::-1]))
    assert one.values.max() == 1
    np.testing.assert_allclose(one.values, other.values[:, ::-1], atol=1e-4)
