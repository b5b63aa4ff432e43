"""The three strategies of the seed: from scratch, fixed feature extractor, fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.config import Experiment
from pneumoscope.data.cache import PixelCache
from pneumoscope.errors import DataError
from pneumoscope.evaluation.stress import CALIBRATING, STRESSES, Labelled, stressed
from pneumoscope.images.preparation import Pixels, Preparation
from pneumoscope.networks.network import Network, freeze, frozen_modules, stages
from pneumoscope.records import Progress, Sample
from pneumoscope.training.dataset import Augmenter, FeatureDataset, ImageDataset, class_weights, targets
from pneumoscope.training.exchange import boxes_of
from pneumoscope.training.features import best_device, encode
from pneumoscope.training.fit import Hardware, Phase, Report, fit
from pneumoscope.training.kept import Row, best_row
from pneumoscope.training.teachers import PREDICTIONS, Ensemble, soft_targets


@dataclass(frozen=True)
class Part:
    """One split: rows of the cache, true classes bool [n, C], loss weights and sampling weights float64 [n].

    `soft`: targets float32 [n, C] that teachers have a share in, or None.
    """

    rows: list[int]
    allowed: NDArray[Any]
    weights: NDArray[Any]
    balance: NDArray[Any] | None
    soft: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class TrainingRun:
    """All that a strategy needs: the experiment, the images, where to write, how to report progress.

    `lungs`: masks like the cache's pixels, uint8 0..255, where the experiment asks for them.
    """

    experiment: Experiment
    network: Network
    preparation: Preparation
    cache: PixelCache
    train: Part
    val: Part
    folder: Path
    hardware: Hardware = field(default_factory=Hardware)
    resume: bool = False
    report: Report | None = None
    progress: Progress | None = None
    loggers: Any = False
    bar: bool = False
    lungs: Pixels | None = None

    @property
    def comparable(self) -> bool:
        """False where the phases are measured on images in different styles."""
        return not self.experiment.train.stress


def make_part(samples: Sequence[Sample], cache: PixelCache, split: str, experiment: Experiment) -> Part:
    """Collect one split of the samples that the cache was opened with; unreadable images are left out."""
    chosen = [
        (sample, row) for sample, row in zip(samples, cache.rows, strict=True) if sample.split == split and row >= 0
    ]
    allowed = targets([sample for sample, _ in chosen], experiment.train.classes)
    if not len(allowed) or allowed[:, 0].all() or not allowed[:, 0].any():
        raise DataError(f"no readable image of one class in split {split!r}", remedy="see pneumoscope data check")
    balanced = class_weights(allowed)
    weigh = experiment.train.imbalance == "weights"
    sample_evenly = experiment.train.imbalance == "sampler" and split == "train"
    teachers = [name for name in experiment.train.teachers if name.endswith(PREDICTIONS)] if split == "train" else []
    soft = (
        soft_targets([sample.path for sample, _ in chosen], allowed, teachers, experiment.train.teacher_share)
        if teachers
        else None
    )
    return Part(
        rows=[row for _, row in chosen],
        allowed=allowed,
        weights=balanced if weigh or split == "val" else balanced * 0 + 1,
        balance=balanced if sample_evenly else None,
        soft=soft,
    )


def train_network(run: TrainingRun) -> list[Row]:
    """Train by the experiment's strategy; the best weights are left in `run.network`. Returns the history."""
    model = run.experiment.model
    if model.strategy == "scratch":
        return _on_images(run, "scratch", unfreeze=None)
    if model.strategy == "frozen" and not run.experiment.augment.off:
        return _on_images(run, "head", unfreeze=0)
    # The other ranks get the head from the first when training on images begins.
    train = run.experiment.train
    rows = [] if run.hardware.rank else _on_features(run, "head", train.head_epochs)
    if model.strategy == "finetune":
        rows = _or_before(run, rows, lambda: _on_images(run, "finetune", unfreeze=model.unfreeze or None))
        if train.refit_epochs and not run.hardware.rank:
            rows = _or_before(run, rows, lambda: _on_features(run, "refit", train.refit_epochs))
            freeze(run.network, model.unfreeze or None)  # shows later which stages learned
    return rows


def _or_before(run: TrainingRun, rows: list[Row], phase: Callable[[], list[Row]]) -> list[Row]:
    """Train a further phase, and leave the weights from before it where they were clearly better."""
    before = {name: tensor.detach().clone() for name, tensor in run.network.state_dict().items()}
    history = rows + phase()
    if rows and best_row(history, comparable=run.comparable) in rows:
        run.network.load_state_dict(before)
    return history


def _on_features(run: TrainingRun, name: str, epochs: int) -> list[Row]:
    """Train the head alone on features computed once."""
    config = run.experiment.train
    freeze(run.network, 0)
    features = encode(run.network, run.cache, run.preparation, device=best_device(), progress=run.progress)
    run.network.cpu()
    phase = Phase(
        name,
        epochs,
        FeatureDataset(features[run.train.rows], run.train.allowed, run.train.weights),
        FeatureDataset(features[run.val.rows], run.val.allowed, run.val.weights),
        run.train.balance,
    )
    head = run.network.head
    groups = _decayed(list(head.named_parameters()), config.head_rate, config.weight_decay)
    # A head trains in seconds on one process; more would only wait for each other.
    hardware = Hardware(accelerator="cpu")
    return fit(
        (head, groups, ()), phase, config, run.folder, seed=run.experiment.seed, hardware=hardware,
        resume=run.resume, report=run.report, loggers=run.loggers, bar=run.bar,
    )  # fmt: skip


def _on_images(run: TrainingRun, name: str, unfreeze: int | None) -> list[Row]:
    """Train on augmented images, with the last `unfreeze` stages of the encoder free (None: all, 0: none)."""
    experiment = run.experiment
    freeze(run.network, unfreeze)
    still = frozen_modules(run.network, batchnorm=experiment.model.freeze_batchnorm)
    head_only = unfreeze == 0
    epochs = experiment.train.head_epochs if head_only else experiment.train.epochs
    augmenter = Augmenter(experiment.augment, run.preparation, experiment.seed, sizes(experiment, epochs))
    phase = Phase(
        name,
        epochs,
        ImageDataset(
            run.cache.pixels,
            run.train.rows,
            run.train.allowed,
            run.train.weights,
            run.preparation,
            augmenter,
            run.train.soft,
            run.lungs,
        ),
        _validation(run),
        run.train.balance,
    )
    rate = experiment.train.head_rate if head_only else experiment.train.rate
    bundles = [name for name in experiment.train.teachers if not name.endswith(PREDICTIONS)]
    teachers = Ensemble(bundles, experiment.train.classes, run.preparation) if bundles else None
    return fit(
        (run.network, optimiser_groups(run.network, experiment, rate), still), phase, experiment.train, run.folder,
        seed=experiment.seed, hardware=run.hardware, resume=run.resume, report=run.report, loggers=run.loggers,
        bar=run.bar, teachers=teachers,
    )  # fmt: skip


def _validation(run: TrainingRun) -> ImageDataset:
    """Return the validation images, changed towards the other class where the experiment is calibrated on that."""
    part, pixels, rows = run.val, run.cache.pixels, run.val.rows
    draws = min(run.experiment.train.stress, len(CALIBRATING))
    if draws:
        pixels = np.concatenate(list(stressed_validation(run, draws, np.random.default_rng([run.experiment.seed, 6]))))
        rows = list(range(len(pixels)))
    allowed, weights = np.tile(part.allowed, (max(1, draws), 1)), np.tile(part.weights, max(1, draws))
    return ImageDataset(pixels, rows, allowed, weights, run.preparation)


def stressed_validation(run: TrainingRun, draws: int, rng: np.random.Generator) -> Iterator[Pixels]:
    """Yield the validation images changed towards training images of the other class, uint8 [n, S, S] each.

    In turn by the style alone and by style and framing.
    """
    val, train = (_labelled(run, part) for part in (run.val, run.train))
    for draw in range(draws):
        yield stressed(val, train, rng, STRESSES[CALIBRATING[draw % len(CALIBRATING)]])


def _labelled(run: TrainingRun, part: Part) -> Labelled:
    boxes = None if run.lungs is None else boxes_of(run.lungs, part.rows)
    return Labelled(run.cache.pixels[part.rows], ~part.allowed[:, 0], boxes)


def sizes(experiment: Experiment, epochs: int) -> list[int]:
    """Return the input's side in each epoch: `train.sizes` in equal shares, the last ones longer by the rest."""
    steps = experiment.train.sizes or (experiment.prepare.size,)
    return [steps[epoch * len(steps) // epochs] for epoch in range(epochs)]


def optimiser_groups(network: Network, experiment: Experiment, rate: float) -> list[dict[str, Any]]:
    """Return AdamW groups: smaller rates for earlier stages, no weight decay on biases and norms."""
    config = experiment.train
    parameters = dict(network.named_parameters())
    ordered = stages(network)
    groups: list[dict[str, Any]] = []
    for index, names in enumerate(ordered):
        scale = config.layer_decay ** (len(ordered) - index)
        free = [(name, parameters[name]) for name in names if parameters[name].requires_grad]
        groups += _decayed(free, rate * scale, config.weight_decay)
    head = [(name, parameter) for name, parameter in parameters.items() if name.startswith("head.")]
    return groups + _decayed(head, rate, config.weight_decay)


def _decayed(named: Sequence[tuple[str, torch.nn.Parameter]], rate: float, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for _, parameter in named if parameter.ndim > 1]
    vectors = [parameter for _, parameter in named if parameter.ndim <= 1]
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for parameters, decay in ((matrices, weight_decay), (vectors, 0.0))
        if parameters
    ]
