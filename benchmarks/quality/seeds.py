"""The strategies over several seeds: trained, tested, and written down once; page.py makes the page.

    python benchmarks/quality/seeds.py --data kermany224 --out runs/seeds --names custom-cnn --seeds 0 1 2

All divide the patients alike; a seed decides head, order, augmentation and dropout. A run whose result lies in results/
is not trained again. `--precision bf16-mixed` makes dense convolutions faster on CPUs with AVX-512 BF16, and
depthwise ones slower; what was used is kept with the result.
"""

from __future__ import annotations

import argparse
import logging
import platform
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.config import load_experiment
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.files import out_folder, read_json, write_json
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA
from pneumoscope.statistics.comparison import compare, holm
from pneumoscope.training.experiment import Console, run_experiment

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
RESULTS = HERE / "results" / "seeds"
SHOWN = ("accuracy", "balanced_accuracy", "recall", "specificity", "auroc")


def main() -> None:
    """Train what is missing; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--names", nargs="+", required=True, help="files in configs/ or candidates/, without .toml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    source = open_source(arguments.data)
    for seed in arguments.seeds:  # seed by seed, so that an interruption leaves all networks with as many
        for name in arguments.names:
            if not (RESULTS / f"{name}-{seed}.json").is_file():
                measure(name, seed, source, arguments.out / f"{name}-{seed}", arguments.precision)
    print("\n".join(tables()))


def experiment_file(name: str) -> Path:
    """Return the file of an experiment by its name."""
    return next(file for folder in (CONFIGS, HERE / "candidates") if (file := folder / f"{name}.toml").is_file())


def measure(name: str, seed: int, source: Manifest, run: Path, precision: str) -> None:
    """Train and test one network with one seed, and write its result."""
    console = Console(say=print, report=lambda row: print(row, flush=True))
    experiment = load_experiment(experiment_file(name))
    train = experiment.train.model_copy(update={"precision": precision})
    experiment = experiment.model_copy(update={"seed": seed, "train": train})
    if experiment.data.seed is None:
        raise SystemExit(f"{name}: data.seed is missing, so every seed would be tested on other patients")
    if not (run / "run.json").is_file():
        resume = (run / "experiment.json").is_file() and (run / "checkpoints").is_dir()
        run_experiment(experiment, source, run, name=name, resume=resume, console=console)
    classifier = Classifier.load(run / "bundle", gate=False)  # all networks on the same images
    held_out = open_source(run / "split.csv").select("test")
    metrics = evaluate(classifier, held_out, run / "evaluation", seed=seed)
    table = (
        pd.read_csv(run / "evaluation" / "predictions.csv", dtype={"patient_id": str}).set_index("path").sort_index()
    )
    division = {
        "images": held_out.fingerprint(),
        "y": [int(label == PNEUMONIA) for label in table["label"]],
        "patients": np.unique(table["patient_id"], return_inverse=True)[1].tolist(),
    }
    if not (RESULTS / "division.json").is_file():
        write_json(out_folder(RESULTS) / "division.json", division)
    elif read_json(RESULTS / "division.json") != division:
        raise SystemExit(f"{name}: other held-out images than those of results/division.json")
    facts, validation = read_json(run / "run.json"), read_json(run / "metrics.json")
    write_json(
        RESULTS / f"{name}-{seed}.json",
        {
            "name": name,
            "title": facts["title"],
            "seed": seed,
            "precision": precision,
            "parameters": facts["parameters"],
            "input_size": facts["input_size"],
            "seconds": facts["seconds"],
            "images_per_second": facts["images_per_second"],
            "machine": platform.processor() or platform.machine(),
            "threshold": classifier.threshold,
            "validation": {key: validation["metrics"][key] for key in SHOWN},
            "test": {key: metrics["metrics"][key] for key in SHOWN},
            "probabilities": [float(f"{p:.9g}") for p in table["probability"]],
        },
    )


def tables() -> list[str]:
    """Return Markdown lines from what lies in results/: each network over its seeds, then every pair."""
    division = read_json(RESULTS / "division.json")
    found: dict[str, list[Any]] = {}
    for file in sorted(RESULTS.glob("*-[0-9]*.json")):
        result = read_json(file)
        found.setdefault(result["name"], []).append(result)
    for runs in found.values():
        runs.sort(key=lambda run: int(run["seed"]))
    names = sorted(found, key=lambda name: mean(found[name], "test", "auroc"))
    patients = len(set(division["patients"]))
    lines = [
        f"Held out: {len(division['y'])} images of {patients} patients. Mean ± standard deviation over seeds.",
        "",
        "| " + " | ".join(["network", "seeds", *SHOWN, "validation auroc", "training"]).replace("_", " ") + " |",
        "|---" * (len(SHOWN) + 4) + "|",
    ]
    for name in names:
        runs = found[name]
        cells = [spread([run["test"][key]["value"] for run in runs]) for key in SHOWN]
        cells.append(spread([run["validation"]["auroc"]["value"] for run in runs]))
        minutes = np.mean([run["seconds"] for run in runs]) / 60
        title = f"{runs[0]['title']}, {runs[0]['input_size']} px"
        lines.append(f"| {title} | {len(runs)} | {' | '.join(cells)} | {minutes:.0f} min |")
    return [*lines, "", *pairs(names, found, division)]


def mean(runs: list[Any], part: str, key: str) -> float:
    """Return the mean of a figure over seeds."""
    return float(np.mean([run[part][key]["value"] for run in runs]))


def spread(values: list[float]) -> str:
    """Return mean and standard deviation; a single seed has none."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def pairs(names: list[str], found: dict[str, list[Any]], division: Any) -> list[str]:
    """Return the paired tests of all networks, seed by seed."""
    y = np.array(division["y"], bool)
    rows = []
    for a, b in combinations(names[::-1], 2):
        tests = [tested(one, other, y, division["patients"]) for one, other in zip(found[a], found[b], strict=False)]
        rows.append((a, b, tests))
    if not rows:
        return ["One network has results so far."]
    adjusted = {key: holm([tests[0][f"p_{key}"] for *_, tests in rows]) for key in ("auroc", "accuracy")}
    lines = [
        "The same seed of each. AUROC: DeLong's test, or Obuchowski's where a patient has several images; calls:",
        "McNemar's, clustered likewise. p is that of the first seed, adjusted over the pairs (Holm); in brackets how",
        "many seeds have p < .05 before adjustment.",
        "",
        "| pair | AUROC difference, mean over seeds | p | accuracy difference, mean over seeds | p |",
        "|---|---|---|---|---|",
    ]
    for index, (a, b, tests) in enumerate(rows):
        cells = []
        for key, p in adjusted.items():
            signs = sum(test[f"p_{key}"] < 0.05 for test in tests)
            value = np.mean([test[key] for test in tests])
            cells += [f"{value:+.4f}", f"{p[index]:.2g} ({signs} of {len(tests)})"]
        lines.append(f"| {a} − {b} | {' | '.join(cells)} |")
    return lines


def tested(one: Any, other: Any, y: NDArray[np.bool_], patients: list[int]) -> dict[str, float]:
    """Compare two results on the held-out images."""
    pair = compare(
        y, one["probabilities"], other["probabilities"], one["threshold"], other["threshold"], patients, resamples=200
    )
    return {
        "auroc": pair.auroc.difference.value,
        "p_auroc": pair.auroc.p,
        "accuracy": pair.differences["accuracy"].estimate.value,
        "p_accuracy": pair.mcnemar.p,
    }


if __name__ == "__main__":
    main()
