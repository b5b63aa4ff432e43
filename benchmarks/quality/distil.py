"""Train the shipped network: ResNets that meet the other class's style and framing, then one small network they teach.

    python benchmarks/quality/distil.py train teacher-112 --size 112 --weights resnet18_imagenet.safetensors
    python benchmarks/quality/distil.py train student --network tf_efficientnet_lite0 --size 128 --start BUNDLE
        --teachers teacher-112:112 teacher-96:96 --views wide:.4,frame:.2,plain:.1,lungs:.3 --area .2 1 --epochs 5
    python benchmarks/quality/distil.py bundle student --size 144 --out runs/lite0-styles

`docs/measurements.md` has the settings of the shipped network and of its teachers. `pneumoscope train` with
`configs/lite0-styles.toml` is the same recipe in the product; this program crops before it restyles, and computes in
bfloat16, so that one training takes minutes on one core. The shipped weights come from an earlier form of it, which
computed styles on batches, without rounding between spectrum and greys, and had a quicker backward pass of its own for
depthwise layers (gradients equal to 4e-6).
Check that it works: `--images 64 --epochs 1 --batch 16`.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pneumoscope.bundle.bundle import add_evidence, load_bundle
from pneumoscope.bundle.calibration import pneumonia_logit
from pneumoscope.config import Experiment, load_experiment
from pneumoscope.data.cache import open_cache
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.data.split import divide
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.files import read_json, write_json
from pneumoscope.images.preparation import Pixels
from pneumoscope.images.style import restyled, style_of
from pneumoscope.lungs import lung_box
from pneumoscope.networks.network import Network, build_network, round_weights
from pneumoscope.networks.weights import load_weights
from pneumoscope.predict import Classifier
from pneumoscope.records import FloatArray, Floats, Ints
from pneumoscope.statistics.auc import auroc
from pneumoscope.training.exchange import framed_as
from pneumoscope.training.experiment import Console, bundle_network, lung_masks, prepare_training
from pneumoscope.training.fit import Hardware

RECIPE = Path(__file__).parents[2] / "configs" / "lite0-styles.toml"
RESNET = "resnet20_mlnet"
WHOLE = (0.0, 0.0, 1.0, 1.0)  # top, left, height, width in fractions of the side

Crop = tuple[float, float, float, float]


@dataclass(frozen=True)
class Images:
    """Pixels uint8 [n, 224, 224]; boxes of the lungs float64 [n, 4] in 0..1, NaN without lungs; classes int [n]."""

    pixels: Pixels
    boxes: Floats
    classes: Ints
    train: Ints
    val: Ints


@dataclass(frozen=True)
class Recipe:
    """How training images are changed; `views` with their shares, `area` of wide crops, `style` as a share."""

    size: int
    views: dict[str, float]
    area: tuple[float, float]
    style: float


def read_images(divided: Manifest, limit: int | None, seed: int = 0) -> Images:
    """Read images, lungs and classes of a division; `limit`: training and validation images, drawn at random."""
    cache = open_cache(divided.samples, canvas=224, aspect="squash")
    masks = lung_masks(cache, Console(say=print))
    boxes = np.array([lung_box(mask / np.float32(255), 0) for mask in masks]) / 224
    boxes[~masks.any(axis=(1, 2))] = np.nan
    classes = np.zeros(len(cache.pixels), np.int64)
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for sample, row in zip(divided.samples, cache.rows, strict=True):
        classes[row] = {None: 0, "bacterial": 1, "viral": 2}[sample.subtype]
        parts[sample.split or "train"].append(row)
    rng = np.random.default_rng(seed)
    train, val = (np.sort(rng.permutation(parts[name])[:limit]) for name in ("train", "val"))
    return Images(np.asarray(cache.pixels), boxes, classes, train, val)


# --- changed images ---------------------------------------------------------------------------------------


def crop_of(images: Images, index: int, recipe: Recipe, rng: np.random.Generator) -> tuple[str, Crop]:
    """Draw the view of an image and its crop: wide, plain, in another's framing, or around the lungs."""
    view = str(rng.choice(list(recipe.views), p=np.array(list(recipe.views.values())) / sum(recipe.views.values())))
    box = images.boxes[index]
    if view == "plain":
        return "whole", WHOLE
    if view == "lungs" and np.isfinite(box).all():
        return "lungs", _by_lungs(box, rng)
    if view == "frame" and np.isfinite(box).all():
        other = images.boxes[rng.choice(images.train)]
        return "whole", framed_as(box, other) if np.isfinite(other).all() else WHOLE
    for _ in range(10):
        area, ratio = rng.uniform(*recipe.area), math.exp(rng.uniform(math.log(0.75), math.log(1.333)))
        height, width = math.sqrt(area / ratio), math.sqrt(area * ratio)
        if max(height, width) <= 1:
            return "whole", (rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width)
    return "whole", WHOLE


def _by_lungs(box: Floats, rng: np.random.Generator) -> Crop:
    """Return a crop around the lungs: half of the edges move by up to a quarter inward, the others by 8 % at most."""
    inward = np.where(rng.random(4) < 0.5, rng.uniform(-0.08, 0.05, 4), rng.uniform(-0.08, 0.25, 4))
    height, width = box[1] - box[0], box[3] - box[2]
    top, bottom, left, right = np.clip(box + inward * [height, -height, width, -width], 0, 1)
    return float(top), float(left), float(bottom - top), float(right - left)


def cut(pixels: Pixels, crop: Crop, size: int, angle: float = 0.0) -> Pixels:
    """Return a crop of an image uint8 [224, 224], turned about its middle and resized, uint8 [size, size]."""
    side = len(pixels)
    top, left, height, width = (value * side for value in crop)
    image = Image.fromarray(pixels)
    if angle:
        image = image.rotate(angle, Image.Resampling.BILINEAR, center=(left + width / 2, top + height / 2))
    box = (left, top, min(left + width, side), min(top + height, side))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def changed(images: Images, index: int, recipe: Recipe, rng: np.random.Generator) -> Pixels:
    """Return a training image cropped, turned, mirrored and in the style of one of the other class, uint8 [S, S]."""
    view, crop = crop_of(images, index, recipe, rng)
    angle = rng.uniform(-12, 12) if rng.random() < 0.7 else 0.0
    image = cut(images.pixels[index], crop, recipe.size, angle)
    if rng.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
    shares = (rng.random(2) < recipe.style) * rng.uniform(0.3, 1, 2)
    if not shares.any():
        return image
    others = images.train[(images.classes[images.train] > 0) != (images.classes[index] > 0)]
    donor = int(rng.choice(others))
    box, theirs = images.boxes[donor], WHOLE
    if view == "lungs" and np.isfinite(box).all():
        height, width = box[1] - box[0], box[3] - box[2]
        top, bottom, left, right = np.clip(box + 0.08 * np.array([-height, height, -width, width]), 0, 1)
        theirs = (top, left, bottom - top, right - left)
    style = style_of(cut(images.pixels[donor], theirs, recipe.size))
    return restyled(image, style, spectrum=float(shares[0]), greys=float(shares[1]))


def exposed(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Return images float32 [B, S, S] in 0..1 with other gamma, contrast, brightness, noise and blur, parts erased."""
    count, side = len(x), x.shape[-1]

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, count)).float().view(-1, 1, 1)

    x = x ** draw(-0.26, 0.26).exp()
    mean = x.mean((1, 2), keepdim=True)
    x = (x - mean) * draw(-0.26, 0.26).exp() + mean + draw(-0.15, 0.15)
    x = x + torch.from_numpy(rng.standard_normal(x.shape)).float() * draw(0, 0.02)
    soft = torch.from_numpy(rng.random(count) < 0.25)
    if soft.any():
        kernel = torch.exp(-(torch.arange(-3, 4).float() ** 2) / (2 * rng.uniform(0.3, 1.2) ** 2))
        kernel /= kernel.sum()
        padded = F.pad(x[soft][:, None], (3, 3, 3, 3), mode="replicate")
        x[soft] = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, 7)), kernel.view(1, 1, 7, 1))[:, 0]
    for number in np.flatnonzero(rng.random(count) < 0.2):
        height, width = (rng.uniform(0.05, 0.35, 2) * side).astype(int)
        top, left = rng.integers(0, side - height), rng.integers(0, side - width)
        x[number, top : top + height, left : left + width] = rng.random()
    return x.clamp(0, 1)


def batches(images: Images, recipe: Recipe, epochs: int, size: int, seed: int) -> Iterator[tuple[Ints, Tensor]]:
    """Yield the rows of each batch and its images, float32 [B, S, S] in 0..1, made in a thread beside training."""

    def make(step: int, rows: Ints) -> Tensor:
        rng = np.random.default_rng([seed, step])
        stack = np.stack([changed(images, int(row), recipe, rng) for row in rows])
        return exposed(torch.from_numpy(stack).float() / 255, rng)

    rng, per = np.random.default_rng(seed), len(images.train) // size
    order = [part for _ in range(epochs) for part in rng.permutation(images.train)[: per * size].reshape(per, size)]
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, step, rows) for step, rows in enumerate(order[:3])]
        for step, rows in enumerate(order):
            if step + 3 < len(order):
                waiting.append(pool.submit(make, step + 3, order[step + 3]))
            yield rows, waiting.pop(0).result()


# --- networks ---------------------------------------------------------------------------------------------


class Learner:
    """A network with the values it wants, in bfloat16 and channels last."""

    def __init__(self, name: str, weights: Path | None = None) -> None:
        network, usual = build_network(name, classes=3, dropout=0.1, drop_path=0.1 if name != RESNET else 0.0)
        if weights is not None:
            network.load_state_dict(load_file(weights))
        self.network: Network = network.to(memory_format=torch.channels_last)
        self.mean, self.std = (torch.tensor(usual[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def __call__(self, grey: Tensor, size: int | None = None) -> Tensor:
        """Return logits float32 [B, 3] about images float32 [B, S, S] in 0..1, resized to `size` first if given."""
        x = grey[:, None]
        if size is not None and size != x.shape[-1]:
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(x).float()


def ranking(learner: Learner, images: Images, size: int) -> float:
    """Return the AUROC of the plain validation images, each with its mirror image. It chooses nothing."""
    learner.network.eval()
    parts: list[FloatArray] = []
    with torch.inference_mode():
        for rows in np.array_split(images.val, max(1, len(images.val) // 64)):
            grey = torch.from_numpy(np.stack([cut(images.pixels[row], WHOLE, size) for row in rows])).float() / 255
            parts.append(((learner(grey) + learner(grey.flip(-1))) / 2).numpy())
    return auroc(images.classes[images.val] > 0, pneumonia_logit(np.concatenate(parts)))


def train(arguments: argparse.Namespace, images: Images) -> None:
    """Train one network and write the moving average of its weights, and what it was made with."""
    torch.manual_seed(arguments.seed)
    views = {name: float(share) for name, share in (part.split(":") for part in arguments.views.split(","))}
    recipe = Recipe(arguments.size, views, tuple(arguments.area), arguments.style)
    learner = Learner(arguments.network)
    if arguments.start is not None:
        learner.network.load_state_dict(load_bundle(arguments.start).network.state_dict())
    else:
        load_weights(learner.network, arguments.network, arguments.weights)
    teachers = [_teacher(arguments.work, name) for name in arguments.teachers]
    average = copy.copy(learner)
    average.network = copy.deepcopy(learner.network)
    steps = arguments.epochs * (len(images.train) // arguments.batch)
    optimiser, schedule = _optimiser(learner.network, arguments.rate, steps)
    history, started = [], time.perf_counter()
    for step, (rows, grey) in enumerate(
        batches(images, recipe, arguments.epochs, arguments.batch, arguments.seed), start=1
    ):
        learner.network.train()
        logits, truth = learner(grey), torch.from_numpy(images.classes[rows])
        loss = F.cross_entropy(logits, truth, label_smoothing=0.05)
        if teachers:
            with torch.no_grad():
                opinion = torch.stack([teacher(grey, size) for teacher, size in teachers]).mean(0).softmax(1)
            taught = F.kl_div(logits.log_softmax(1), opinion, reduction="batchmean")
            loss = (1 - arguments.share) * loss + arguments.share * taught
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.network.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        _follow(average.network, learner.network, min(0.995, step / (9 + step)))
        if step % (steps // arguments.epochs) == 0:
            row = {"epoch": step * arguments.epochs // steps, "train_loss": loss.item(), "phase": "finetune"}
            history.append({**row, "val_auroc": ranking(average, images, recipe.size)})
            print(arguments.name, history[-1], f"{time.perf_counter() - started:.0f} s", flush=True)
    save_file({key: value.contiguous() for key, value in average.network.state_dict().items()}, _path(arguments))
    made = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    write_json(_path(arguments).with_suffix(".json"), {"made_with": made, "history": history})


def _path(arguments: argparse.Namespace) -> Path:
    return Path(arguments.work) / f"{arguments.name}.safetensors"


def _teacher(work: Path, name: str) -> tuple[Learner, int]:
    stem, _, size = name.partition(":")
    teacher = Learner(read_json(work / f"{stem}.json")["made_with"]["network"], work / f"{stem}.safetensors")
    teacher.network.eval().requires_grad_(False)
    return teacher, int(size)


def _optimiser(network: Network, rate: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    matrices = [tensor for tensor in network.parameters() if tensor.ndim > 1]
    vectors = [tensor for tensor in network.parameters() if tensor.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, rate)
    warm = 0.1 * steps

    def factor(step: int) -> float:
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0.0, step - warm) / (steps - warm))))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


@torch.no_grad()
def _follow(average: Network, network: Network, share: float) -> None:
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        mean.lerp_(value, 1 - share) if mean.is_floating_point() else mean.copy_(value)


# --- the bundle -------------------------------------------------------------------------------------------


def described(made: dict[str, Any], size: int, title: str) -> Experiment:
    """Return the experiment that a card shows: the product's nearest settings, and what `train` was asked for."""
    experiment = load_experiment(RECIPE)
    views = {name: float(share) for name, share in (part.split(":") for part in made["views"].split(","))}
    augment = {"crop_scale": tuple(made["area"]), "style": made["style"]}
    augment |= {"lungs": views.get("lungs", 0.0), "framing": views.get("frame", 0.0)}
    model = {"network": made["network"], "weights": made["start"] or made["weights"]}
    train = {
        "epochs": made["epochs"], "batch_size": made["batch"], "rate": made["rate"], "sizes": (),
        "teachers": tuple(made["teachers"]), "teacher_share": made["share"], "precision": "bf16-mixed",
    }  # fmt: skip
    return experiment.model_copy(
        update={
            "title": title,
            "seed": made["seed"],
            "prepare": experiment.prepare.model_copy(update={"size": size}),
            "augment": experiment.augment.model_copy(update=augment),
            "model": experiment.model.model_copy(update=model),
            "train": experiment.train.model_copy(update=train),
        }
    )


def bundle(arguments: argparse.Namespace, divided: Manifest) -> None:
    """Calibrate the trained network on its stressed validation, write its bundle, and measure it."""
    record = read_json(_path(arguments).with_suffix(".json"))
    experiment = described(record["made_with"], arguments.size, arguments.title)
    console = Console(say=print)
    run, weights = prepare_training(experiment, divided, arguments.out, Hardware(), False, console)
    run.network.load_state_dict(load_file(_path(arguments)))
    round_weights(run.network)
    divided.write_csv(arguments.out / "split.csv")
    folder = arguments.out / "bundle"
    bundle_network(folder, arguments.bundle_name, run, divided, weights, record["history"])
    draws = experiment.train.stress
    # One draw is enough of the held-out images: it chooses nothing.
    for name, part, stress in (("validation", "val", draws), ("held_out", "test", 1)):
        out = arguments.out / name
        found = evaluate(Classifier.load(folder), divided.select(part), out, seed=experiment.seed, stress=stress)
        add_evidence(folder, {name: found})
        for kind in ("none", "both"):
            figures = {key: round(value["value"], 4) for key, value in found["stressed"][kind].items()}
            print(name, "plain" if kind == "none" else "stressed", figures)


def main() -> None:
    """Read the arguments, then train a network or make its bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "bundle"))
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True, help="a data source")
    parser.add_argument("--work", type=Path, default=Path("runs/distil"), help="where trained weights lie")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--network", default=RESNET)
    parser.add_argument("--weights", default="offline", help="of ImageNet")
    parser.add_argument("--start", type=Path, help="a bundle whose network learns on")
    parser.add_argument("--teachers", nargs="*", default=[], metavar="NAME:SIZE")
    parser.add_argument("--share", type=float, default=0.7, help="of the teachers in the target")
    parser.add_argument("--views", default="wide:.25,frame:.25,lungs:.5")
    parser.add_argument("--area", type=float, nargs=2, default=(0.3, 1.0), help="of wide crops")
    parser.add_argument("--style", type=float, default=0.6)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="of each part, to try the program")
    parser.add_argument("--out", type=Path, default=Path("runs/lite0-styles"))
    parser.add_argument("--bundle-name", default="lite0-styles")
    parser.add_argument("--title", default="EfficientNet-Lite0, taught by ResNets on exchanged styles and framing")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    recipe = load_experiment(RECIPE)
    divided = divide(open_source(arguments.data), recipe.data, recipe.division_seed)
    if arguments.what == "bundle":
        bundle(arguments, divided)
    else:
        train(arguments, read_images(divided, arguments.images))


if __name__ == "__main__":
    main()
