"""One experiment from source to evaluated bundle: its files, and that it can be repeated and resumed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.bundle.calibration import fit_calibration
from pneumoscope.config import Experiment, load_experiment
from pneumoscope.data.cache import open_cache
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.errors import ConfigError, DataError, TrainingError, WeightsError
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.images import read_image
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, PNEUMONIA, Sample
from pneumoscope.training.experiment import Console, run_experiment
from pneumoscope.training.features import predict_logits
from pneumoscope.training.kept import NEAR, kept_row

Make = Callable[..., Experiment]


def history(run: Path) -> pd.DataFrame:
    """The history without what a clock says."""
    return pd.read_csv(run / "history.csv").drop(columns=["seconds", "images_per_second"])


def identity(run: Path) -> dict[str, Any]:
    """What a bundle's SHA-256 is taken over, and that of its weights."""
    card = load_bundle(run / "bundle").card
    keys = ("network", "preparation", "calibration", "operating_points", "operating_point", "weights", "sha256")
    return {key: card[key] for key in keys}


@pytest.fixture
def signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)  # Lightning ignores further ones


# --- files ------------------------------------------------------------------------------------------------


def test_a_run_holds_the_files_of_the_contract(trained: Path) -> None:
    expected = {"bundle", "metrics.json", "history.csv", "config.toml", "environment.json"}
    assert expected <= {path.name for path in trained.iterdir()}
    assert {path.name for path in (trained / "bundle").iterdir()} == {
        "card.json", "fingerprints.safetensors", "gate.safetensors", "model.onnx", "weights.safetensors",
    }  # fmt: skip
    mosaic = Image.open(trained / "figures" / "augmentation.png")
    assert mosaic.size == (5 * 32, 5 * 32)


def test_the_config_repeats_the_experiment(trained: Path, small_experiment: Make) -> None:
    assert load_experiment(trained / "config.toml") == small_experiment(augment={"flip": 0.5})
    assert tomllib.loads((trained / "config.toml").read_text())["train"]["weight_decay"] == 0.02, "defaults spelled out"


def test_the_environment_says_where_and_with_what(trained: Path) -> None:
    found = json.loads((trained / "environment.json").read_text())
    assert found["torch"] == version("torch")
    assert {"pneumoscope", "python", "timm", "lightning", "numpy", "cpu", "cores", "device", "started"} <= set(found)
    assert found["seed"] == 0
    assert re.fullmatch(r"[0-9a-f]{64}", found["config_sha256"])


def test_the_split_keeps_patients_whole_and_can_be_read_back(trained: Path, chest_manifest: Manifest) -> None:
    split = open_source(trained / "split.csv")
    assert len(split) == len(chest_manifest)
    parts = [{sample.patient_id for sample in split.select(name).samples} for name in ("train", "val", "test")]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not parts[i] & parts[j]
    marked = {sample.path for sample in chest_manifest.select("test").samples}
    assert {str(Path(sample.path).resolve()) for sample in split.select("test").samples} == marked


def test_the_validation_figures_are_those_of_the_bundle(trained: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(trained / "bundle")
    val = open_source(trained / "split.csv").select("val")
    again = evaluate(classifier, val, tmp_path)
    written = json.loads((trained / "metrics.json").read_text())
    assert written["metrics"]["auroc"] == again["metrics"]["auroc"]
    assert written["confusion"] == again["confusion"]
    evidence = classifier.bundle.card["evidence"]["validation"]
    assert evidence["metrics"]["auroc"]["value"] == written["metrics"]["auroc"]["value"]


def test_the_bundle_is_calibrated_on_validation_images_as_rounded(trained: Path) -> None:
    bundle = load_bundle(trained / "bundle")
    val = open_source(trained / "split.csv").select("val").samples
    cache = open_cache(val, canvas=40, aspect="squash")
    logits = predict_logits(bundle.network, cache, cache.rows, bundle.preparation, torch.device("cpu"))
    y = [sample.label == PNEUMONIA for sample in val]
    fitted = fit_calibration(logits.double().numpy(), y)
    assert bundle.calibration == pytest.approx((fitted.temperature, fitted.bias), rel=1e-3)
    assert bundle.card["calibration"]["n"] == len(val)
    assert set(bundle.card["operating_points"]) == {"balanced", "triage", "rule-in"}


def test_under_stress_the_calibration_is_that_of_images_in_the_other_style(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    """Calibration alone differs: the weights are those of the run without stress."""
    train = {"epochs": 1, "head_epochs": 1}
    plain, stressed = (small_experiment(train={**train, "stress": draws}) for draws in (0, 2))
    for name, experiment in (("plain", plain), ("stressed", stressed)):
        run_experiment(experiment, chest_manifest, tmp_path / name, name=name)
    cards = {name: load_bundle(tmp_path / name / "bundle").card for name in ("plain", "stressed")}
    assert cards["plain"]["weights"]["sha256"] == cards["stressed"]["weights"]["sha256"]
    assert cards["stressed"]["calibration"]["n"] == 2 * cards["plain"]["calibration"]["n"]
    assert cards["stressed"]["calibration"]["prevalence"] == 0.5
    assert "2 times changed in style and framing towards the other class" in cards["stressed"]["calibration"]["method"]
    assert cards["stressed"]["calibration"]["bias"] != cards["plain"]["calibration"]["bias"]
    metrics = json.loads((tmp_path / "stressed" / "metrics.json").read_text())
    assert metrics["stressed"]["draws"] == 2
    assert "stressed" not in json.loads((tmp_path / "plain" / "metrics.json").read_text())


def test_the_card_tells_who_was_seen_and_what_it_cannot_do(trained: Path, chest_manifest: Manifest) -> None:
    card = load_bundle(trained / "bundle").card
    split = pd.read_csv(trained / "split.csv")
    train = split[split["split"] == "train"]
    assert card["population"]["images"] == len(train)
    assert card["population"]["patients"] == train["patient_id"].nunique()
    assert card["population"]["synthetic"] is True
    assert card["limits"][0].startswith("Trained on computer-generated images")
    assert (
        card["training"]["data"]["splits"]["val"]["patients"] == split[split["split"] == "val"]["patient_id"].nunique()
    )
    assert card["training"]["weights"] is None
    rows = pd.read_csv(trained / "history.csv")
    assert card["training"]["best"]["val_auroc"] == pytest.approx(rows["val_auroc"].max(), abs=NEAR)


def test_the_summary_agrees_with_the_other_files(trained: Path) -> None:
    summary = json.loads((trained / "run.json").read_text())
    rows = pd.read_csv(trained / "history.csv")
    assert summary["epochs"] == len(rows) == 3
    assert summary["best_epoch"] == kept_row(rows.to_dict("records"))["epoch"]
    assert summary["parameters"] == load_bundle(trained / "bundle").card["network"]["parameters"]
    assert summary["trainable_parameters"] == summary["parameters"]
    assert summary["left_out"] == []


# --- repeat and resume ------------------------------------------------------------------------------------


def test_one_seed_gives_one_bundle_and_another_another(
    trained: Path, chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    run_experiment(small_experiment(augment={"flip": 0.5}), chest_manifest, tmp_path / "a", name="small")
    assert history(tmp_path / "a").equals(history(trained))
    same, other = load_bundle(tmp_path / "a" / "bundle").sha256, tmp_path / "b"
    assert same == load_bundle(trained / "bundle").sha256
    run_experiment(small_experiment(1, augment={"flip": 0.5}), chest_manifest, other, name="small")
    assert load_bundle(other / "bundle").sha256 != same
    assert not history(other).equals(history(trained))


@pytest.mark.usefixtures("signals")
def test_interrupted_and_resumed_it_is_the_unbroken_run(
    trained: Path, chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    experiment = small_experiment(augment={"flip": 0.5})
    with pytest.raises(TrainingError, match="go on from the last whole epoch with --resume"):
        run_experiment(experiment, chest_manifest, tmp_path, name="small", console=Console(report=interrupt))
    assert not (tmp_path / "bundle").exists()
    run_experiment(experiment, chest_manifest, tmp_path, name="small", resume=True)
    assert history(tmp_path).equals(history(trained))
    assert identity(tmp_path) == identity(trained)
    # Resuming what is finished trains nothing and changes nothing.
    run_experiment(experiment, chest_manifest, tmp_path, name="small", resume=True)
    assert identity(tmp_path) == identity(trained)


def test_a_folder_belongs_to_one_experiment_on_one_set_of_images(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    experiment = small_experiment(train={"epochs": 1})
    run_experiment(experiment, chest_manifest, tmp_path, name="small")
    identity = load_bundle(tmp_path / "bundle").sha256
    with pytest.raises(ConfigError, match="holds a run already"):
        run_experiment(experiment, chest_manifest, tmp_path, name="small")
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match="holds a run already"):
        run_experiment(experiment, chest_manifest, tmp_path, name="small")
    with pytest.raises(ConfigError, match="other settings"):
        run_experiment(small_experiment(7, train={"epochs": 1}), chest_manifest, tmp_path, name="small", resume=True)
    fewer = replace(chest_manifest, samples=chest_manifest.samples[1:])
    with pytest.raises(ConfigError, match="on other images"):
        run_experiment(experiment, fewer, tmp_path, name="small", resume=True)
    assert load_bundle(tmp_path / "bundle").sha256 == identity
    with pytest.raises(ConfigError, match="nothing to resume"):
        run_experiment(experiment, chest_manifest, tmp_path / "new", name="small", resume=True)


def test_two_processes_do_not_train_in_one_folder(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(ConfigError, match="another process is training here"):
        run_experiment(small_experiment(), chest_manifest, tmp_path, name="small")
    assert not (tmp_path / "experiment.json").exists()


# --- what comes in ----------------------------------------------------------------------------------------


def test_an_unreadable_image_is_left_out_and_told(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = Sample(str(tmp_path / "bad.png"), "bad", NORMAL, split="train")
    manifest = replace(chest_manifest, samples=(*chest_manifest.samples, bad))
    said: list[str] = []
    summary = run_experiment(
        small_experiment(train={"epochs": 1}),
        manifest,
        tmp_path / "run",
        name="small",
        console=Console(say=said.append),
    )
    assert [item["path"] for item in summary["left_out"]] == [bad.path]
    assert any("left out" in line and "bad.png" in line for line in said)


def test_pretrained_weights_are_on_the_record(chest_manifest: Manifest, small_experiment: Make, tmp_path: Path) -> None:
    experiment = small_experiment(
        model={"network": "tf_efficientnet_lite0", "weights": "offline", "strategy": "frozen"}, train={"head_epochs": 2}
    )
    summary = run_experiment(experiment, chest_manifest, tmp_path, name="lite0")
    weights = load_bundle(tmp_path / "bundle").card["training"]["weights"]
    assert re.fullmatch(r"[0-9a-f]{64}", weights["sha256"])
    assert summary["weights"] == weights["source"]
    assert "Apache-2.0" in weights["source"]
    assert summary["trainable_parameters"] == 1280 * 3 + 3
    assert load_bundle(tmp_path / "bundle").preparation.mean == (0.5, 0.5, 0.5), "what the weights expect"


def test_what_is_wrong_is_told_before_anything_is_trained(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    sick = chest_manifest.where(lambda sample: sample.label == PNEUMONIA)
    with pytest.raises(DataError, match="no NORMAL images"):
        run_experiment(small_experiment(), sick, tmp_path / "a", name="small")
    nowhere = small_experiment(model={"network": "resnet18", "weights": str(tmp_path / "w.pth")})
    with pytest.raises(WeightsError, match="no such weights file"):
        run_experiment(nowhere, chest_manifest, tmp_path / "b", name="small")
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_augmentation_is_drawn_from_the_seed(trained: Path) -> None:
    mosaic = np.asarray(Image.open(trained / "figures" / "augmentation.png"))
    tiles = mosaic.reshape(5, 32, 5, 32).swapaxes(1, 2)
    for row in tiles:  # flipping alone was asked for: each tile is the first or its mirror image
        first = row[0]
        assert all(np.array_equal(tile, first) or np.array_equal(tile, first[:, ::-1]) for tile in row)


def test_training_knows_where_the_lungs_are_and_finds_them_once(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    told: list[str] = []
    experiment = small_experiment(augment={"surroundings": 1.0}, train={"attention": 1.0, "epochs": 1})
    for name in ("one", "two"):
        run_experiment(experiment, chest_manifest, tmp_path / name, name="lungs", console=Console(say=told.append))
    assert sum("finding the lungs" in line for line in told) == 1
    (file,) = (tmp_path / "cache").glob("*/lungs-*.npy")
    masks = np.load(file)
    with_lungs = (masks > 127).any(axis=(1, 2)).mean()
    assert with_lungs > 0.5
    plain = run_experiment(small_experiment(train={"epochs": 1}), chest_manifest, tmp_path / "plain", name="plain")
    assert plain["best_epoch"] == 1
    weights = [load_file(tmp_path / name / "bundle" / "weights.safetensors") for name in ("one", "two", "plain")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_prediction_cuts_down_to_the_lungs_as_training_did(
    chest_manifest: Manifest, small_experiment: Make, tmp_path: Path
) -> None:
    experiment = small_experiment(prepare={"crop": "lungs"}, train={"epochs": 1})
    run_experiment(experiment, chest_manifest, tmp_path / "run", name="cropped")
    classifier = Classifier.load(tmp_path / "run" / "bundle")
    assert classifier.bundle.card["preparation"]["crop"] == "lungs"
    samples = chest_manifest.samples[:12]
    cut, whole = (open_cache(samples, canvas=40, aspect="squash", crop=crop) for crop in (classifier.crop, None))
    used = np.stack([classifier.canvas(read_image(sample.path, at_least=80)) for sample in samples])
    np.testing.assert_array_equal(used, cut.pixels[list(cut.rows)])
    assert (used != whole.pixels[list(whole.rows)]).any(axis=(1, 2)).mean() > 0.5
