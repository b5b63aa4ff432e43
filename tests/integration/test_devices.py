"""Two processes train what one trains, where nothing depends on the size of the local batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pneumoscope.bundle import load_bundle
from pneumoscope.config import Experiment, TrainConfig
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import TrainingError
from pneumoscope.experiment import run_experiment
from pneumoscope.training.dataset import FeatureDataset
from pneumoscope.training.fit import Hardware, Phase, fit


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_at_the_same_global_batch(
    chest_manifest: Manifest, small_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    """Batch norm in training mode would see half batches, dropout and mixup draw by process: all three are off."""
    experiment = small_experiment(
        data={"seed": 1},
        model={"freeze_batchnorm": True},
        augment={"flip": 0.5, "rotation": 8.0, "noise": 0.02},
        train={"epochs": 2, "ema": 0.9, "label_smoothing": 0.1, "rate": 3e-4},
    )
    histories, weights = [], []
    for devices in (1, 2):
        run = tmp_path / str(devices)
        hardware = Hardware(devices=devices, accelerator="cpu")
        run_experiment(experiment, chest_manifest, run, name="small", hardware=hardware)
        histories.append(pd.read_csv(run / "history.csv"))
        weights.append(load_bundle(run / "bundle").network.state_dict())
        split = pd.read_csv(run / "split.csv")["split"]
        assert (split == "val").sum() % 2 == 1, "an odd number shows that no image is left out"
    one, two = histories
    assert len(one) == len(two) == 2
    for column in ("train_loss", "val_loss", "val_auroc", "val_accuracy", "lr"):
        assert one[column].tolist() == pytest.approx(two[column].tolist(), abs=1e-4), column
    for key, value in weights[0].items():
        torch.testing.assert_close(value.float(), weights[1][key].float(), rtol=0, atol=2e-3, msg=key)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_of_two_processes_is_told_in_one_line(tmp_path: Path) -> None:
    """The message crosses the border of the process with the place of the fault."""
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    x[5] = torch.nan
    allowed = torch.stack([torch.arange(32) % 2 == 0, torch.arange(32) % 2 == 1], 1).numpy()
    images = FeatureDataset(x, allowed, np.ones(32))
    network = torch.nn.Linear(4, 2)
    groups = [{"params": list(network.parameters()), "lr": 0.01, "weight_decay": 0.0}]
    hardware = Hardware(devices=2, accelerator="cpu")
    with pytest.raises(TrainingError, match="the loss became nan in epoch 0, step") as caught:
        fit(
            (network, groups, ()), Phase("head", 1, images, images), TrainConfig(batch_size=8, workers=0), tmp_path,
            seed=0, hardware=hardware, resume=False,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
