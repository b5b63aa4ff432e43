"""One experiment from source to evaluated bundle: the flow of the whole program in one place.

RUN/config.toml  environment.json  split.csv  history.csv  run.json
    bundle/      the network with all that travels with it
    metrics.json predictions.csv   of the validation split, through the bundle
    figures/augmentation.png       what training saw
    checkpoints/                   of each phase, for --resume
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from pneumoscope.bundle.bundle import add_evidence, load_bundle, save_bundle
from pneumoscope.bundle.calibration import calibrate, calibration_sections
from pneumoscope.bundle.fingerprints import Fingerprints, fingerprints_of
from pneumoscope.config import Experiment, save_experiment
from pneumoscope.data.cache import PixelCache, open_cache
from pneumoscope.data.copies import join_copies
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import divide
from pneumoscope.errors import ConfigError, storage_errors
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.files import atomic_path, out_folder, read_json, write_json, write_text
from pneumoscope.gate.fitting import add_gate, drawn, least_side
from pneumoscope.images.preparation import Pixels, Preparation
from pneumoscope.lungs import LungSegmenter, crop_of, mask_fault
from pneumoscope.networks.network import Network, build_network, require_size, round_weights
from pneumoscope.networks.weights import LoadReport, load_weights
from pneumoscope.predict import Classifier
from pneumoscope.records import Floats, Progress
from pneumoscope.training.dataset import CLASSES, Augmenter
from pneumoscope.training.exchange import Exchange
from pneumoscope.training.features import best_device, predict_logits
from pneumoscope.training.fit import Hardware, Report
from pneumoscope.training.kept import Row, best_row
from pneumoscope.training.provenance import (
    ages,
    count_lines,
    environment,
    is_synthetic,
    limits,
    notices,
    passed_over,
    population,
    split_counts,
    without_paths,
)
from pneumoscope.training.strategy import TrainingRun, make_part, stressed_validation, train_network

_BATCH = 64


@dataclass(frozen=True)
class Console:
    """Where an experiment reports its progress; every field may be None."""

    say: Any = None
    report: Report | None = None
    progress: Progress | None = None
    loggers: Any = False
    bar: bool = False

    def __call__(self, text: str) -> None:
        """Tell one line."""
        if self.say is not None:
            self.say(text)


def run_experiment(
    experiment: Experiment,
    manifest: Manifest,
    run: Path,
    *,
    name: str,
    hardware: Hardware | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, calibrate, bundle and validate; returns the content of `run.json`.

    In a process of another rank than 0 it only takes part in training, writes nothing and returns nothing.

    Raises:
        ConfigError: the folder holds another experiment, or is in use.
        TrainingError: the loss is not finite, or training was interrupted.
        DataError, WeightsError, StorageError: as their messages say.
    """
    console = console or Console()
    hardware = hardware or Hardware()
    make_network(experiment)  # it, the classes and the folder fail before the first image is read
    labelled = manifest.labelled().require_both_classes("training")
    out_folder(run)
    copies = join_copies(labelled, progress=console.progress)
    for doubt in copies.says:
        console(f"warning: {doubt}")
    divided = divide(copies.manifest, experiment.data, experiment.division_seed)
    for line in (*passed_over(manifest), *count_lines(divided)):
        console(line)
    if hardware.rank:
        train_network(prepare_training(experiment, divided, run, hardware, resume, Console())[0])
        return {}
    with storage_errors(run):
        try:
            with FileLock(out_folder(run) / ".lock", timeout=0):
                _claim(experiment, divided, run, resume)
                return _run(experiment, divided, run, name, hardware, resume, console)
        except Timeout as error:
            raise ConfigError(
                "another process is training here", path=run, remedy="wait, or choose another --out"
            ) from error


def _claim(experiment: Experiment, divided: Manifest, run: Path, resume: bool) -> None:
    """Refuse to mix two experiments in one folder; one that failed before its first epoch is no hindrance."""
    card = run / "experiment.json"
    parts = {name: divided.select(name).fingerprint() for name in ("train", "val")} | {"all": divided.fingerprint()}
    begun = {**experiment.model_dump(mode="json"), "images": parts}
    if card.is_file() and any((run / name).exists() for name in ("checkpoints", "bundle", "run.json")):
        if not resume:
            raise ConfigError("holds a run already", path=run, remedy="go on with --resume or choose another --out")
        if read_json(card) != begun:
            raise ConfigError(
                "was begun with other settings or on other images",
                path=run,
                remedy="resume with the same file, seed and --data, or choose another --out",
            )
    elif resume:
        raise ConfigError("holds nothing to resume", path=run, remedy="leave --resume out")
    write_json(card, begun)


def _run(
    experiment: Experiment,
    divided: Manifest,
    run: Path,
    name: str,
    hardware: Hardware,
    resume: bool,
    console: Console,
) -> dict[str, Any]:
    started = time.time()
    save_experiment(experiment, run / "config.toml")
    divided.write_csv(run / "split.csv")
    training, weights = prepare_training(experiment, divided, run, hardware, resume, console)
    write_json(run / "environment.json", environment(experiment, hardware, started))
    if not experiment.augment.off:
        draw_augmentation(training, run / "figures" / "augmentation.png")
    trained = time.perf_counter()
    history = train_network(training)
    seconds = sum(float(row["seconds"]) for row in history)
    overhead = max(0.0, time.perf_counter() - trained - seconds) if not resume else 0.0
    write_text(run / "history.csv", pd.DataFrame(history).to_csv(index=False))
    round_weights(training.network)
    bundle_network(run / "bundle", name, training, divided, weights, history)
    classifier = Classifier.load(run / "bundle")
    console("validating through the bundle")
    metrics = evaluate(
        classifier, divided.select("val"), run, seed=experiment.seed, stress=experiment.train.stress, asked=True
    )
    add_evidence(run / "bundle", {"validation": metrics})
    summary = summarise(training, name, divided, weights, history, seconds + overhead)
    write_json(run / "run.json", summary)
    return summary


def prepare_training(
    experiment: Experiment, divided: Manifest, run: Path, hardware: Hardware, resume: bool, console: Console
) -> tuple[TrainingRun, LoadReport | None]:
    """Decode the images and build the network: all that training needs, the same in every process."""
    prepare = experiment.prepare
    console(f"{len(divided)} images, decoding those not yet in the cache")
    torch.manual_seed(experiment.seed)
    network, weights, preparation = make_network(experiment)
    cache = open_cache(
        divided.samples, canvas=prepare.canvas_size, aspect=prepare.aspect, crop=crop_of(preparation),
        progress=console.progress,
    )  # fmt: skip
    for path, reason in cache.failed.items():
        console(f"left out: {path}: {reason}")
    training = TrainingRun(
        experiment, network, preparation, cache,
        make_part(divided.samples, cache, "train", experiment), make_part(divided.samples, cache, "val", experiment),
        run, hardware, resume, console.report, console.progress, console.loggers, console.bar,
        lung_masks(cache, console) if experiment.lungs else None,
    )  # fmt: skip
    return training, weights


def lung_masks(cache: PixelCache, console: Console) -> Pixels:
    """Return the lung masks of all images of a cache, uint8 like its pixels, 0..255: computed once, stored beside them.

    Without two lungs the mask is empty.

    Raises:
        ConfigError, BundleError, StorageError: as their messages say.
    """
    segmenter = LungSegmenter.load()
    path = cache.folder / f"lungs-{segmenter.card['model']['sha256'][:16]}.npy"
    with storage_errors(path), FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            console(f"finding the lungs in {len(cache.pixels)} images")
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, _lung_masks(segmenter, cache.pixels))
        masks: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    return masks


def _lung_masks(segmenter: LungSegmenter, pixels: Pixels) -> Pixels:
    masks = np.zeros(pixels.shape, np.uint8)
    for start in range(0, len(pixels), _BATCH):
        part = segmenter.masks(np.array(pixels[start : start + _BATCH]))
        usable = np.array([mask_fault(mask) is None for mask in part])
        masks[start : start + _BATCH] = np.round(part * 255) * usable[:, None, None]
    return masks


def make_network(experiment: Experiment) -> tuple[Network, LoadReport | None, Preparation]:
    """Build the network of an experiment, with its weights and the preparation that fits them.

    Raises:
        ConfigError: it has no such network, or one that cannot take images of this size.
        WeightsError: as its message says.
    """
    model, prepare = experiment.model, experiment.prepare
    network, usual = build_network(
        model.network, classes=experiment.train.classes, dropout=model.dropout, drop_path=model.drop_path
    )
    require_size(network, model.network, min((prepare.size, *experiment.train.sizes)))
    report = None if model.weights == "none" else load_weights(network, model.network, model.weights)
    preparation = Preparation(
        prepare.size,
        prepare.canvas_size,
        prepare.aspect,
        prepare.mean or usual["mean"],
        prepare.std or usual["std"],
        prepare.mirror,
        prepare.tone,
        prepare.crop,
    )
    return network, report, preparation


def bundle_network(
    path: Path,
    name: str,
    run: TrainingRun,
    divided: Manifest,
    weights: LoadReport | None,
    history: Sequence[Row],
) -> None:
    """Calibrate, choose thresholds and fit the gate's limits on the validation split, and write the bundle."""
    draws, seed = run.experiment.train.stress, run.experiment.seed
    logits = _stressed_logits(run, draws) if draws else _logits(run, run.cache, run.val.rows)
    run.network.cpu()
    truth = np.tile((~run.val.allowed[:, 0]).astype(int), max(1, draws))
    patients = _patients(divided, run.cache, "val") * max(1, draws)
    fitted, points = calibrate(logits, truth, patients, seed=seed, even=draws > 0)
    sections = {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "network": {
            "name": run.experiment.model.network,
            "classes": list(CLASSES[run.experiment.train.classes]),
            "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
        },
        **calibration_sections(fitted, points, draws=draws),
        "operating_point": "balanced",
        "population": population(divided),
        "training": {
            "config": without_paths(run.experiment),
            "weights": None if weights is None else {**asdict(weights), "loaded": weights.loaded},
            "data": {"fingerprint": divided.fingerprint(), "splits": split_counts(divided)},
            "best": best_row(history, comparable=run.comparable),
        },
        "limits": limits(divided, stressed=draws > 0),
    }
    with TemporaryDirectory() as scratch:
        draft = Path(scratch) / "draft"
        save_bundle(draft, run.network, run.preparation, sections, _fingerprints(divided))
        train_rows, val_rows = (drawn(part.rows, run.experiment.seed) for part in (run.train, run.val))
        add_gate(
            load_bundle(draft), path, run.cache.pixels[train_rows], run.cache.pixels[val_rows],
            smallest_side=least_side([sample.path for sample in divided.select("val").samples], run.preparation.size),
            ages=ages(divided),
        )  # fmt: skip


def _fingerprints(divided: Manifest) -> Fingerprints:
    parts = [sample.split or "train" for sample in divided.samples]
    return fingerprints_of([sample.path for sample in divided.samples], parts)


def _logits(run: TrainingRun, cache: PixelCache, rows: Sequence[int]) -> Floats:
    return predict_logits(run.network, cache, rows, run.preparation, best_device()).double().numpy()


def _stressed_logits(run: TrainingRun, draws: int) -> Floats:
    """Return logits float64 [draws * n, C] of the validation images changed towards the other class."""
    rng = np.random.default_rng([run.experiment.seed, 5])
    parts = [
        _logits(run, replace(run.cache, pixels=images), range(len(images)))
        for images in stressed_validation(run, draws, rng)
    ]
    return np.concatenate(parts)


def _patients(divided: Manifest, cache: PixelCache, split: str) -> list[str]:
    return [
        sample.patient_id
        for sample, row in zip(divided.samples, cache.rows, strict=True)
        if sample.split == split and row >= 0
    ]


def summarise(
    run: TrainingRun,
    name: str,
    divided: Manifest,
    weights: LoadReport | None,
    history: Sequence[Row],
    seconds: float,
) -> dict[str, Any]:
    """Return the content of `run.json`: what the report says about a run beside its metrics."""
    experiment = run.experiment
    best = best_row(history, comparable=run.comparable)
    learned = [row for row in history if row["phase"] != "refit"]  # whose speed is that of features
    last = [row for row in learned if row["phase"] == learned[-1]["phase"]]
    return {
        "name": name,
        "title": experiment.title or name,
        "strategy": experiment.model.strategy,
        "network": experiment.model.network,
        "weights": "none" if weights is None else weights.source,
        "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
        "trainable_parameters": _trainable(run.network, experiment),
        "classes": list(CLASSES[experiment.train.classes]),
        "input_size": run.preparation.size,
        "aspect": run.preparation.aspect,
        "seconds": round(seconds, 1),
        "images_per_second": float(np.median([float(row["images_per_second"]) for row in last])),
        "epochs": len(history),
        "best_epoch": list(history).index(best) + 1,
        "data": {
            "source": divided.source.name,
            "synthetic": is_synthetic(divided),
            "splits": split_counts(divided),
        },
        "left_out": [{"path": path, "reason": reason} for path, reason in run.cache.failed.items()],
        "limits": limits(divided, stressed=experiment.train.stress > 0),
        "notices": notices(divided, history, best),
    }


def _trainable(network: Network, experiment: Experiment) -> int:
    if experiment.model.strategy == "frozen":
        return sum(parameter.numel() for parameter in network.head.parameters())
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def draw_augmentation(run: TrainingRun, path: Path) -> None:
    """Write a 5x5 mosaic of augmented training images as a PNG."""
    from PIL import Image

    experiment, size = run.experiment, run.preparation.size
    rng = np.random.default_rng(experiment.seed)
    chosen = rng.choice(len(run.train.rows), size=5, replace=len(run.train.rows) < 5)
    augmenter = Augmenter(experiment.augment, run.preparation, experiment.seed)
    positive = ~run.train.allowed[:, 0]
    exchange = Exchange(experiment.augment, experiment.seed, run.cache.pixels, run.train.rows, positive, run.lungs)
    sheet = np.zeros((5 * size, 5 * size), np.uint8)
    for i, index in enumerate(chosen):
        for epoch in range(5):
            canvas = torch.from_numpy(np.array(exchange.canvas(epoch, index)[0]))
            image = augmenter.drawn(epoch, index, exchange.crop(epoch, index))[1].apply(canvas[None], size)
            sheet[i * size : (i + 1) * size, epoch * size : (epoch + 1) * size] = image[0].numpy()
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
