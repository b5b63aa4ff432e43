"""From scratch, frozen and fine-tuned: what learns, at which rate, on what."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pneumoscope.config import Experiment
from pneumoscope.data.cache import PixelCache, open_cache
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import divide
from pneumoscope.errors import DataError
from pneumoscope.networks.network import freeze, stages
from pneumoscope.networks.transforms import prepare
from pneumoscope.records import NORMAL
from pneumoscope.training.dataset import FeatureDataset
from pneumoscope.training.experiment import make_network
from pneumoscope.training.fit import Hardware, Phase, fit
from pneumoscope.training.kept import Row, kept_row
from pneumoscope.training.strategy import TrainingRun, make_part, optimiser_groups, sizes, train_network

Make = Callable[..., Experiment]
LITE0 = {"network": "tf_efficientnet_lite0", "weights": "offline"}
CPU = Hardware(accelerator="cpu")


def figures(rows: list[Row]) -> list[Row]:
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


def prepared(experiment: Experiment, manifest: Manifest, folder: Path) -> TrainingRun:
    """What `run_experiment` hands to `train_network`, with a cache of its own."""
    divided = divide(manifest, experiment.data, experiment.seed)
    cache = open_cache(divided.samples, canvas=40, aspect="squash", root=folder / "cache")
    torch.manual_seed(experiment.seed)
    network, _, preparation = make_network(experiment)
    train, val = (make_part(divided.samples, cache, split, experiment) for split in ("train", "val"))
    return TrainingRun(experiment, network, preparation, cache, train, val, folder / "run", CPU)


def state(run: TrainingRun) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in run.network.state_dict().items()}


def changed(before: dict[str, Tensor], run: TrainingRun) -> set[str]:
    return {key for key, value in run.network.state_dict().items() if not torch.equal(value, before[key])}


# --- the three strategies ---------------------------------------------------------------------------------


def test_from_scratch_everything_learns(chest_manifest: Manifest, small_experiment: Make, tmp_path: Path) -> None:
    run = prepared(small_experiment(train={"epochs": 1}), chest_manifest, tmp_path)
    before = state(run)
    rows = train_network(run)
    assert [(row["phase"], row["epoch"]) for row in rows] == [("scratch", 1)]
    assert changed(before, run) == set(before)


def test_frozen_the_head_alone_learns(chest_manifest: Manifest, small_experiment: Make, tmp_path: Path) -> None:
    run = prepared(small_experiment(model={**LITE0, "strategy": "frozen"}), chest_manifest, tmp_path)
    before = state(run)
    rows = train_network(run)
    assert [(row["phase"], row["epoch"]) for row in rows] == [("head", 1), ("head", 2), ("head", 3)]
    assert changed(before, run) == {"head.1.weight", "head.1.bias"}


def test_cached_features_train_the_head_like_features_computed_afresh(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    experiment = small_experiment(model={**LITE0, "strategy": "frozen"}, train={"head_epochs": 4})
    rows = train_network(prepared(experiment, chest_manifest, tmp_path / "a"))
    again = prepared(experiment, chest_manifest, tmp_path / "b")
    shutil.copytree(tmp_path / "a" / "cache" / "features", tmp_path / "b" / "cache" / "features")
    assert figures(train_network(again)) == figures(rows), "from the file"

    fresh = prepared(experiment, chest_manifest, tmp_path / "c")
    network = fresh.network.eval()

    def features(rows: list[int]) -> Tensor:
        canvases = torch.from_numpy(np.array(fresh.cache.pixels[rows]))
        with torch.no_grad():
            return torch.cat([network.embed(prepare(part, fresh.preparation)) for part in canvases.split(8)])

    phase = Phase(
        "head",
        4,
        FeatureDataset(features(fresh.train.rows), fresh.train.allowed, fresh.train.weights),
        FeatureDataset(features(fresh.val.rows), fresh.val.allowed, fresh.val.weights),
    )
    rate = experiment.train.head_rate
    groups = [
        {"params": [network.head[1].weight], "lr": rate, "weight_decay": experiment.train.weight_decay},
        {"params": [network.head[1].bias], "lr": rate, "weight_decay": 0.0},
    ]
    by_hand = fit(
        (network.head, groups, ()), phase, experiment.train, tmp_path / "hand", seed=0, hardware=CPU, resume=False
    )
    for ours, theirs in zip(rows, by_hand, strict=True):
        for key in ("train_loss", "val_loss", "val_auroc", "val_accuracy"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5)


def test_augmentation_that_changes_nothing_gives_the_frozen_run_on_features(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    """With augmentation the whole network runs on images; noise far under one grey level is none."""
    model = {**LITE0, "strategy": "frozen"}
    experiment = small_experiment(model=model, augment={"noise": 1e-6}, prepare={"size": 40})
    experiment_plain = small_experiment(model=model, prepare={"size": 40})
    on_images = train_network(prepared(experiment, chest_manifest, tmp_path / "b"))
    plain = train_network(prepared(experiment_plain, chest_manifest, tmp_path / "c"))
    for ours, theirs in zip(on_images, plain, strict=True):
        for key in ("train_loss", "val_loss", "val_auroc", "lr"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), key


def test_finetuned_the_head_first_then_the_last_stages(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    experiment = small_experiment(
        model={**LITE0, "strategy": "finetune", "unfreeze": 2}, train={"epochs": 1, "head_epochs": 2}
    )
    run = prepared(experiment, chest_manifest, tmp_path)
    before = state(run)
    rows = train_network(run)
    assert [(row["phase"], row["epoch"]) for row in rows] == [("head", 1), ("head", 2), ("finetune", 1)]
    last = stages(run.network)[-2:]
    free = {name for stage in last for name in stage}
    parameters = {name for name, _ in run.network.named_parameters()}
    moved = changed(before, run)
    assert moved & parameters == free | {"head.1.weight", "head.1.bias"}
    modules = {name.rsplit(".", 1)[0] for name in free}
    assert {name.rsplit(".", 1)[0] for name in moved - parameters} <= modules


def test_finetuning_starts_from_the_trained_head(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    """With a rate of nearly nothing the fine-tune phase scores what the best head scored."""
    train = {"epochs": 1, "head_epochs": 6, "rate": 1e-12, "head_rate": 0.02}
    experiment = small_experiment(model={**LITE0, "strategy": "finetune", "freeze_batchnorm": True}, train=train)
    rows = train_network(prepared(experiment, chest_manifest, tmp_path))
    head = [row for row in rows if row["phase"] == "head"]
    best = kept_row(head)
    assert rows[-1]["val_auroc"] == pytest.approx(best["val_auroc"])
    assert rows[-1]["val_loss"] == pytest.approx(best["val_loss"], rel=1e-4)


# --- rates ------------------------------------------------------------------------------------------------


def test_the_head_may_learn_again_in_the_end(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pneumoscope.training.kept.NEAR", 1.0)  # the last phase is never clearly worse

    def trained(name: str, again: int) -> tuple[TrainingRun, list[Row]]:
        train = {"epochs": 1, "head_epochs": 1, "refit_epochs": again}
        model = {**LITE0, "strategy": "finetune", "unfreeze": 1}
        run = prepared(small_experiment(model=model, train=train), chest_manifest, tmp_path / name)
        return run, train_network(run)

    (once, short), (again, long) = trained("once", 0), trained("again", 2)
    assert [row["phase"] for row in short] == ["head", "finetune"]
    assert [row["phase"] for row in long] == ["head", "finetune", "refit", "refit"]
    assert figures(long[:2]) == figures(short)
    assert changed(state(once), again) == {"head.1.weight", "head.1.bias"}
    free = {name for name, parameter in again.network.named_parameters() if parameter.requires_grad}
    assert free == {name for name, parameter in once.network.named_parameters() if parameter.requires_grad}
    with pytest.raises(ValidationError, match="refit_epochs"):
        small_experiment(train={"refit_epochs": 1})


def test_each_free_parameter_is_in_one_group_with_its_rate(small_experiment: Make) -> None:
    experiment = small_experiment(model=LITE0, train={"rate": 1.0, "layer_decay": 0.5, "weight_decay": 0.1})
    network, _, _ = make_network(experiment)
    freeze(network, 2)
    groups = optimiser_groups(network, experiment, 1.0)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    free = [id(parameter) for parameter in network.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(free)
    assert len(set(grouped)) == len(grouped)
    parameters = dict(network.named_parameters())
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    ordered = stages(network)
    assert {rates[id(parameters[name])] for name in ordered[-1]} == {0.5}
    assert {rates[id(parameters[name])] for name in ordered[-2]} == {0.25}
    assert rates[id(network.head[1].weight)] == rates[id(network.head[1].bias)] == 1.0
    for group in groups:
        dimensions = {parameter.ndim > 1 for parameter in group["params"]}
        assert dimensions == {group["weight_decay"] > 0}, "no decay on biases and norms, on all else"


def test_without_decay_all_rates_are_one(small_experiment: Make) -> None:
    experiment = small_experiment(train={"layer_decay": 1.0})
    network, _, _ = make_network(experiment)
    freeze(network, None)
    assert {group["lr"] for group in optimiser_groups(network, experiment, 0.3)} == {0.3}


# --- splits -----------------------------------------------------------------------------------------------


@pytest.fixture
def divided(chest_manifest: Manifest, small_experiment: Make, tmp_path: Path) -> tuple[Manifest, PixelCache]:
    manifest = divide(chest_manifest, small_experiment().data, 0)
    return manifest, open_cache(manifest.samples, canvas=40, aspect="squash", root=tmp_path)


@pytest.mark.parametrize("imbalance", ["none", "weights", "sampler"])
def test_imbalance_is_met_in_one_way_at_a_time(
    divided: tuple[Manifest, PixelCache], small_experiment: Make, imbalance: str
) -> None:
    experiment = small_experiment(train={"imbalance": imbalance})
    part = make_part(divided[0].samples, divided[1], "train", experiment)
    assert (np.ptp(part.weights) > 0) == (imbalance == "weights")
    assert (part.balance is not None) == (imbalance == "sampler")
    val = make_part(divided[0].samples, divided[1], "val", experiment)
    assert np.ptp(val.weights) > 0, "validation loss counts both classes alike, however training does"
    assert val.balance is None


def test_a_part_holds_the_rows_of_its_samples(divided: tuple[Manifest, PixelCache], small_experiment: Make) -> None:
    manifest, cache = divided
    part = make_part(manifest.samples, cache, "val", small_experiment())
    chosen = [index for index, sample in enumerate(manifest.samples) if sample.split == "val"]
    assert part.rows == [cache.rows[index] for index in chosen]
    assert part.allowed[:, 0].tolist() == [manifest.samples[index].label == NORMAL for index in chosen]


def test_a_split_of_one_class_is_an_error(divided: tuple[Manifest, PixelCache], small_experiment: Make) -> None:
    manifest, cache = divided
    unreadable = PixelCache(
        cache.pixels,
        tuple(
            -1 if sample.label == NORMAL and sample.split == "val" else row
            for sample, row in zip(manifest.samples, cache.rows, strict=True)
        ),
        {},
        cache.folder,
    )
    with pytest.raises(DataError, match="'val'"):
        make_part(manifest.samples, unreadable, "val", small_experiment())


def test_training_may_begin_small() -> None:
    experiment = Experiment.model_validate({"prepare": {"size": 96}, "train": {"epochs": 5, "sizes": (32, 64, 96)}})
    assert sizes(experiment, 5) == [32, 32, 64, 64, 96]
    assert sizes(Experiment.model_validate({"prepare": {"size": 96}}), 3) == [96, 96, 96]


@pytest.mark.parametrize("wrong", [(32, 64), (96, 64, 96), (16, 32, 64, 96)])
def test_sizes_ascend_to_the_one_in_use(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"train\.sizes"):
        Experiment.model_validate({"prepare": {"size": 96}, "train": {"epochs": 3, "sizes": wrong}})
