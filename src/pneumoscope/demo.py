"""The main job on synthetic radiographs: three strategies trained, tested, compared, explained, reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.config import Experiment
from pneumoscope.data.checks.quality import check
from pneumoscope.data.describe import describe
from pneumoscope.data.sources import open_source
from pneumoscope.errors import StorageError
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.evaluation.pairs import compare_folders
from pneumoscope.explanation.explain import explain_evaluation
from pneumoscope.files import out_folder
from pneumoscope.phantom.synthetic import write_dataset
from pneumoscope.predict import Classifier
from pneumoscope.report import data_page, evaluation_report, run_report
from pneumoscope.training.experiment import Console, run_experiment

_AUGMENT: Mapping[str, Any] = {
    "rotation": 8.0, "crop_scale": (0.6, 1.0), "crop_ratio": (0.85, 1.18), "flip": 0.5,
    "brightness": 0.1, "contrast": 0.2, "gamma": 0.2, "noise": 0.02,
}  # fmt: skip
_LITE0: Mapping[str, Any] = {"network": "tf_efficientnet_lite0", "weights": "offline"}
_DATA: Mapping[str, Any] = {"val_fraction": 0.15}
_PREPARE: Mapping[str, Any] = {"size": 128, "canvas": 160}


def experiments(seed: int) -> dict[str, Experiment]:
    """Return the three experiments of the demo, by name."""
    raw: dict[str, dict[str, Any]] = {
        "custom-cnn": {
            "title": "Custom CNN, from scratch",
            "augment": _AUGMENT,
            "model": {"dropout": 0.2},
            "train": {"epochs": 10, "rate": 2e-3, "ema": 0.98},
        },
        "lite0-frozen": {
            "title": "EfficientNet-Lite0, frozen feature extractor",
            "model": {**_LITE0, "strategy": "frozen"},
            "train": {"head_epochs": 30},
        },
        "lite0-finetuned": {
            "title": "EfficientNet-Lite0, fine-tuned",
            "augment": _AUGMENT,
            "model": {**_LITE0, "strategy": "finetune"},
            "train": {"epochs": 7, "head_epochs": 10, "rate": 1e-3, "layer_decay": 0.9, "ema": 0.98},
        },
    }
    return {
        name: Experiment.model_validate({"seed": seed, "data": _DATA, "prepare": _PREPARE, **values})
        for name, values in raw.items()
    }


def run_demo(out: Path, *, patients: int, seed: int, console: Console) -> Path:
    """Run the demo into an empty folder and return the path of its report.

    Raises:
        StorageError: the folder is not empty.
    """
    if out.is_dir() and any(out.iterdir()):
        raise StorageError("is not empty", path=out, remedy="remove it or choose another --out")
    out_folder(out)
    console(f"drawing {patients} synthetic patients")
    source = open_source(write_dataset(out / "data", patients=patients, seed=seed, size=224))
    describe(source, out / "data-page", seed=seed)
    check(source, out / "data-page")
    data_page.write_page(out / "data-page")
    runs = []
    for name, experiment in experiments(seed).items():
        console(f"training {experiment.title}")
        run_experiment(experiment, source, out / name, name=name, console=console)
        evaluate_run(out / name, name, seed, console)
        runs.append(out / name)
    console("comparing")
    compare_folders([run / "evaluation" for run in runs], out / "comparison", seed=seed)
    return run_report.write(runs, out / "report", out / "comparison", out / "data-page")


def evaluate_run(run: Path, name: str, seed: int, console: Console, each: int = 2) -> None:
    """Evaluate a run on the test images of its own split, with explanations."""
    console("testing")
    classifier = Classifier.load(run / "bundle")
    evaluate(classifier, open_source(run / "split.csv").select("test"), run / "evaluation", seed=seed)
    explain_evaluation(classifier, run / "evaluation", each)
    evaluation_report.write(run / "evaluation", name)
