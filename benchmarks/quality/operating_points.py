"""Where should the threshold be? Rules that know only validation images, judged under shift on other patients.

    python benchmarks/quality/operating_points.py runs/study/base-0 [RUN ...]

RUN: folders of study.py, which also left their answers under every corruption. Every rule chooses on validation images:

- shipped: the bundle's own, calibrated on clean images, Youden's optimum as a median over patient resamples
- half: the bundle's calibration, cut at one half
- augmented: calibration and Youden's optimum on validation images augmented as in training, four times each
- augmented half: that calibration, cut at one half
- corrupted: Youden's optimum on validation images under the *other* corruptions than the one judged
- prior shift: the bundle's calibration, moved to the prevalence estimated without labels (Saerens 2002), cut at .5

Judged at prevalences .25 to .75 by drawing from each class; figures are means over corruptions, and the worst.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corruptions import CORRUPTIONS, corrupt
from numpy.typing import NDArray
from shift import Images, images_of
from study import SEVERITIES, logits

from pneumoscope.bundle.calibration import at_prevalence, calibrate, estimate_prevalence, probabilities
from pneumoscope.config import load_experiment
from pneumoscope.data.sources import open_source
from pneumoscope.files import out_folder, read_json, write_json
from pneumoscope.networks.transforms import draw
from pneumoscope.predict import Classifier

RESULT = Path(__file__).parent / "results" / "operating_points.json"
PREVALENCES = (0.25, 0.5, 0.625, 0.75)
TIMES = 4
Logits = NDArray[np.float32]
Calls = Callable[[str, Logits], NDArray[np.bool_]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    for run in arguments.runs:
        report[run.name] = judged(run)
        print(f"{run.name}: measured", flush=True)
    write_json(out_folder(RESULT.parent) / RESULT.name, summary(report))
    print("\n".join(table()))


def judged(run: Path) -> dict[str, Any]:
    """Return each rule's figures on one run's held-out patients."""
    with np.load(run / "scores.npz") as stored:
        y = stored["y"].astype(bool)
        answers = {key[2:]: stored[key] for key in stored.files if key.startswith("c/")}
    found: dict[str, Any] = {}
    for name, calls in rules(run, answers).items():
        rows = []
        for prevalence in PREVALENCES:
            for condition, values in answers.items():
                chosen = drawn(y, prevalence)
                called = calls(condition, values[chosen])
                sensitivity, specificity = called[y[chosen]].mean(), (~called[~y[chosen]]).mean()
                rows.append(
                    {
                        "condition": condition,
                        "prevalence": prevalence,
                        "accuracy": float(prevalence * sensitivity + (1 - prevalence) * specificity),
                        "balanced_accuracy": float((sensitivity + specificity) / 2),
                        "sensitivity": float(sensitivity),
                        "specificity": float(specificity),
                    }
                )
        found[name] = rows
    return found


def drawn(y: NDArray[np.bool_], prevalence: float) -> NDArray[np.int64]:
    """Return the rows of as many images of each class as give the prevalence: all of one, some of the other."""
    positive, negative = np.flatnonzero(y), np.flatnonzero(~y)
    wanted = min(len(positive), round(len(negative) * prevalence / (1 - prevalence)))
    others = min(len(negative), round(wanted * (1 - prevalence) / prevalence))
    rng = np.random.default_rng(0)
    rows = [rng.choice(positive, wanted, replace=False), rng.choice(negative, others, replace=False)]
    return np.sort(np.concatenate(rows))


def rules(run: Path, answers: dict[str, Logits]) -> dict[str, Calls]:
    """Return each rule as a function from (condition, logits) to calls."""
    classifier = Classifier.load(run / "bundle")
    validation = images_of(open_source(run / "split.csv").select("val"), classifier)
    taught = float(classifier.bundle.card["population"]["prevalence"])
    own, threshold = classifier.calibration, classifier.threshold
    augmented = fitted(classifier, *augmented_images(run, validation, classifier))
    shifted = thresholds_of_others(classifier, validation, answers)

    def moved(_: str, values: Logits) -> NDArray[np.bool_]:
        p = probabilities(values, *own)[0]
        return at_prevalence(p, taught, estimate_prevalence(p, taught)) >= 0.5

    return {
        "shipped": lambda _, values: probabilities(values, *own)[0] >= threshold,
        "half": lambda _, values: probabilities(values, *own)[0] >= 0.5,
        "augmented": lambda _, values: probabilities(values, *augmented[0])[0] >= augmented[1],
        "augmented half": lambda _, values: probabilities(values, *augmented[0])[0] >= 0.5,
        "corrupted": lambda condition, values: probabilities(values, *own)[0] >= shifted[condition],
        "prior shift": moved,
    }


def augmented_images(run: Path, images: Images, classifier: Classifier) -> tuple[NDArray[np.uint8], Images]:
    """Return the validation images augmented as in training, uint8 [n, size, size], and whose they are."""
    config = load_experiment(run / "config.toml").augment
    size = classifier.bundle.preparation.size
    rng = np.random.default_rng(0)
    changed = [
        draw(config, rng).apply(torch.from_numpy(np.array(canvas))[None], size)[0].numpy()
        for _ in range(TIMES)
        for canvas in images.canvases
    ]
    return np.stack(changed), Images(images.canvases, np.tile(images.y, TIMES), images.patients * TIMES)


def fitted(classifier: Classifier, pixels: NDArray[np.uint8], images: Images) -> tuple[tuple[float, float], float]:
    """Return the calibration (temperature, bias) and balanced threshold that these images choose."""
    values = np.concatenate([classifier.runtime.logits(pixels[i : i + 32]) for i in range(0, len(pixels), 32)])
    calibration, points = calibrate(values, images.y.astype(int), images.patients, seed=0)
    return (calibration.temperature, calibration.bias), points["balanced"].threshold


def thresholds_of_others(classifier: Classifier, images: Images, answers: dict[str, Logits]) -> dict[str, float]:
    """Return, per condition, Youden's optimum over the validation images under all *other* corruptions."""
    found = {}
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            changed = np.stack([corrupt(canvas, name, severity, key) for key, canvas in enumerate(images.canvases)])
            found[f"{name}-{severity}"] = probabilities(logits(classifier, changed), *classifier.calibration)[0]
    result = {}
    for condition in answers:
        kind = condition.rsplit("-", 1)[0]
        kept = [p for key, p in found.items() if key.rsplit("-", 1)[0] != kind]
        y = np.tile(images.y, len(kept))
        result[condition] = youden(y, np.concatenate(kept))
    return result


def youden(y: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    """Return the threshold of the highest sensitivity plus specificity, in the middle of the gap it lies in."""
    order = np.argsort(p, kind="stable")
    gain = np.cumsum(np.where(y[order], -1 / y.sum(), 1 / (~y).sum()))
    best = int(gain[:-1].argmax())
    return float((p[order][best] + p[order][best + 1]) / 2)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Return per rule and prevalence the three figures of accuracy and of balanced accuracy."""
    rules_found: dict[str, Any] = {}
    for rule in next(iter(report.values())):
        rows = {}
        for prevalence in PREVALENCES:
            chosen = [[row for row in entry[rule] if row["prevalence"] == prevalence] for entry in report.values()]
            rows[str(prevalence)] = {key: three(chosen, key) for key in ("accuracy", "balanced_accuracy")}
        rules_found[rule] = rows
    return {"runs": list(report), "rules": rules_found}


def table() -> list[str]:
    """Return Markdown lines of results/operating_points.json: means over runs."""
    found = read_json(RESULT)
    columns = [f"{prevalence}: accuracy clean / corrupted / worst" for prevalence in PREVALENCES]
    lines = [f"| rule | {' | '.join(columns)} | balanced, corrupted / worst |", "|---" * (len(columns) + 2) + "|"]
    for rule, rows in found["rules"].items():
        cells = [" / ".join(f"{value:.3f}" for value in rows[str(p)]["accuracy"]) for p in PREVALENCES]
        cells.append(" / ".join(f"{value:.3f}" for value in rows["0.625"]["balanced_accuracy"][1:]))
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return lines


def three(chosen: list[list[dict[str, Any]]], key: str) -> tuple[float, float, float]:
    """Return a figure on clean images, its mean over corruptions and its worst, each a mean over runs."""
    parts = [
        (
            next(row[key] for row in rows if row["condition"] == "clean"),
            float(np.mean([row[key] for row in rows if row["condition"] != "clean"])),
            min(row[key] for row in rows if row["condition"] != "clean"),
        )
        for rows in chosen
    ]
    clean, corrupted, worst = np.mean(parts, axis=0)
    return float(clean), float(corrupted), float(worst)


if __name__ == "__main__":
    main()
