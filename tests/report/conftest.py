"""Run, evaluation and comparison folders as the command line writes them, simulated from a seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from pneumoscope.report import run_report
from pneumoscope.statistics.reliability import reliability_diagram

SHA = "a3f1" * 16


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def chest(rng: np.random.Generator, side: int = 96) -> Image.Image:
    """A grey blob with two dark lungs."""
    y, x = np.mgrid[-1 : 1 : 1j * side, -1 : 1 : 1j * side]
    body = 0.75 * np.exp(-(x**2 + 0.6 * y**2))
    lungs = sum(np.exp(-(((x - c) / 0.3) ** 2 + (y / 0.6) ** 2) * 2) for c in (-0.45, 0.45))
    pixels = np.clip(body - 0.45 * lungs + 0.04 * rng.standard_normal((side, side)), 0, 1)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def simulate(seed: int, separation: float, n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.7
    logit = rng.normal(np.where(positive, separation, -separation), 1.6) + 0.4
    probability = 1 / (1 + np.exp(-logit))
    subtype = np.where(positive, np.where(rng.random(n) < 0.65, "bacterial", "viral"), "")
    table = pd.DataFrame(
        {
            "path": [f"test/{'PNEUMONIA' if p else 'NORMAL'}/image-{i:04d}.png" for i, p in enumerate(positive)],
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "label": np.where(positive, "PNEUMONIA", "NORMAL"),
            "subtype": subtype,
            "split": "test",
            "probability": probability,
            "predicted": np.where(probability >= 0.5, "PNEUMONIA", "NORMAL"),
            "threshold": 0.5,
            "abstained": False,
            "reason": "",
            "error": "",
            "logit": logit,
        }
    )
    table.loc[3, ["probability", "predicted", "logit"]] = [np.nan, "", np.nan]
    table.loc[3, "error"] = "the image is damaged (truncated)"
    table.loc[4, ["abstained", "reason"]] = [True, "not a frontal chest radiograph"]
    return table


def proportion(hits: int, n: int) -> dict[str, Any]:
    ends = binomtest(hits, n).proportion_ci(method="wilson")
    return {"value": hits / n, "ci95": [ends.low, ends.high], "method": "Wilson"}


def metrics_of(table: pd.DataFrame, source: str) -> dict[str, Any]:
    used = table[(table["error"] == "") & ~table["abstained"]]
    y, called = used["label"] == "PNEUMONIA", used["predicted"] == "PNEUMONIA"
    tp, fp, fn, tn = (int((a & b).sum()) for a, b in ((y, called), (~y, called), (y, ~called), (~y, ~called)))
    auroc = float(roc_auc_score(y, used["probability"]))
    return {
        "n": len(used),
        "n_patients": used["patient_id"].nunique(),
        "prevalence": float(y.mean()),
        "threshold": 0.5,
        "operating_point": "balanced",
        "metrics": {
            "accuracy": proportion(tp + tn, len(used)),
            "precision": proportion(tp, tp + fp),
            "recall": proportion(tp, tp + fn),
            "specificity": proportion(tn, tn + fp),
            "npv": proportion(tn, tn + fn),
            "auroc": {"value": auroc, "ci95": [auroc - 0.015, min(auroc + 0.012, 1)], "method": "DeLong"},
            "ece": {"value": 0.031, "ci95": [None, None], "method": "15 bins; no interval"},
        },
        "confusion": {"tn": tn, "fp": fp, "fn": fn, "tp": tp},
        "reliability": [
            cell.as_json() for cell in reliability_diagram(y, used["probability"], used["patient_id"].tolist())
        ],
        "subtype": {"metrics": {"auroc": {"value": 0.78, "ci95": [0.72, 0.83], "method": "DeLong"}}},
        "bundle": {"name": "bundle", "sha256": SHA},
        "data": {"source": source, "sha256": SHA},
        "not_analysed": 2,
    }


def make_evaluation(folder: Path, data: Path, seed: int = 1, separation: float = 2.2, explained: bool = True) -> Path:
    """Write an evaluation folder; images of wrong calls exist under `data`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    table = simulate(seed, separation)
    table.to_csv(folder / "predictions.csv", index=False)
    write_json(folder / "metrics.json", metrics_of(table, str(data)))
    wrong = table[(table["predicted"] != table["label"]) & (table["error"] == "")]
    for path in wrong["path"]:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        chest(rng).save(data / path)
    if explained:
        entries = []
        (folder / "explanations").mkdir(exist_ok=True)
        for i, case in enumerate(("true positive", "false negative", "false positive", "true negative")):
            original = chest(rng)
            original.save(folder / "explanations" / f"{i}.png")
            heat = Image.fromarray((rng.random((96, 96, 3)) * 255).astype(np.uint8))
            Image.blend(original.convert("RGB"), heat, 0.3).save(folder / "explanations" / f"{i}-overlay.png")
            entries.append(
                {
                    "image": f"{i}.png",
                    "overlay": f"{i}-overlay.png",
                    "path": table["path"][i],
                    "label": table["label"][i],
                    "probability": 0.9 - 0.2 * i,
                    "case": case,
                    "method": "Grad-CAM",
                    "layer": "blocks.5",
                    "verdict": "focused, mostly inside the lungs",
                }
            )
        write_json(folder / "explanations" / "index.json", entries)
    return folder


def run_facts(name: str, strategy: str) -> dict[str, Any]:
    count = {"NORMAL": 1200, "PNEUMONIA": 3500, "bacterial": 2280, "viral": 1220, "patients": 2500}
    small = {"NORMAL": 140, "PNEUMONIA": 390, "bacterial": 250, "viral": 140, "patients": 280}
    return {
        "name": name,
        "title": f"Pneumonia or normal: {name}",
        "strategy": strategy,
        "network": {"scratch": "custom_cnn", "frozen": "vgg16", "finetune": "tf_efficientnet_lite0"}[strategy],
        "weights": "none" if strategy == "scratch" else "ImageNet",
        "parameters": 4_652_008,
        "trainable_parameters": 1_281 if strategy == "frozen" else 4_652_008,
        "classes": ["NORMAL", "bacterial", "viral"],
        "input_size": 224,
        "aspect": "pad",
        "seconds": 754.2,
        "images_per_second": 88.4,
        "epochs": 10,
        "best_epoch": 8,
        "data": {
            "source": "kermany",
            "synthetic": False,
            "splits": {"train": count, "val": small, "test": small},
        },
        "limits": ["Children aged 1 to 5 from one hospital.", f"Trained once, with one seed, for {name}."],
    }


def make_history() -> pd.DataFrame:
    epochs = np.arange(1, 11)
    return pd.DataFrame(
        {
            "phase": ["head"] * 3 + ["finetune"] * 7,
            "epoch": [1, 2, 3, *range(1, 8)],
            "train_loss": 0.6 * np.exp(-epochs / 4) + 0.05,
            "val_loss": 0.5 * np.exp(-epochs / 4) + 0.09 + 0.002 * epochs,
            "val_auroc": 1 - 0.2 * np.exp(-epochs / 3),
            "val_accuracy": 0.96 - 0.3 * np.exp(-epochs / 3),
            "lr": 1e-3,
            "seconds": 75.0,
            "images_per_second": 88.0,
        }
    )


def make_run(
    folder: Path, data: Path, name: str, strategy: str = "finetune", *, seed: int = 1, separation: float = 2.2
) -> Path:
    """Write a whole run folder with its held-out evaluation."""
    make_evaluation(folder, data, seed + 100, separation + 0.2, explained=False)
    make_evaluation(folder / "evaluation", data, seed, separation)
    write_json(folder / "run.json", run_facts(name, strategy))
    write_json(
        folder / "environment.json",
        {
            "pneumoscope": "0.1.0",
            "python": "3.11.9",
            "platform": "Linux-x86_64",
            "torch": "2.14.0",
            "timm": "1.0.20",
            "lightning": "2.6.0",
            "cpu": "some processor",
            "cores": 8,
            "device": "cpu",
            "seed": 17,
            "started": "2026-01-02T03:04:05+00:00",
        },
    )
    write_json(
        folder / "bundle" / "card.json",
        {
            "calibration": {"temperature": 1.31},
            "operating_points": {"balanced": {"threshold": 0.5}},
            "population": {"description": "children aged 1 to 5, one hospital in Guangzhou"},
            "limits": ["Not tested on adults."],
        },
    )
    make_history().to_csv(folder / "history.csv", index=False)
    (folder / "config.toml").write_text(f'name = "{name}"\n[augment]\nrotation = 10\n', encoding="utf-8")
    rng = np.random.default_rng(seed)
    sheet = Image.new("L", (480, 480))
    for i in range(25):
        sheet.paste(chest(rng, 92), (96 * (i % 5) + 2, 96 * (i // 5) + 2))
    (folder / "figures").mkdir(exist_ok=True)
    sheet.save(folder / "figures" / "augmentation.png")
    return folder


def make_comparison(folder: Path, names: list[str]) -> Path:
    def pair(a: str, b: str, value: float, half: float, p: float) -> dict[str, Any]:
        difference = {"value": value, "ci95": [value - half, value + half], "method": "DeLong, paired"}
        return {
            "a": a,
            "b": b,
            "auroc": {"difference": difference, "p": p / 3, "p_holm": p, "method": "DeLong, paired"},
            "mcnemar": {
                "p": p / 3,
                "p_holm": p,
                "only_a_right": 21 + round(500 * value),
                "only_b_right": 21,
                "method": "mid-p",
            },
            "accuracy": {"difference": {**difference, "method": "bootstrap"}, "p": p / 3},
            "balanced_accuracy": {"difference": {**difference, "method": "bootstrap"}, "p": p / 3},
        }

    a, b, c = names
    pairs = [pair(a, b, -0.021, 0.008, 0.0003), pair(a, c, 0.004, 0.009, 0.4), pair(b, c, 0.011, 0.010, 0.09)]
    value = {
        "n": 398,
        "n_patients": 200,
        "evaluations": [{"name": n, "dir": n, "metrics": {}} for n in names],
    }
    write_json(folder / "comparison.json", {**value, "pairs": pairs})
    return folder


@pytest.fixture
def evaluation_folder(tmp_path: Path) -> Path:
    return make_evaluation(tmp_path / "evaluation", tmp_path / "data")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", tmp_path / "data", "efficientnet-lite0")


def make_three_runs(folder: Path) -> list[Path]:
    kinds = (
        ("custom-cnn", "scratch", 1.7),
        ("vgg16-frozen", "frozen", 2.2),
        ("efficientnet-finetuned", "finetune", 2.3),
    )
    return [
        make_run(folder / name, folder / "data", name, strategy, seed=seed, separation=separation)
        for seed, (name, strategy, separation) in enumerate(kinds, 1)
    ]


def make_two_runs(folder: Path) -> list[Path]:
    return [make_run(folder / name, folder / "data", name, seed=7) for name in ("custom-cnn", "vgg16-frozen")]


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    return make_two_runs(tmp_path)


@pytest.fixture
def comparison_folder(tmp_path: Path) -> Path:
    return make_comparison(tmp_path / "comparison", ["custom-cnn", "vgg16-frozen", "efficientnet-finetuned"])


@pytest.fixture(scope="module")
def one_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of one run, drawn once, which points to a page of its data; `../run` is the run."""
    folder = tmp_path_factory.mktemp("one")
    data = folder / "described"
    data.mkdir()
    (data / "index.html").write_text("x", encoding="utf-8")
    run = make_run(folder / "run", folder / "data", "efficientnet-lite0")
    return run_report.write([run], folder / "out", data=data).parent


@pytest.fixture(scope="module")
def two_reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of two runs, drawn once: no comparison, the second synthetic, one augmentation sheet."""
    folder = tmp_path_factory.mktemp("two")
    runs = make_two_runs(folder)
    replace_keys(runs[1] / "run.json", data={"source": "made", "synthetic": True, "splits": {}})
    shutil.copyfile(*(run / "figures" / "augmentation.png" for run in runs))
    return run_report.write(runs, folder / "out").parent


@pytest.fixture(scope="module")
def three_reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of three runs and their comparison, drawn once."""
    folder = tmp_path_factory.mktemp("three")
    runs = make_three_runs(folder)
    comparison = make_comparison(folder / "comparison", [run.name for run in runs])
    return run_report.write(runs, folder / "out", comparison).parent


def replace_keys(path: Path, **values: Any) -> None:
    """Replace keys of a JSON object on disk."""
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)


@pytest.fixture
def change_json() -> Callable[..., None]:
    """Return a function that replaces keys of a JSON object on disk."""
    return replace_keys
