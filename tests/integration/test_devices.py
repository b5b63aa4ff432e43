"""Two processes train what one trains, where nothing depends on the size of the local batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.config import Experiment, TrainConfig, save_experiment
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import ConfigError, TrainingError
from pneumoscope.training.dataset import FeatureDataset
from pneumoscope.training.experiment import run_experiment
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
def test_two_machines_give_the_losses_of_one_and_one_of_them_writes(
    chests: Path, chest_manifest: Manifest, small_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    """Two launchers on the loopback device stand for two machines; the head is trained by the first alone."""
    experiment = small_experiment(
        data={"seed": 1},
        prepare={"size": 64, "canvas": 64},
        model={
            "network": "tf_efficientnet_lite0", "weights": "offline", "strategy": "finetune", "freeze_batchnorm": True
        },
        augment={"flip": 0.5},
        train={"epochs": 2, "head_epochs": 2, "rate": 3e-4},
    )  # fmt: skip
    run_experiment(experiment, chest_manifest, tmp_path / "one", name="one", hardware=Hardware(accelerator="cpu"))
    save_experiment(experiment, tmp_path / "small.toml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    machines = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                "--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port),
                "-m", "pneumoscope", "train", str(tmp_path / "small.toml"),
                "--data", str(chests), "--out", str(tmp_path / "two"), "--nodes", "2",
            ],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [machine.communicate(timeout=240) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert [out for out, _ in said] == [f"{tmp_path / 'two' / 'bundle'}\n", ""], "the first alone answers"
    one, two = (pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "two"))
    assert one["phase"].tolist() == two["phase"].tolist() == ["head", "head", "finetune", "finetune"]
    for column in ("train_loss", "val_loss", "val_auroc"):
        assert one[column].tolist() == pytest.approx(two[column].tolist(), abs=2e-3), column
    tensors = [load_bundle(tmp_path / name / "bundle").network.state_dict() for name in ("one", "two")]
    for key, value in tensors[0].items():
        torch.testing.assert_close(value.float(), tensors[1][key].float(), rtol=0, atol=2e-3, msg=key)


def test_hardware_that_no_launcher_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Hardware.here(2, 1) == Hardware(2, 1, rank=0)
    with pytest.raises(ConfigError, match="need a launcher"):
        Hardware.here(1, 2)
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "4"), ("RANK", "3")):
        monkeypatch.setenv(name, value)
    assert Hardware.here(2, 2).rank == 3
    with pytest.raises(ConfigError, match="torchrun started 4 processes, not 1 on each of 2"):
        Hardware.here(1, 2)


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
