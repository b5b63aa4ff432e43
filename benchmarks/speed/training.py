"""Images per second of fine-tuning, against a plain torchvision and timm script on the same files, in one run.

    python benchmarks/speed/training.py ../shared/data/kermany224 --images 600

The plain script is what a notebook would have: ImageFolder, torchvision's random transforms, a DataLoader, a timm
network, AdamW, a loop. Ours is `run_experiment` with configs/lite0-finetuned.toml for one epoch at 224 px; its images
per second are those of the epoch's steps. They take turns; medians over rounds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pneumoscope.config import DataConfig, load_experiment
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.training.experiment import run_experiment

CONFIG = Path(__file__).parents[2] / "configs" / "lite0-finetuned.toml"
SIZE, BATCH = 224, 32


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with train/NORMAL and train/PNEUMONIA")
    parser.add_argument("--images", type=int, default=600, help="to train on, half of each class")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    manifest = evenly(open_source(arguments.source), arguments.images)
    plain: dict[int, list[float]] = {0: [], 2: []}
    ours = []
    for _ in range(arguments.rounds):
        for workers, speeds in plain.items():
            speeds.append(plain_speed(arguments.source / "train", arguments.images, workers))
        ours.append(our_speed(manifest))
    base = statistics.median(plain[0])
    print(f"\nEfficientNet-Lite0, {SIZE} px, batches of {BATCH}, {torch.get_num_threads()} threads\n")
    print("| script | images/s | ratio |\n|---|---|---|")
    for workers, speeds in plain.items():
        found = statistics.median(speeds)
        print(f"| torchvision and timm, {workers} workers | {found:.1f} | {found / base:.2f} |")
    print(f"| Pneumoscope | {statistics.median(ours):.1f} | {statistics.median(ours) / base:.2f} |")


def evenly(manifest: Manifest, count: int) -> Manifest:
    """Return the first images of each class, so that about `count` are left to train on."""
    wanted = round(count / 2 / 0.8)
    kept = [[s for s in manifest.labelled().samples if s.label == label][:wanted] for label in (NORMAL, PNEUMONIA)]
    chosen = {sample.path for part in kept for sample in part}
    return manifest.where(lambda sample: sample.path in chosen)


def plain_speed(folder: Path, count: int, workers: int) -> float:
    """Return images per second of the plain script, without its first two steps."""
    transform = v2.Compose(
        [
            v2.RandomRotation(12),
            v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.15, contrast=0.3),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images = ImageFolder(str(folder), transform=transform)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count].tolist()
    loader = DataLoader(Subset(images, rows), batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=2).train()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    seen, started = 0, 0.0
    for step, (x, y) in enumerate(loader):
        if step == 2:
            seen, started = 0, time.perf_counter()
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
        seen += len(x)
    return seen / (time.perf_counter() - started)


def our_speed(manifest: Manifest) -> float:
    """Return images per second of one epoch of the shipped recipe at full size."""
    experiment = load_experiment(CONFIG)
    changes: dict[str, Any] = {
        "data": DataConfig(val_fraction=0.2, seed=0),
        "train": experiment.train.model_copy(update={"epochs": 1, "head_epochs": 1, "sizes": ()}),
    }
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        run_experiment(experiment.model_copy(update=changes), manifest, run, name="speed")
        history = pd.read_csv(run / "history.csv")
    return float(history["images_per_second"].iloc[-1])


if __name__ == "__main__":
    main()
