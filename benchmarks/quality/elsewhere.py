"""Which figure of the validation part orders networks as a machine does that none of them has seen?

    python benchmarks/quality/elsewhere.py --data ../shared/data/kermany224 --out runs/elsewhere [--cluster "cluster 2"]

One machine cluster (texture and overlays, no labels) is left out: it is the test. The others are divided by patient
into training and validation. Each recipe changes one small ResNet in the named settings alone. Every figure that could
choose a network is taken on its validation part; beside it stand AUROC and balanced accuracy on the machine left out,
and under corruptions, at three thresholds. Spearman's rank correlation says which figure orders them.
Complete runs are not repeated. Writes results/elsewhere.json and prints Markdown. `--images 60 --epochs 1` tries it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from corruptions import CORRUPTIONS, corrupt
from scipy.stats import spearmanr
from shift import Images, images_of
from study import changed

from pneumoscope.bundle.calibration import pneumonia_logit
from pneumoscope.config import DataConfig, Experiment, load_experiment
from pneumoscope.data.acquisition import with_machines
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.data.split import divide_by_site
from pneumoscope.evaluation.adjusted import shortcut_of
from pneumoscope.evaluation.stress import CALIBRATING, STRESSES, Labelled, stressed
from pneumoscope.files import out_folder, write_json
from pneumoscope.images.preparation import Pixels
from pneumoscope.lungs import boxes
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, PNEUMONIA, Bools, FloatArray, Floats
from pneumoscope.statistics.auc import auroc, auroc_estimate, ranking, weighted_areas
from pneumoscope.statistics.cohort import cohort
from pneumoscope.training.experiment import run_experiment

HERE = Path(__file__).parent
BASE = HERE.parents[1] / "configs" / "resnet20-styles.toml"
SEVERITY = 3
NONE = {"style": 0.0, "lungs": 0.0, "framing": 0.0, "transplant": 0.0, "surroundings": 0.0, "blank": 0.0}
RECIPES: Mapping[str, dict[str, Any]] = {
    "whole image": {**NONE, "crop_scale": (0.8, 1.0)},
    "wide crops": {**NONE, "crop_scale": (0.1, 1.0)},
    "views": {**NONE, "lungs": 0.4, "framing": 0.3},
    "style": {**NONE, "style": 0.6},
    "views, style": {**NONE, "lungs": 0.25, "framing": 0.25, "style": 0.6},
    "transplants": {**NONE, "transplant": 0.3, "surroundings": 0.2, "blank": 0.07},
    "views, style, transplants": {
        "lungs": 0.25, "framing": 0.25, "style": 0.6, "transplant": 0.3, "surroundings": 0.2, "blank": 0.07,
    },
}  # fmt: skip


def recipe(name: str, size: int, epochs: int, weights: Path) -> Experiment:
    """Return the experiment of a recipe."""
    changes = {
        "prepare": {"size": size, "mirror": False},
        "augment": RECIPES[name],
        "model": {"weights": str(weights)},
        "train": {"epochs": epochs, "head_epochs": 1},
    }
    return changed(load_experiment(BASE), changes)


def left_out(source: Manifest, cluster: str, limit: int | None) -> Manifest:
    """Return the source with one machine cluster as its test part; `limit`: images of each class in each part."""
    divided = divide_by_site(with_machines(source), cluster, DataConfig(val_fraction=0.15), 0)
    if limit is None:
        return divided
    rng, kept = np.random.default_rng(0), []
    for part in ("train", "val", "test"):
        for label in (NORMAL, PNEUMONIA):
            rows = [row for row, s in enumerate(divided.samples) if (s.split, s.label) == (part, label)]
            kept += sorted(rng.permutation(rows)[:limit])
    return replace(divided, samples=tuple(divided.samples[row] for row in kept))


def measure(run: Path, divided: Manifest) -> dict[str, Any]:
    """Return the figures of one network: of its validation part, and elsewhere."""
    classifier = Classifier.load(run / "bundle", threads=1)
    val, away = (images_of(divided.select(part), classifier) for part in ("val", "test"))
    own = Labelled(val.canvases, val.y, boxes(val.canvases))
    plain = logits(classifier, val.canvases)
    figures: dict[str, float] = {"plain": auroc(val.y, pneumonia_logit(plain))}
    rng, hard = np.random.default_rng(5), []
    for name, stress in STRESSES.items():
        found = logits(classifier, stressed(own, own, rng, stress))
        figures[f"stress: {name}"] = auroc(val.y, pneumonia_logit(found))
        if name in CALIBRATING:
            hard.append(found)
    figures["stress: mean"] = float(np.mean([figures[f"stress: {name}"] for name in STRESSES]))
    figures["stress: worst"] = float(min(figures[f"stress: {name}"] for name in STRESSES))
    score = pneumonia_logit(plain)
    shortcut = shortcut_of(val.canvases, own.boxes, val.y, val.patients)
    thresholds = {"plain": youden(val.y, score, np.ones(len(score)))}
    thresholds["stressed"] = youden(
        np.tile(val.y, len(hard)), pneumonia_logit(np.concatenate(hard)), np.ones(len(score) * len(hard))
    )
    if shortcut is not None:
        weights = shortcut.weights[None]
        figures["weighted"] = float(weighted_areas(ranking(score), val.y, weights.copy())[0][0])
        thresholds["weighted"] = youden(val.y, score, shortcut.weights)
    seen = pneumonia_logit(logits(classifier, away.canvases))
    area = auroc_estimate(cohort(away.y, seen, away.patients))
    elsewhere: dict[str, Any] = {"AUROC": area.value, "AUROC, 95 %": [area.low, area.high]}
    elsewhere["AUROC, corrupted"] = auroc(np.tile(away.y, len(CORRUPTIONS)), corrupted(classifier, away))
    for name, threshold in thresholds.items():
        sensitivity, specificity = (seen[away.y] >= threshold).mean(), (seen[~away.y] < threshold).mean()
        elsewhere[name] = [float(sensitivity), float(specificity), float((sensitivity + specificity) / 2)]
    return {"validation": figures, "elsewhere": elsewhere}


def logits(classifier: Classifier, canvases: Pixels) -> FloatArray:
    """Return the logits [n, C]."""
    parts = [classifier.logits(np.ascontiguousarray(canvases[i : i + 32])) for i in range(0, len(canvases), 32)]
    return np.concatenate(parts)


def corrupted(classifier: Classifier, images: Images) -> Floats:
    """Return the score of each image under each corruption, one corruption after the other, [corruptions * n]."""
    scores = []
    for name in CORRUPTIONS:
        changed = np.stack([corrupt(canvas, name, SEVERITY, key) for key, canvas in enumerate(images.canvases)])
        scores.append(pneumonia_logit(logits(classifier, changed)))
    return np.concatenate(scores)


def youden(y: Bools, score: Floats, weights: Floats) -> float:
    """Return the threshold of the highest weighted sensitivity plus specificity, in the middle of its gap."""
    order = np.argsort(-score)
    true = np.cumsum(weights[order] * y[order]) / weights[y].sum()
    false = np.cumsum(weights[order] * ~y[order]) / weights[~y].sum()
    best = int(np.argmax(true - false))
    return float(score[order][best : best + 2].mean())


def print_tables(report: Mapping[str, Any]) -> None:
    """Print Markdown: the networks, and which figure orders them."""
    runs = report["runs"]
    first = next(iter(runs.values()))
    names = [*first["validation"]]
    print(f"\n{report['cluster']} left out: {report['images']}\n")
    print("| recipe | " + " | ".join(names) + " | elsewhere: AUROC (95 %) | corrupted |")
    print("|---" * (len(names) + 3) + "|")
    for name, run in runs.items():
        cells = [f"{run['validation'][key]:.4f}" for key in names]
        away = run["elsewhere"]
        low, high = away["AUROC, 95 %"]
        cells += [f"{away['AUROC']:.4f} ({low:.3f}–{high:.3f})", f"{away['AUROC, corrupted']:.4f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| Spearman's rho with | AUROC elsewhere | AUROC elsewhere, corrupted |\n|---|---|---|")
    for key in names:
        values = [run["validation"][key] for run in runs.values()]
        ranks = [
            spearmanr(values, [run["elsewhere"][target] for run in runs.values()]).statistic
            for target in ("AUROC", "AUROC, corrupted")
        ]
        print(f"| {key} | " + " | ".join(f"{rank:+.2f}" for rank in ranks) + " |")
    print("\n| threshold of the validation | sensitivity, specificity, balanced accuracy elsewhere, mean |\n|---|---|")
    for key in ("plain", "stressed", "weighted"):
        rows = [run["elsewhere"][key] for run in runs.values() if key in run["elsewhere"]]
        if rows:
            print(f"| {key} | " + ", ".join(f"{value:.3f}" for value in np.mean(rows, axis=0)) + " |")


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="resnet18_imagenet.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cluster", default="cluster 2")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, help="of each class in each part, at most")
    arguments = parser.parse_args()
    divided = left_out(open_source(arguments.data), arguments.cluster, arguments.images)
    counts = Counter((sample.split, sample.label) for sample in divided.samples)
    images = ", ".join(
        f"{part} {counts[part, NORMAL]} + {counts[part, PNEUMONIA]}" for part in ("train", "val", "test")
    )
    report: dict[str, Any] = {"cluster": arguments.cluster, "images": f"normal + pneumonia: {images}", "runs": {}}
    print(report["images"], flush=True)
    for name in RECIPES:
        run = out_folder(arguments.out) / name.replace(", ", "-").replace(" ", "-")
        if not (run / "run.json").is_file():
            experiment = recipe(name, arguments.size, arguments.epochs, arguments.weights.resolve())
            source = experiment.data.model_copy(update={"split": "source"})
            experiment = experiment.model_copy(update={"data": source})
            run_experiment(experiment, divided, run, name=name, resume=(run / "checkpoints").is_dir())
        report["runs"][name] = measure(run, divided)
        print(name, report["runs"][name], flush=True)
        write_json(arguments.out / "elsewhere.json", report)
    if len(report["runs"]) == len(RECIPES) and arguments.epochs > 1:
        write_json(HERE / "results" / "elsewhere.json", report)
    print_tables(report)


if __name__ == "__main__":
    main()
