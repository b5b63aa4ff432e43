"""Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pneumoscope.config import Experiment
    from pneumoscope.data.manifest import Manifest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real radiographs; the test is skipped where they are absent."""
    folder = Path(os.environ.get("PNEUMOSCOPE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real radiographs are not at {folder}; set PNEUMOSCOPE_DATA to their folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Decoded pixels of the tests lie in a folder of their own, never in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic radiographs in the Kaggle layout: 48 patients, one or two images each, 64 pixels."""
    from pneumoscope.data.synthetic import write_dataset

    return write_dataset(
        tmp_path_factory.mktemp("chests") / "data", patients=48, seed=7, size=64, max_images_per_patient=2
    )


@pytest.fixture(scope="session")
def chest_manifest(chests: Path) -> Manifest:
    """The manifest of `chests`."""
    from pneumoscope.data.sources import open_source

    return open_source(chests)


@pytest.fixture(scope="session")
def small_experiment() -> Callable[..., Experiment]:
    """Make an experiment that trains in a second; sections given by name are merged over the defaults."""
    from pneumoscope.config import Experiment

    def make(seed: int = 0, **sections: dict[str, Any]) -> Experiment:
        raw: dict[str, Any] = {
            "data": {"val_fraction": 0.2},
            "prepare": {"size": 32, "canvas": 40},
            "model": {"dropout": 0.0},
            "train": {"epochs": 3, "head_epochs": 3, "batch_size": 16, "classes": 3},
        }
        merged = {key: {**raw.get(key, {}), **sections.get(key, {})} for key in {*raw, *sections}}
        return Experiment.model_validate({"seed": seed, **merged})

    return make


@pytest.fixture(scope="session")
def trained(
    chest_manifest: Manifest, small_experiment: Callable[..., Experiment], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run folder of a custom CNN trained for three epochs on `chests`; read it, do not write into it."""
    from pneumoscope.experiment import run_experiment

    run = tmp_path_factory.mktemp("trained") / "run"
    run_experiment(small_experiment(augment={"flip": 0.5}), chest_manifest, run, name="small")
    return run


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    """Write an untrained bundle with lively batch-norm statistics: `make_bundle(folder, network, classes, size)`."""
    import torch

    from pneumoscope.bundle import save_bundle
    from pneumoscope.models.network import build_network, round_weights
    from pneumoscope.preparation import Preparation

    def make(
        folder: Path,
        network: str = "custom-cnn",
        classes: int = 3,
        size: int = 32,
        seed: int = 0,
        mirror: bool = False,
        **sections: Any,
    ) -> Path:
        torch.manual_seed(seed)
        built, usual = build_network(network, classes=classes)
        for module in built.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        round_weights(built)
        names = ["normal", "pneumonia"] if classes == 2 else ["normal", "bacterial", "viral"]
        card = {
            "name": "untrained",
            "network": {"name": network, "classes": names},
            "calibration": {"temperature": 1.5, "bias": 0.0},
            "operating_points": {"balanced": {"threshold": 0.5}, "triage": {"threshold": 0.2}},
            "operating_point": "balanced",
            **sections,
        }
        save_bundle(folder, built, Preparation(size, size + 8, "squash", usual["mean"], usual["std"], mirror), card)
        return folder

    return make
