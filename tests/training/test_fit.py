"""One phase of training: repeatable, interruptible anywhere, and the best epoch is what remains."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from tests.support import fresh
from torch import Tensor, nn

from pneumoscope.config import TrainConfig
from pneumoscope.errors import ConfigError, TrainingError
from pneumoscope.networks.network import Network, build_network, freeze, frozen_modules, pneumonia_score
from pneumoscope.training.dataset import FeatureDataset
from pneumoscope.training.fit import Hardware, Phase, fit
from pneumoscope.training.kept import Row, kept_row

TRAIN, VAL, WIDTH = 64, 21, 6
MIDDLE = 2 * TRAIN + TRAIN // 2  # images until half way through the third epoch
Action = Callable[[], None]
CPU = Hardware(accelerator="cpu")


def features(n: int, seed: int) -> FeatureDataset:
    """Two overlapping clouds, so that no epoch is perfect."""
    generator = torch.Generator().manual_seed(seed)
    sick = torch.arange(n) % 3 > 0
    x = torch.randn(n, WIDTH, generator=generator) + 0.4 * sick[:, None]
    return FeatureDataset(x, torch.stack([~sick, sick], 1).numpy(), np.ones(n))


def head(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(WIDTH, 2))


def train(
    run: Path,
    *,
    network: nn.Module | None = None,
    images: Any = None,
    val: Any = None,
    seed: int = 0,
    epochs: int = 4,
    resume: bool = False,
    still: Any = (),
    **config: Any,
) -> tuple[list[Row], dict[str, Tensor]]:
    network = network or head()
    free = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [{"params": free, "lr": config.pop("rate", 0.02), "weight_decay": 0.01}]
    phase = Phase("head", epochs, images or features(TRAIN, 1), val or features(VAL, 2))
    settings = TrainConfig(batch_size=16, **config)
    rows = fit((network, groups, still), phase, settings, run, seed=seed, hardware=CPU, resume=resume)
    return rows, {key: value.clone() for key, value in network.state_dict().items()}


def figures(rows: list[Row]) -> list[Row]:
    """The rows without what a clock says."""
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def signals() -> Iterator[None]:
    """Lightning ignores SIGINT after the first; the tests after this one should not."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# --- what comes out ---------------------------------------------------------------------------------------


def test_one_seed_twice_is_the_same_run_and_another_is_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mixup": 0.3, "label_smoothing": 0.1}
    rows, weights = train(tmp_path / "a", **options)
    again, weights_again = train(tmp_path / "b", **options)
    assert figures(rows) == figures(again)
    assert same(weights, weights_again)
    other, weights_other = train(tmp_path / "c", seed=1, **options)
    assert figures(rows) != figures(other)
    assert not same(weights, weights_other)


def test_the_best_epoch_remains_and_its_figures_are_true(tmp_path: Path) -> None:
    network = head()
    rows, _ = train(tmp_path, network=network, epochs=6, rate=0.3)
    best = kept_row(rows)
    assert rows[-1]["val_auroc"] != best["val_auroc"], "the last epoch must not be the best for this test"
    val = features(VAL, 2)
    network.eval()
    with torch.no_grad():
        score = pneumonia_score(network(val.features)).numpy()
    truth = val.allowed[:, 1].numpy()
    assert roc_auc_score(truth, score) == pytest.approx(best["val_auroc"])
    assert accuracy_score(truth, score >= 0) == pytest.approx(best["val_accuracy"])
    assert [row["epoch"] for row in rows] == list(range(1, 7))
    assert {row["phase"] for row in rows} == {"head"}


def test_validation_loss_is_cross_entropy_of_the_best_weights(tmp_path: Path) -> None:
    network = head()
    rows, _ = train(tmp_path, network=network, epochs=1)
    val = features(VAL, 2)
    network.eval()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(network(val.features), val.allowed[:, 1].long())
    assert rows[0]["val_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_of_equal_epochs_the_one_with_the_lowest_loss_is_kept(tmp_path: Path) -> None:
    flat = features(VAL, 2)
    flat.features = torch.zeros_like(flat.features)
    rows, _ = train(tmp_path, val=flat)
    assert {row["val_auroc"] for row in rows} == {0.5}
    lowest = int(np.argmin([float(row["val_loss"]) for row in rows]))
    assert torch.load(tmp_path / "checkpoints" / "head" / "best.ckpt", weights_only=True)["epoch"] == lowest
    assert torch.load(tmp_path / "checkpoints" / "head" / "last.ckpt", weights_only=True)["epoch"] == 3


class Recording(nn.Linear):
    """Remembers its weights at each training step."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(self.weight.detach().clone())
        return super().forward(x)


def test_the_moving_average_is_that_of_its_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.training.fit.kept_row", lambda rows: rows[0])
    torch.manual_seed(0)
    network, flat = Recording(), features(VAL, 2)
    flat.features = torch.zeros_like(flat.features)
    train(tmp_path, network=network, val=flat, epochs=2, ema=0.3)
    _, *after = network.seen[:5]  # weights after steps 1 to 4 of the first epoch
    mean = after[0]
    for count, current in enumerate(after[1:], start=1):
        rate = min(0.3, (1 + count) / (10 + count))
        mean = rate * mean + (1 - rate) * current
    torch.testing.assert_close(network.weight.detach(), mean)
    assert not torch.equal(mean, after[-1])


def test_statistics_of_frozen_stages_stay_through_training_and_validation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, _ = build_network("custom-cnn", classes=2)
    freeze(network, 1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    images = FeatureDataset(
        torch.randn(32, 3, 32, 32, generator=generator), features(32, 1).allowed.numpy(), np.ones(32)
    )
    train(
        tmp_path, network=network, images=images, val=images, epochs=3, still=frozen_modules(network, batchnorm=False)
    )
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.split(".refine")[0].split(".reduce")[0] for key in changed} == {
        "encoder.model.stages.4", "head.1.weight", "head.1.bias",
    }  # fmt: skip
    assert any("running_mean" in key for key in changed)


def test_a_loss_that_is_not_finite_stops_with_the_place(tmp_path: Path) -> None:
    poisoned = features(TRAIN, 1)
    poisoned.features[40, 2] = math.nan
    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 0, step \d, because the input"):
        train(tmp_path, images=poisoned)


def test_hardware_that_is_not_here_is_an_error_of_one_line(tmp_path: Path) -> None:
    """A machine with 64 accelerators will have to ask for more."""
    phase, network = Phase("head", 1, features(TRAIN, 1), features(VAL, 2)), head()
    groups = [{"params": list(network.parameters()), "lr": 0.01, "weight_decay": 0.0}]
    asked = Hardware(accelerator="cuda", devices=64)
    with pytest.raises(ConfigError, match="fewer --devices") as caught:
        fit((network, groups, ()), phase, TrainConfig(), tmp_path, seed=0, hardware=asked, resume=False)
    assert "\n" not in str(caught.value)


# --- interruptions ----------------------------------------------------------------------------------------


class Breaking(FeatureDataset):
    """Does something when the n-th item is read."""

    def __init__(self, at: int, action: Callable[[], None]) -> None:
        whole = features(TRAIN, 1)
        super().__init__(whole.features, whole.allowed.numpy(), np.ones(TRAIN))
        self.left, self.action = at, action

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        self.left -= 1
        if self.left == 0:
            self.action()
        return super().__getitem__(key)


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt_here(run: Path, action: Action, options: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="--resume"):
        train(run, images=Breaking(MIDDLE, action), **options)


def interrupt_elsewhere(run: Path, action: Action, options: dict[str, Any]) -> None:
    """In a process of its own: a signal concerns all that a process has ever loaded."""
    here, name = Path(__file__).parent, Path(__file__).stem
    interrupt = f"interrupt_here(Path({str(run)!r}), {action.__name__}, {options!r})"
    done = fresh.run(f"import sys; sys.path.insert(0, {str(here)!r}); from {name} import *; {interrupt}")
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(("where", "action"), [(interrupt_here, press_ctrl_c), (interrupt_elsewhere, terminate)])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_interrupted_epoch_is_repeated_as_if_nothing_had_happened(
    tmp_path: Path, where: Callable[[Path, Action, dict[str, Any]], None], action: Action, ema: float
) -> None:
    options: dict[str, Any] = {"epochs": 4, "ema": ema, "mixup": 0.3}
    rows, weights = train(tmp_path / "unbroken", **options)
    where(tmp_path / "broken", action, options)
    kept = torch.load(tmp_path / "broken" / "checkpoints" / "head" / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 1, "the checkpoint must be that of the second epoch"
    resumed, weights_resumed = train(tmp_path / "broken", resume=True, **options)
    assert figures(resumed) == figures(rows)
    assert same(weights_resumed, weights)


@pytest.mark.usefixtures("signals")
def test_interrupted_in_the_first_epoch_it_starts_over(tmp_path: Path) -> None:
    rows, weights = train(tmp_path / "unbroken")
    with pytest.raises(TrainingError, match="--resume"):
        train(tmp_path / "broken", images=Breaking(5, press_ctrl_c))
    resumed, weights_resumed = train(tmp_path / "broken", resume=True)
    assert figures(resumed) == figures(rows)
    assert same(weights_resumed, weights)


def test_killed_between_the_last_checkpoint_and_the_end_nothing_is_trained_again(tmp_path: Path) -> None:
    rows, weights = train(tmp_path, ema=0.9)
    (tmp_path / "checkpoints" / "head" / "done.json").unlink()
    resumed, weights_resumed = train(tmp_path, ema=0.9, resume=True, images=Breaking(1, press_ctrl_c))
    assert resumed == rows  # to the second: no epoch was run
    assert same(weights_resumed, weights)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_killed_after_it_had_stopped_early_it_stays_stopped(tmp_path: Path, ema: float) -> None:
    options: dict[str, Any] = {"epochs": 12, "patience": 2, "rate": 1e-9, "ema": ema}
    rows, weights = train(tmp_path, **options)
    assert len(rows) == 3, "with nothing learned, two epochs of patience end it"
    (tmp_path / "checkpoints" / "head" / "done.json").unlink()
    resumed, weights_resumed = train(tmp_path, resume=True, images=Breaking(1, press_ctrl_c), **options)
    assert resumed == rows
    assert same(weights_resumed, weights)


@pytest.mark.usefixtures("signals")
def test_a_run_folder_may_be_moved_before_it_goes_on(tmp_path: Path) -> None:
    """The best epoch so far is known by its score, wherever its file lies now."""
    options: dict[str, Any] = {"epochs": 6, "rate": 0.3}
    rows, weights = train(tmp_path / "unbroken", **options)
    best = rows.index(kept_row(rows))
    assert best < 5, "the best epoch must lie before the interruption for this test"
    with pytest.raises(TrainingError):
        train(tmp_path / "here", images=Breaking((best + 1) * TRAIN + 9, press_ctrl_c), **options)
    (tmp_path / "here").rename(tmp_path / "there")
    resumed, weights_resumed = train(tmp_path / "there", resume=True, **options)
    assert figures(resumed) == figures(rows)
    assert same(weights_resumed, weights)
    assert not (tmp_path / "here").exists()


def test_a_finished_phase_is_taken_as_it_is(tmp_path: Path) -> None:
    rows, weights = train(tmp_path)
    resumed, weights_resumed = train(tmp_path, resume=True, images=Breaking(1, press_ctrl_c))
    assert resumed == rows
    assert same(weights_resumed, weights)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path, damage: bytes) -> None:
    last = tmp_path / "checkpoints" / "head" / "last.ckpt"
    train(tmp_path)
    (last.parent / "done.json").unlink()
    last.write_bytes(damage)
    with pytest.raises(TrainingError, match=r"last\.ckpt: the checkpoint is damaged; remove the folder"):
        train(tmp_path, resume=True)


def test_a_network_is_left_on_its_own_when_nothing_is_resumed(tmp_path: Path) -> None:
    """A phase that finished elsewhere in the folder is not taken without being asked for."""
    rows, _ = train(tmp_path)
    other, _ = train(tmp_path, seed=5)
    assert figures(other) != figures(rows)


def test_the_report_is_called_once_per_epoch(tmp_path: Path) -> None:
    told: list[Row] = []
    network: Network | nn.Module = head()
    phase = Phase("head", 3, features(TRAIN, 1), features(VAL, 2))
    groups = [{"params": list(network.parameters()), "lr": 0.01, "weight_decay": 0.0}]
    rows = fit(
        (network, groups, ()), phase, TrainConfig(batch_size=16), tmp_path,
        seed=0, hardware=CPU, resume=False, report=told.append,
    )  # fmt: skip
    assert told == rows
    assert len(rows) == 3
