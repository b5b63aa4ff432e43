"""Every network has one shape: encoder, pooling, head; stages to free, normalisation to hold still."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from pneumoscope.errors import ConfigError
from pneumoscope.networks.network import (
    IMAGENET_MEAN,
    Network,
    build_network,
    freeze,
    frozen_modules,
    require_size,
    stages,
)

# name -> side of the image in pixels, and the first and the last parameter from the image to the head
NETWORKS = {
    "custom-cnn": (64, "stages.0.reduce.0.weight", "stages.4.refine.1.bias"),
    "tf_efficientnet_lite0": (64, "conv_stem.weight", "bn2.bias"),
    "resnet18": (64, "conv1.weight", "layer4.1.bn2.bias"),
    "resnet20_mlnet": (64, "conv1.weight", "layer4.2.bn2.bias"),
    "vgg11": (64, "features.0.weight", "features.18.bias"),
    "vgg16": (64, "features.0.weight", "features.28.bias"),
    "mobilenetv3_small_100": (64, "conv_stem.weight", "conv_head.bias"),
    "densenet121": (64, "features.conv0.weight", "features.norm5.bias"),
    "convnext_atto": (64, "stem.0.weight", "head.norm.bias"),
    "convnext_tiny": (64, "stem.0.weight", "head.norm.bias"),
    "vit_tiny_patch16_224": (224, "cls_token", "norm.bias"),
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def named(request: pytest.FixtureRequest) -> tuple[str, Network]:
    torch.manual_seed(0)
    return request.param, build_network(request.param, classes=3)[0]


def image(name: str, batch: int = 2) -> torch.Tensor:
    size = NETWORKS[name][0]
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_head_over_pooled_features(named: tuple[str, Network]) -> None:
    name, network = named
    network.eval()
    x = image(name)
    with torch.no_grad():
        pooled = network.embed(x)
        logits = network(x)
    assert pooled.shape == (2, network.features)
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32
    weight, bias = network.head[1].weight, network.head[1].bias
    torch.testing.assert_close(logits, pooled @ weight.T + bias)
    assert not torch.equal(logits[0], logits[1]), "two different images must not be answered alike"


def test_stages_partition_the_encoder_in_order(named: tuple[str, Network]) -> None:
    name, network = named
    found = [parameter for stage in stages(network) for parameter in stage]
    encoder = [key for key, _ in network.named_parameters() if key.startswith("encoder.")]
    assert sorted(found) == sorted(encoder)
    assert len(set(found)) == len(found)
    ordered = stages(network)
    assert len(ordered) >= 5
    _, first, last = NETWORKS[name]
    assert f"encoder.model.{first}" in ordered[0]
    assert f"encoder.model.{last}" in ordered[-1]


@pytest.mark.parametrize("count", [0, 1, 2, 99, None])
def test_freeze_frees_exactly_the_last_stages_and_the_head(named: tuple[str, Network], count: int | None) -> None:
    _, network = named
    freeze(network, count)
    ordered = stages(network)
    last = {0: [], 1: ordered[-1:], 2: ordered[-2:], 99: ordered, None: ordered}[count]
    expected = {name for stage in last for name in stage} | {"head.1.weight", "head.1.bias"}
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == expected


def test_an_earlier_stage_feeds_a_later_one() -> None:
    """The gradient of stage k's output stops at the stages after it: freezing the first k really fixes features."""
    network, _ = build_network("resnet18", classes=2)
    model = network.encoder.model
    seen: list[str] = []
    hooks = [
        getattr(model, name).register_forward_hook(lambda *_, name=name: seen.append(name))
        for name in ("conv1", "layer1", "layer2", "layer3", "layer4")
    ]
    network(torch.zeros(2, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    ordered = stages(network)
    places = [next(i for i, stage in enumerate(ordered) if any(f".{name}." in p for p in stage)) for name in seen]
    assert all(a < b for a, b in pairwise(places))


def norms(network: Network) -> dict[str, nn.Module]:
    return {
        name: module for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }


@pytest.mark.parametrize("name", ["custom-cnn", "resnet18", "tf_efficientnet_lite0"])
def test_statistics_of_frozen_stages_do_not_move(name: str) -> None:
    network, _ = build_network(name, classes=2)
    freeze(network, 1)
    still = frozen_modules(network, batchnorm=False)
    network.train()
    for module in still:
        module.eval()
    before = {key: value.clone() for key, value in network.state_dict().items() if "running_" in key}
    with torch.no_grad():
        network(image(name))
    after = network.state_dict()
    free = {stage.rsplit(".", 1)[0] for stage in stages(network)[-1]}
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    expected = {key for key in before if key.rsplit(".", 1)[0] in free}
    assert expected, "the freed stage must hold batch norm for this test to mean anything"
    assert moved == expected


def test_all_norms_are_held_when_asked() -> None:
    network, _ = build_network("resnet18", classes=2)
    freeze(network, None)
    assert frozen_modules(network, batchnorm=False) == []
    assert frozen_modules(network, batchnorm=True) == list(norms(network).values())


def test_dropout_lies_before_the_classifier_only() -> None:
    network, _ = build_network("resnet18", classes=2, dropout=0.4)
    assert network.head[0].p == 0.4
    assert [m for m in network.encoder.modules() if isinstance(m, nn.Dropout) and m.p > 0] == []


def test_drop_path_reaches_the_blocks() -> None:
    network, _ = build_network("convnext_atto", classes=2, drop_path=0.2)
    rates = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["custom-cnn", "vgg11"])
def test_drop_path_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="drop_path"):
        build_network(name, classes=2, drop_path=0.1)


def test_mean_and_std_are_those_of_the_usual_weights() -> None:
    assert build_network("custom-cnn", classes=2)[1]["mean"] == IMAGENET_MEAN
    assert build_network("tf_efficientnet_lite0", classes=2)[1] == {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_an_unknown_name_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="resnet") as caught:
        build_network("resnet_18", classes=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="list_models"):
        build_network("qqqq", classes=2)


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 64), ("vgg11", 16)])
def test_a_size_that_a_network_cannot_take(name: str, size: int) -> None:
    network, _ = build_network(name, classes=2)
    with pytest.raises(ConfigError, match=rf"cannot take images of {size} px.*its usual size is 224"):
        require_size(network, name, size)
    require_size(network, name, 224)
