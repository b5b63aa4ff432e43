"""Features of a frozen encoder: computed once, under a key that knows the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumoscope.data.cache import PixelCache, open_cache
from pneumoscope.data.manifest import Manifest
from pneumoscope.images.preparation import Preparation
from pneumoscope.networks.network import Network, build_network
from pneumoscope.networks.transforms import prepare
from pneumoscope.training.features import encode, predict_logits

CPU = torch.device("cpu")
PREPARATION = Preparation(32, 40, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def cache(chest_manifest: Manifest, tmp_path: Path) -> PixelCache:
    return open_cache(chest_manifest.samples, canvas=40, aspect="squash", root=tmp_path)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return build_network("custom-cnn", classes=3)[0]


def files(cache: PixelCache) -> list[Path]:
    return sorted((cache.folder.parent / "features").glob("*.npy"))


def test_features_are_the_pooled_map_of_every_row(cache: PixelCache, network: Network) -> None:
    network.train()  # left in training mode by somebody: features are made in eval mode all the same
    steps: list[tuple[int, int]] = []
    features = encode(network, cache, PREPARATION, device=CPU, progress=lambda done, total: steps.append((done, total)))
    rows = len(cache.pixels)
    assert features.shape == (rows, network.features)
    assert steps[-1] == (rows, rows)
    network.eval()
    for row in (0, rows - 1):
        with torch.no_grad():
            alone = network.embed(prepare(torch.from_numpy(np.array(cache.pixels[row]))[None], PREPARATION))
        torch.testing.assert_close(features[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    head = torch.nn.Linear(network.features, 2)
    head(features).sum().backward()  # fit for training: no inference tensors
    assert head.weight.grad is not None


def test_the_second_time_nothing_is_computed(
    cache: PixelCache, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode(network, cache, PREPARATION, device=CPU)

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the encoder was run again")

    monkeypatch.setattr(network, "embed", fail)
    assert torch.equal(encode(network, cache, PREPARATION, device=CPU), first)
    assert len(files(cache)) == 1


@pytest.mark.parametrize("what", ["weight", "statistic", "preparation", "one bit"])
def test_what_changes_the_features_changes_the_key(cache: PixelCache, network: Network, what: str) -> None:
    first, preparation = encode(network, cache, PREPARATION, device=CPU), PREPARATION
    state = network.encoder.state_dict()
    if what == "weight":
        state["model.stages.0.reduce.0.weight"].mul_(1.5)
    elif what == "statistic":
        state["model.stages.2.reduce.1.running_mean"].add_(0.5)
    elif what == "one bit":
        value = state["model.stages.0.reduce.0.weight"]
        value.view(torch.int32)[0, 0, 0, 0] ^= 1
    else:
        preparation = replace(PREPARATION, mean=(0.4, 0.5, 0.5))
    second = encode(network, cache, preparation, device=CPU)
    assert len(files(cache)) == 2
    if what != "one bit":
        assert not torch.allclose(first, second)


def test_the_head_does_not_change_the_key(cache: PixelCache, network: Network) -> None:
    first = encode(network, cache, PREPARATION, device=CPU)
    with torch.no_grad():
        network.head[1].weight.zero_()
    assert torch.equal(encode(network, cache, PREPARATION, device=CPU), first)
    assert len(files(cache)) == 1


def test_other_images_have_another_key(
    cache: PixelCache, network: Network, chest_manifest: Manifest, tmp_path: Path
) -> None:
    encode(network, cache, PREPARATION, device=CPU)
    fewer = open_cache(chest_manifest.samples[:10], canvas=40, aspect="squash", root=tmp_path)
    assert len(encode(network, fewer, PREPARATION, device=CPU)) == len(fewer.pixels) < len(cache.pixels)


def test_logits_of_chosen_rows_in_their_order(cache: PixelCache, network: Network) -> None:
    rows = [7, 0, 41, 3, *range(8, 40)]  # more than one batch
    network.train()
    logits = predict_logits(network, cache, rows, PREPARATION, CPU)
    network.eval()
    compare: Callable[..., None] = torch.testing.assert_close
    with torch.no_grad():
        for position, row in enumerate(rows[:4]):
            alone = network(prepare(torch.from_numpy(np.array(cache.pixels[row]))[None], PREPARATION))
            compare(logits[position : position + 1], alone, rtol=1e-4, atol=1e-5)
    assert logits.shape == (len(rows), 3)
