"""The loss against independent oracles, mixing, and the score that chooses the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.config import TrainConfig
from pneumoscope.errors import ConfigError, TrainingError
from pneumoscope.networks.network import build_network, pneumonia_score
from pneumoscope.training.module import Classifier, evidence_map, outside, set_loss


def logits_of(seed: int, classes: int, batch: int = 8) -> Tensor:
    return 4 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.sampled_from([2, 3]), smoothing=st.sampled_from([0.0, 0.05, 0.3]))
def test_with_one_class_it_is_cross_entropy(seed: int, classes: int, smoothing: float) -> None:
    logits = logits_of(seed, classes)
    true = torch.arange(len(logits)) % classes
    expected = F.cross_entropy(logits, true, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(set_loss(logits, F.one_hot(true, classes).bool(), smoothing), expected)


def test_unknown_subtype_counts_the_sum_of_both_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    p = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
    allowed = torch.tensor([[False, True, True]])
    assert set_loss(logits, allowed, 0.0).item() == pytest.approx(-math.log(p[1] + p[2]), rel=1e-6)
    smoothed = 0.9 * -math.log(p[1] + p[2]) + 0.1 * -np.log(p).mean()
    assert set_loss(logits, allowed, 0.1).item() == pytest.approx(smoothed, rel=1e-6)


def test_the_gradient_of_an_unknown_subtype_keeps_their_ratio() -> None:
    """-d/dz of log(p1 + p2) is p - q with q the ratio among the allowed: what is not known is not taught."""
    logits = torch.tensor([[0.3, -1.0, 0.8]], requires_grad=True)
    set_loss(logits, torch.tensor([[False, True, True]]), 0.0).sum().backward()
    p = special.softmax(logits.detach().numpy()[0])
    q = np.array([0, p[1], p[2]]) / (p[1] + p[2])
    np.testing.assert_allclose(logits.grad.numpy()[0], p - q, atol=1e-6)  # type: ignore[union-attr]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.sampled_from([2, 3]), smoothing=st.sampled_from([0.0, 0.1]))
def test_a_distribution_is_met_by_cross_entropy(seed: int, classes: int, smoothing: float) -> None:
    logits, target = logits_of(seed, classes), logits_of(seed + 1, classes).softmax(dim=1)
    expected = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(set_loss(logits, target, smoothing), expected)


def test_rows_of_both_kinds_share_a_batch_and_their_gradients_are_finite() -> None:
    logits = torch.tensor([[0.5, 0.1, -0.3], [0.3, -1.0, 0.8]], requires_grad=True)
    target = torch.tensor([[0.4, 0.3, 0.3], [0.0, 1.0, 1.0]])  # no entry of the first reaches one half
    set_loss(logits, target, 0.0).sum().backward()
    p = special.softmax(logits.detach().numpy(), axis=1)
    q = np.array([0, p[1, 1], p[1, 2]]) / (p[1, 1] + p[1, 2])
    np.testing.assert_allclose(logits.grad.numpy(), [p[0] - target[0].numpy(), p[1] - q], atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("target", [[[False, True, True]], [[1.0, 0.0, 0.0]]])
def test_extreme_logits_stay_finite(target: list[list[float]]) -> None:
    logits = torch.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    loss = set_loss(logits, torch.tensor(target), 0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_score_is_the_log_odds_of_pneumonia(classes: int) -> None:
    logits = logits_of(3, classes)
    p = special.softmax(logits.double().numpy(), axis=1)[:, 1:].sum(axis=1)
    np.testing.assert_allclose(pneumonia_score(logits).numpy(), special.logit(p), rtol=1e-4, atol=1e-5)


# --- one step ---------------------------------------------------------------------------------------------


def module(**config: Any) -> Classifier:
    torch.manual_seed(0)
    made = Classifier(nn.Linear(4, 3), [], TrainConfig(classes=3, **config), epochs=1, seed=0)
    made.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return made


def batch(bad: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    if bad is not None:
        x[1, 1] = bad
    allowed = F.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3).bool()
    allowed[4] = torch.tensor([False, True, True])
    return x, allowed, torch.tensor([1.0, 0.5, 0.5, 1.0, 2.0, 1.0])


def test_the_step_is_the_weighted_mean() -> None:
    made, (x, allowed, weights) = module(label_smoothing=0.1), batch()
    expected = (set_loss(made(x), allowed, 0.1) * weights).mean()
    torch.testing.assert_close(made.training_step((x, allowed, weights), 0), expected)


def test_mixup_mixes_images_and_losses_by_one_ratio() -> None:
    made, (x, allowed, weights) = module(mixup=0.4), batch()
    torch.manual_seed(9)
    ratio = torch.distributions.Beta(0.4, 0.4).sample().item()
    other = torch.randperm(6)
    assert 0 < ratio < 1
    logits = made(ratio * x + (1 - ratio) * x[other])
    own = F.nll_loss(logits.log_softmax(1)[[0, 1, 2, 3, 5]], torch.tensor([0, 1, 2, 0, 2]), reduction="none")
    per_image = set_loss(logits, allowed, 0.0)
    torch.testing.assert_close(per_image[[0, 1, 2, 3, 5]], own)
    expected = (
        ratio * per_image * weights + (1 - ratio) * set_loss(logits, allowed[other], 0.0) * weights[other]
    ).mean()
    torch.manual_seed(9)
    torch.testing.assert_close(made.training_step((x, allowed, weights), 0), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_says_where(bad: float) -> None:
    with pytest.raises(TrainingError, match=r"in epoch 0, step 17, because the input") as caught:
        module().training_step(batch(bad), 17)
    assert "lower train.rate" in str(caught.value)


def test_a_network_that_explodes_is_blamed_without_the_input() -> None:
    made = module()
    with torch.no_grad():
        made.network.weight.fill_(math.nan)  # type: ignore[operator, union-attr]
    with pytest.raises(TrainingError, match="the loss became nan") as caught:
        made.training_step(batch(), 0)
    assert "because the input" not in str(caught.value)


def test_dropout_and_mixup_depend_on_seed_epoch_step_and_rank() -> None:
    def draws(seed: int, epoch: int, step: int, rank: int) -> list[float]:
        made = Classifier(nn.Linear(1, 2), [], TrainConfig(), epochs=3, seed=seed)
        made._trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)  # type: ignore[assignment]
        made.on_train_batch_start(None, step)
        return torch.rand(3).tolist()

    assert draws(1, 2, 3, 0) == draws(1, 2, 3, 0)
    others = [draws(2, 2, 3, 0), draws(1, 3, 3, 0), draws(1, 2, 4, 0), draws(1, 2, 3, 1)]
    assert draws(1, 2, 3, 0) not in others


# --- schedule ---------------------------------------------------------------------------------------------


def schedule(epochs: int, per_epoch: int, warmup: float) -> Callable[[int], float]:
    network = nn.Linear(2, 2)
    groups = [{"params": list(network.parameters()), "lr": 1.0, "weight_decay": 0.0}]
    made = Classifier(network, groups, TrainConfig(warmup=warmup), epochs=epochs, seed=0)
    made._trainer = SimpleNamespace(estimated_stepping_batches=epochs * per_epoch, max_epochs=epochs)  # type: ignore[assignment]
    factor: Callable[[int], float] = made.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    return factor


def test_the_rate_warms_up_then_falls_as_a_cosine_to_a_hundredth() -> None:
    factor = schedule(epochs=10, per_epoch=20, warmup=0.1)
    rates = [factor(step) for step in range(201)]
    assert rates[:3] == pytest.approx([1 / 20, 2 / 20, 3 / 20])
    assert rates[19] == rates[20] == pytest.approx(1)
    assert all(a > b for a, b in pairwise(rates[20:]))
    assert rates[110] == pytest.approx(0.01 + 0.99 / 2)  # half way down
    assert rates[200] == pytest.approx(0.01)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert schedule(epochs=2, per_epoch=5, warmup=0.0)(0) == 1


# --- where the evidence lies ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["custom-cnn", "resnet18", "vgg11", "tf_efficientnet_lite0"])
def test_the_evidence_of_a_place_is_gradient_times_activation(name: str) -> None:
    torch.manual_seed(1)
    network = build_network(name, classes=3)[0].eval()
    images = torch.randn(2, 3, 64, 64)
    logits, evidence = evidence_map(network, images)
    torch.testing.assert_close(logits, network(images))
    last = network.encoder(images).detach().requires_grad_(True)
    score = pneumonia_score(network.head(last.mean(dim=(2, 3)))).sum()
    (gradient,) = torch.autograd.grad(score, last)
    expected = (gradient * last).sum(dim=1) * last.shape[2] * last.shape[3]
    torch.testing.assert_close(evidence, expected, rtol=1e-3, atol=1e-4)


def test_evidence_has_no_place_where_the_answer_is_not_linear_in_the_map() -> None:
    bent = build_network("custom-cnn", classes=2)[0]
    bent.head = nn.Sequential(nn.Linear(bent.features, 4), nn.ReLU(), nn.Linear(4, 2))
    for network in (nn.Linear(3, 2), bent):
        with pytest.raises(ConfigError, match=r"train\.attention"):
            evidence_map(network, torch.randn(1, 3, 64, 64))


def test_the_share_outside_counts_evidence_of_either_sign() -> None:
    lungs = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    lungs[:3, :, :, :16] = 255
    evidence = torch.zeros(4, 8, 8)
    evidence[0, :, :2] = 1.0
    evidence[1, :, 6:] = -2.0
    evidence[2, :, :2], evidence[2, :, 6:] = -1.0, 1.0
    evidence[3] = 1.0  # no lung in sight
    found = outside(evidence, lungs)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 0.5, 0.0]))
    assert torch.isfinite(outside(torch.zeros(1, 8, 8), lungs[:1])).all()


def test_training_moves_the_evidence_into_the_lungs() -> None:
    images = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    lungs = torch.zeros(8, 1, 96, 96, dtype=torch.uint8)
    lungs[..., :48] = 255
    batch = (images, F.one_hot(torch.arange(8) % 2, 2).bool(), torch.ones(8), lungs)

    def share_after(attention: float) -> float:
        torch.manual_seed(0)
        network = build_network("custom-cnn", classes=2)[0].train()
        module = Classifier(network, [], TrainConfig(attention=attention), epochs=1, seed=0)
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        for _ in range(15):
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
        return float(outside(evidence_map(network, images)[1], lungs).mean().detach())

    assert share_after(2.0) < share_after(0.0) - 0.1
