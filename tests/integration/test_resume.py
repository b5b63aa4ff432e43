"""Killed with SIGKILL at a random moment and resumed, training ends where it would have ended."""

from __future__ import annotations

import json
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tests.support.fresh import start

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.config import load_experiment
from pneumoscope.data.manifest import Manifest
from pneumoscope.networks.network import build_network
from pneumoscope.training.experiment import run_experiment

BASE = """
[data]
val_fraction = 0.2
[prepare]
size = 32
canvas = 40
[augment]
flip = 0.5
noise = 0.05
[train]
batch_size = 16
classes = 3
mixup = 0.2
"""
# name -> settings, the phase to be killed in, and after how many of its epochs at the earliest
VARIANTS = {
    "scratch": ("epochs = 14\n[model]\ndropout = 0.3\n", "scratch", 2),
    "moving-average": ('epochs = 14\nema = 0.9\nimbalance = "sampler"\n', "scratch", 3),
    "head": ('head_epochs = 40\nepochs = 2\n[model]\nstrategy = "finetune"\nweights = "w.safetensors"\n', "head", 2),
    "finetune": (
        'head_epochs = 2\nepochs = 14\nema = 0.9\n[model]\nstrategy = "finetune"\nweights = "w.safetensors"\n'
        "unfreeze = 2\ndropout = 0.3\n",
        "finetune",
        2,
    ),
}


@pytest.fixture(scope="module")
def killed(chests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one experiment file and one killed run per variant; the processes run side by side."""
    folder = tmp_path_factory.mktemp("killed")
    torch.manual_seed(0)
    weights = build_network("custom-cnn", classes=2)[0].encoder.model.state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "w.safetensors")
    # The same number of threads as here: sums are taken in their order.
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})"
    program = f"{threads}\nfrom pneumoscope.cli import main; main()"
    processes: dict[str, BaseProcess] = {}
    rng = random.Random(20)
    try:
        for name, (settings, _, _) in VARIANTS.items():
            experiment, printed = folder / f"{name}.toml", folder / f"{name}-printed"
            experiment.write_text(BASE + settings)
            printed.mkdir()
            processes[name] = start(
                printed, program, "train", str(experiment), "--data", str(chests), "--out", str(folder / name)
            )
        waiting = {name: rng.uniform(0, 0.2) for name in VARIANTS}
        due: dict[str, float] = {}
        deadline = time.monotonic() + 240
        while waiting or due:
            for name in list(waiting):
                _, phase, epochs = VARIANTS[name]
                assert processes[name].is_alive(), (folder / f"{name}-printed" / "stderr").read_text()
                if rows(folder / name / "checkpoints" / phase / "history.json") >= epochs:
                    due[name] = time.monotonic() + waiting.pop(name)
            for name in [name for name, moment in due.items() if moment <= time.monotonic()]:
                processes[name].kill()
                del due[name]
            assert time.monotonic() < deadline, f"no epochs from {sorted(waiting)}"
            time.sleep(0.002)
    finally:
        for process in processes.values():
            process.kill()
    for name, process in processes.items():
        process.join()
        assert process.exitcode == -signal.SIGKILL, (folder / f"{name}-printed" / "stderr").read_text()
    return folder


def rows(history: Path) -> int:
    return len(json.loads(history.read_text())) if history.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VARIANTS))
def test_killed_and_resumed_it_is_the_unbroken_run(
    killed: Path, name: str, chest_manifest: Manifest, tmp_path: Path
) -> None:
    experiment = load_experiment(killed / f"{name}.toml")
    assert not (killed / name / "bundle").exists(), "it must have been killed before its end"
    broken_off = rows(killed / name / "checkpoints" / VARIANTS[name][1] / "history.json")
    run_experiment(experiment, chest_manifest, killed / name, name=name, resume=True)
    run_experiment(experiment, chest_manifest, tmp_path, name=name)
    histories = [pd.read_csv(run / "history.csv") for run in (killed / name, tmp_path)]
    resumed, unbroken = (table.drop(columns=["seconds", "images_per_second"]) for table in histories)
    assert resumed.equals(unbroken)
    assert broken_off < len(unbroken[unbroken["phase"] == VARIANTS[name][1]])
    weights = [load_bundle(run / "bundle").network.state_dict() for run in (killed / name, tmp_path)]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    assert load_bundle(killed / name / "bundle").sha256 == load_bundle(tmp_path / "bundle").sha256
