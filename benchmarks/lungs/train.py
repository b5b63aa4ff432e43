"""Train the lung segmenter, choose its epoch on validation patients, measure it on others, and write what is shipped.

    python benchmarks/lungs/train.py --data LUNG_MASKS --out FOLDER [--seed 0] [--epochs 24]

LUNG_MASKS: a folder with `index.csv` (columns image, mask, patient_id, license, url), images and masks. FOLDER: gets
`model.onnx` and `card.json`, as below `src/pneumoscope/bundle/shipped/lungs`. The figures go into
`benchmarks/lungs/results/` as well. Division, order and changes follow from the seed; patients are never divided.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from augment import draw, squashed
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from measure import dice, figures
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as nnf
from torch.utils.data import DataLoader, Dataset
from unet import Deployed, UNet

from pneumoscope.files import read_json, sha256_bytes, write_json
from pneumoscope.lungs import LungSegmenter, write_segmenter
from pneumoscope.networks.export import from_pixels
from pneumoscope.networks.network import round_weights
from pneumoscope.training.allocator import keep_freed_memory

SIZE, CANVAS = 192, 256
BATCH, REPEATS = 8, 6  # an epoch shows each image six times, each time changed anew
RATE, RATE_OF_ENCODER = 2e-3, 7e-4
TEST_PATIENTS, VAL_PATIENTS = 12, 7
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Films:
    """Images and masks (0 or 1), uint8 [n, CANVAS, CANVAS], and the patient of each."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    patients: list[str]

    def of(self, patients: set[str]) -> Films:
        kept = [index for index, patient in enumerate(self.patients) if patient in patients]
        return Films(self.images[kept], self.masks[kept], [self.patients[index] for index in kept])


def read(folder: Path) -> tuple[Films, list[dict[str, str]]]:
    """Read every film that the index names, squashed to a square, and the index."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    pairs = [tuple(squashed(Image.open(folder / row[key]), CANVAS) for key in ("image", "mask")) for row in rows]
    images, masks = np.stack([image for image, _ in pairs]), np.stack([mask > 127 for _, mask in pairs])
    return Films(images, masks.astype(np.uint8), [row["patient_id"] for row in rows]), rows


def divided(films: Films, seed: int) -> dict[str, Films]:
    """Return the parts `train`, `val` and `test`, with different patients in each."""
    patients = np.random.default_rng(seed).permutation(sorted(set(films.patients))).tolist()
    test, val = patients[:TEST_PATIENTS], patients[TEST_PATIENTS : TEST_PATIENTS + VAL_PATIENTS]
    train = patients[TEST_PATIENTS + VAL_PATIENTS :]
    return {name: films.of(set(group)) for name, group in (("train", train), ("val", val), ("test", test))}


class Changed(Dataset[tuple[Tensor, Tensor]]):
    """Films changed anew at each look: what comes of a look depends on the seed and its number alone."""

    def __init__(self, films: Films, seed: int, epochs: int) -> None:
        self.films, self.seed, self.looks = films, seed, REPEATS * len(films.patients) * epochs

    def __len__(self) -> int:
        return self.looks

    def __getitem__(self, look: int) -> tuple[Tensor, Tensor]:
        count = len(self.films.patients)
        order = np.random.default_rng([self.seed, look // count]).permutation(count)
        row = order[look % count]
        change = draw(np.random.default_rng([self.seed, 1, look]))
        image, mask = change.apply(self.films.images[row], self.films.masks[row], SIZE)
        return torch.from_numpy(image), torch.from_numpy(mask).float()


class Unchanged(Dataset[tuple[Tensor, Tensor]]):
    """Films as they are, and beside each a changed version that is always the same: what children might look like."""

    def __init__(self, films: Films) -> None:
        pairs = list(zip(films.images, films.masks, strict=True))
        changed = [draw(np.random.default_rng([7, i])).apply(*pair, SIZE) for i, pair in enumerate(pairs)]
        resized = [tuple(squashed(Image.fromarray(part), SIZE) for part in pair) for pair in pairs]
        self.items = [*resized, *changed]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.items[index]
        return torch.tensor(image), torch.tensor(mask).float()


class Segmentation(L.LightningModule):
    """Cross-entropy and soft Dice; a rate that rises for a twentieth of the steps and falls as a cosine."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net, self.steps = UNet().to(memory_format=torch.channels_last), steps

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, masks = batch
        logits = self.net(images)
        p = torch.sigmoid(logits)
        overlap = (p * masks).sum((1, 2))
        soft = 1 - (2 * overlap + 50) / (p.sum((1, 2)) + masks.sum((1, 2)) + 50)
        return nnf.binary_cross_entropy_with_logits(logits, masks) + soft.mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, masks = batch
        found = self.net(images) > 0
        values = [dice(f, m) for f, m in zip(found.numpy(), masks.numpy() > 0, strict=True)]
        self.log("val_dice", float(np.mean(values)), batch_size=len(images))

    def configure_optimizers(self) -> Any:
        old, new = self.net.parts()
        groups = [{"params": old, "lr": RATE_OF_ENCODER}, {"params": new, "lr": RATE}]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
        rates = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, self.steps, pct_start=0.05)
        return [optimiser], [{"scheduler": schedule, "interval": "step"}]


class Told(Callback):
    """Prints the validation Dice as it is found."""

    def __init__(self) -> None:
        self.history: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.history.append(float(trainer.callback_metrics["val_dice"]))
        print(f"look {trainer.global_step * BATCH}: validation Dice {self.history[-1]:.4f}", flush=True)


def fit(parts: dict[str, Films], seed: int, epochs: int) -> tuple[UNet, dict[str, Any]]:
    """Train, and return the network of the best validation, and how it came about."""
    L.seed_everything(seed)
    data = Changed(parts["train"], seed, epochs)
    steps, every = len(data) // BATCH, len(data) // BATCH // epochs
    with tempfile.TemporaryDirectory() as folder:
        best, told = ModelCheckpoint(folder, monitor="val_dice", mode="max", save_weights_only=True), Told()
        trainer = L.Trainer(
            accelerator="cpu", max_steps=steps, val_check_interval=every, check_val_every_n_epoch=None, logger=False,
            callbacks=[best, told], enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
            num_sanity_val_steps=0,
        )  # fmt: skip
        model = Segmentation(steps)
        trainer.fit(model, DataLoader(data, BATCH, drop_last=True), DataLoader(Unchanged(parts["val"]), BATCH))
        model.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    model.net.eval()
    chosen = int(np.argmax(told.history)) + 1
    facts = {"pretrained": model.net.source, "epochs": epochs, "chosen_epoch": chosen, "looks": steps * BATCH}
    return model.net, {**facts, "validation_dice": told.history}


def sources(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Return whose images and masks these are, as their licences ask."""
    images = sorted({(row["url"], row["license"]) for row in rows})
    return {
        "images": [{"source": url, "licence": licence} for url, licence in images],
        "masks": {
            "source": "V7 Labs, COVID-19 X-ray dataset, https://github.com/v7labs/covid-19-xray-dataset",
            "licence": "CC BY 4.0",
        },
        "changes": "images and masks resized and augmented for training; none of them is part of this package",
    }


LIMITS = (
    "Learned from adults alone, most of them with COVID-19, from one hospital and four articles. Children are "
    "imitated by augmentation; no drawn mask of a child has measured it.",
    "The masks hold the lung behind the heart, as the annotators drew it, but not that behind the domes of the "
    "diaphragm.",
    "Frontal radiographs only. A lung that is wholly opaque or lies beyond the film may be guessed or missed.",
    "An aid for explanation and crops: an outline is no finding.",
)


NOTE = (
    "Of the network that is shipped. Test patients neither taught it nor chose its epoch. A first version reached .958 "
    "on them; the augmentation was then extended (films that begin below the apices, gas below the diaphragm, more "
    "white lungs) because of what it missed in children."
)


def measured(folder: Path, part: Films) -> dict[str, Any]:
    """Measure a written segmenter through the code that users run."""
    return figures(LungSegmenter.load(folder), part.images, part.masks, part.patients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with index.csv")
    parser.add_argument("--out", type=Path, required=True, help="the segmenter's folder; replaced where it exists")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--measure", action="store_true", help="train nothing, write nothing: measure that of --out")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    keep_freed_memory()
    films, rows = read(arguments.data)
    parts = divided(films, arguments.seed)
    if arguments.measure:
        print(measured(arguments.out, parts["test"])["dice"])
        return
    started = time.perf_counter()
    net, training = fit(parts, arguments.seed, arguments.epochs)
    training |= {"seed": arguments.seed, "minutes": round((time.perf_counter() - started) / 60, 1)}
    for name, part in parts.items():
        training[name] = {"images": len(part.patients), "patients": len(set(part.patients))}
    round_weights(net)  # type: ignore[arg-type]  # any module with matrices
    model = from_pixels(Deployed(net), SIZE, "lungs")
    card = {
        "name": "lungs-unet-lite0",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "network": "U-Net on five stages of EfficientNet-Lite0, about a million weights",
        "training": {**training, "index_sha256": sha256_bytes((arguments.data / "index.csv").read_bytes())},
        "data": sources(rows),
        "limits": LIMITS,
    }
    write_segmenter(arguments.out, model, card)
    evidence = {name: measured(arguments.out, parts[name]) for name in ("val", "test")}
    card["evidence"] = {**evidence, "note": NOTE}
    write_segmenter(arguments.out, model, card)
    write_json(RESULTS / f"seed-{arguments.seed}.json", read_json(arguments.out / "card.json"))
    print(evidence["test"]["dice"])


if __name__ == "__main__":
    main()
