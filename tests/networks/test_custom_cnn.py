"""The custom CNN: shapes, size and the residual path."""

from __future__ import annotations

import torch
from torch import nn

from pneumoscope.networks.custom_cnn import CustomCNN


def test_the_map_is_a_32nd_of_the_image_and_pooling_is_its_mean() -> None:
    model = CustomCNN().eval()
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model(x)
    assert features.shape == (2, model.num_features, 3, 2)
    torch.testing.assert_close(pooled, features.flatten(2).mean(2))
    assert (features >= 0).all()  # it ends in a ReLU, which Grad-CAM relies on for its sign


def test_it_has_the_parameters_that_its_docstring_claims() -> None:
    count = sum(parameter.numel() for parameter in CustomCNN().parameters())
    assert round(count / 1e6, 1) == 1.1, count


def test_a_block_adds_its_refinement_to_what_it_refines() -> None:
    block = CustomCNN().stages[1].eval()
    x = torch.randn(1, 24, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reduced = block.reduce(x)
        expected = torch.relu(reduced + block.refine(reduced))
        torch.testing.assert_close(block(x), expected)
        for layer in block.refine:
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.zero_()
                layer.bias.zero_()
        torch.testing.assert_close(block(x), reduced)  # nothing refined: the identity of a ReLU's output


def test_the_start_depends_on_the_seed_alone() -> None:
    def start(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in CustomCNN().parameters()])

    assert torch.equal(start(3), start(3))
    assert not torch.equal(start(3), start(4))
