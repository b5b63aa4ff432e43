"""A ResNet-18 backbone of our own: it learns to repeat what two ImageNet networks see in radiographs, without labels.

    python benchmarks/quality/backbone.py --data kermany224 --vgg16 weights/vgg16_features_fp16.safetensors \
        --out weights/resnet18_radiographs.safetensors

Its targets are the pooled features of EfficientNet-Lite0 and VGG16 (ImageNet weights) of augmented training images:
views drawn once, features computed once. Images of the patients that the base's division keeps for validation and test
are not used. The file holds timm's `resnet18` without classifier, as any weights file for `model.weights`. It is no
ImageNet network: it knows radiographs alone.

Source of the idea: Romero et al. 2015, FitNets (arXiv:1412.6550).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors.torch import save
from seeds import experiment_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pneumoscope.config import AugmentConfig, load_experiment
from pneumoscope.data.cache import PixelCache, open_cache
from pneumoscope.data.sources import open_source
from pneumoscope.data.split import divide
from pneumoscope.files import atomic_path, write_bytes
from pneumoscope.images.preparation import Preparation
from pneumoscope.networks.network import IMAGENET_MEAN, IMAGENET_STD, Network, build_network
from pneumoscope.networks.transforms import draw, normalise
from pneumoscope.networks.weights import load_weights
from pneumoscope.training.allocator import keep_freed_memory

VIEWS, SIZE, BATCH = 2, 128, 64
AUGMENT = AugmentConfig(
    rotation=12.0, crop_scale=(0.2, 1.0), crop_ratio=(0.75, 1.333), flip=0.5, brightness=0.15, contrast=0.3, gamma=0.3,
    blur=0.01, noise=0.02,
)  # fmt: skip
STUDENT = Preparation(SIZE, 224, "squash", IMAGENET_MEAN, IMAGENET_STD)


def teachers(vgg16: Path) -> list[tuple[Network, Preparation]]:
    """Return the networks with ImageNet weights, and how each wants its input."""
    found = []
    for name, weights, file in (("tf_efficientnet_lite0", "offline", "lite0-frozen"), ("vgg16", vgg16, "vgg16-frozen")):
        network, usual = build_network(name, classes=2)
        load_weights(network, name, str(weights))
        prepare = load_experiment(experiment_file(file)).prepare
        mean, std = prepare.mean or usual["mean"], prepare.std or usual["std"]
        network.requires_grad_(False)
        network.eval()
        found.append((network.to(memory_format=torch.channels_last), Preparation(SIZE, 224, "squash", mean, std)))
    return found


def view(cache: PixelCache, rows: list[int], index: int, seed: int) -> Tensor:
    """Return view `index // len(rows)` of an image as uint8 [1, SIZE, SIZE]: the same whenever it is asked for."""
    rng = np.random.default_rng([seed, index])
    canvas = torch.from_numpy(np.array(cache.pixels[rows[index % len(rows)]]))[None]
    return draw(AUGMENT, rng).apply(canvas, SIZE)


def targets(cache: PixelCache, rows: list[int], vgg16: Path, seed: int, file: Path) -> Tensor:
    """Return the teachers' features of every view, each of mean 0 and variance 1: float32 [VIEWS * n, F]."""
    if not file.is_file():
        networks, parts = teachers(vgg16), []
        count = VIEWS * len(rows)
        for start in range(0, count, BATCH):
            images = torch.stack([view(cache, rows, i, seed) for i in range(start, min(start + BATCH, count))])
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                seen = [network.embed(normalise(images, preparation)).float() for network, preparation in networks]
            parts.append(torch.cat(seen, dim=1))
            print(f"\rfeatures of {start + len(images)} of {count} views", end="", flush=True)
        found = torch.cat(parts)
        found = (found - found.mean(dim=0)) / (found.std(dim=0) + 1e-6)
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, found.half().numpy())
    return torch.from_numpy(np.load(file)).float()


class Views(Dataset[tuple[Tensor, Tensor]]):
    """A view and what the teachers see in it: float32 [3, SIZE, SIZE], float32 [F]."""

    def __init__(self, cache: PixelCache, rows: list[int], seen: Tensor, seed: int) -> None:
        self.cache, self.rows, self.seen, self.seed = cache, rows, seen, seed

    def __len__(self) -> int:
        return len(self.seen)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = view(self.cache, self.rows, index, self.seed)
        return normalise(image[None], STUDENT)[0], self.seen[index]


class Student(L.LightningModule):
    """ResNet-18 and a linear map from its features to the teachers'."""

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.network, _ = build_network("resnet18", classes=2)
        self.network.to(memory_format=torch.channels_last).train()  # Lightning leaves the mode as it finds it
        self.projection = nn.Linear(self.network.features, features)
        self.steps = steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, seen = batch
        loss = nn.functional.mse_loss(self.projection(self.network.embed(images)).float(), seen)
        self.log("unexplained", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def on_train_epoch_end(self) -> None:
        # The targets have variance 1, so the loss is the share of it that is not explained.
        print(f"pass {self.current_epoch + 1}: {float(self.trainer.callback_metrics['unexplained']):.4f}", flush=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 2e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=self.steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    """Compute the targets, train, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vgg16", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=4, help="over all views")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    keep_freed_memory()
    base = load_experiment(experiment_file("lite0-finetuned"))
    samples = divide(open_source(arguments.data), base.data, base.division_seed).select("train").samples
    cache = open_cache(samples, canvas=224, aspect="squash")
    rows = [row for row in cache.rows if row >= 0]
    seen = targets(cache, rows, arguments.vgg16, arguments.seed, arguments.out.with_suffix(".targets.npy"))
    L.seed_everything(arguments.seed)
    loader = DataLoader(Views(cache, rows, seen, arguments.seed), BATCH, shuffle=True, drop_last=True)
    student = Student(seen.shape[1], arguments.passes * len(loader))
    trainer = L.Trainer(
        max_epochs=arguments.passes, precision=arguments.precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(student, loader)
    tensors = {key: value.half() if value.is_floating_point() and value.ndim > 1 else value
               for key, value in student.network.encoder.model.state_dict().items()}  # fmt: skip
    write_bytes(arguments.out, save({key: value.contiguous() for key, value in tensors.items()}))
    print(arguments.out)


if __name__ == "__main__":
    main()
