"""Do trained networks hold where images come out differently? Clean, corrupted, other prevalences, other patients.

    python benchmarks/quality/shift.py RUN [RUN ...] --data ../shared/data/nih_adult --out runs/shift

RUN: folders that `pneumoscope train` wrote on one division of the patients. Recipes are chosen by their validation
part; `--part test` is for the end. Every figure is at the threshold frozen in the bundle. `--data`: another source, of
other patients, for the same networks. Writes shift.json and prints Markdown. What is random depends on the image
alone, so all networks see the same pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corruptions import CORRUPTIONS, SEVERITIES, corrupt
from numpy.typing import NDArray

from pneumoscope.bundle.calibration import probabilities
from pneumoscope.data.cache import open_cache
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.evaluation.metrics import evaluate_predictions
from pneumoscope.files import out_folder, write_json
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA
from pneumoscope.statistics.auc import auroc, auroc_estimate
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.comparison import compare, holm
from pneumoscope.statistics.proportions import proportion

RESULT = Path(__file__).parent / "results" / "shift.json"  # of the shipped network
PREVALENCES = (0.1, 0.25, 0.5, 0.625, 0.75)
BATCH = 32


@dataclass(frozen=True)
class Images:
    """Canvases uint8 [n, side, side], truth [n], patients [n]."""

    canvases: NDArray[np.uint8]
    y: NDArray[np.bool_]
    patients: list[str]


def images_of(manifest: Manifest, classifier: Classifier) -> Images:
    """Read the labelled images of a manifest as a bundle wants them."""
    preparation = classifier.bundle.preparation
    samples = manifest.labelled().samples
    cache = open_cache(samples, canvas=preparation.canvas, aspect=preparation.aspect, crop=classifier.crop)
    kept = [(sample, row) for sample, row in zip(samples, cache.rows, strict=True) if row >= 0]
    return Images(
        np.array(cache.pixels[[row for _, row in kept]]),
        np.array([sample.label == PNEUMONIA for sample, _ in kept]),
        [sample.patient_id for sample, _ in kept],
    )


def predict(classifier: Classifier, canvases: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the probability of pneumonia [n]."""
    parts = [classifier.logits(canvases[i : i + BATCH]) for i in range(0, len(canvases), BATCH)]
    return probabilities(np.concatenate(parts), *classifier.calibration)[0]


def under_shift(
    classifier: Classifier, images: Images, severities: Sequence[int]
) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Return the probabilities clean, and under each corruption and severity."""
    found = {("clean", 0): predict(classifier, images.canvases)}
    for name in CORRUPTIONS:
        for severity in severities:
            changed = np.stack([corrupt(canvas, name, severity, key) for key, canvas in enumerate(images.canvases)])
            found[name, severity] = predict(classifier, changed)
    return found


def row(images: Images, probability: NDArray[np.float64], threshold: float) -> dict[str, float]:
    """Return plain figures of one condition."""
    called = probability >= threshold
    sensitivity, specificity = called[images.y].mean(), (~called[~images.y]).mean()
    return {
        "accuracy": float((called == images.y).mean()),
        "balanced_accuracy": float((sensitivity + specificity) / 2),
        "sensitivity": float(sensitivity),
        "specificity": float(specificity),
        "auroc": auroc(images.y, probability),
    }


def intervals(images: Images, probability: NDArray[np.float64], threshold: float) -> dict[str, list[float]]:
    """Return 95 % intervals by patient of one condition's accuracy and AUROC."""
    patients = np.unique(images.patients, return_inverse=True)[1]
    accuracy = proportion((probability >= threshold) == images.y, patients)
    area = auroc_estimate(cohort(images.y, probability, images.patients))
    return {"accuracy": [accuracy.low, accuracy.high], "auroc": [area.low, area.high]}


def at_prevalence(sensitivity: float, specificity: float, prevalence: float) -> dict[str, float]:
    """Return what a frozen threshold gives where another share of the patients is ill (Bayes)."""
    positive = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    return {
        "prevalence": prevalence,
        "accuracy": sensitivity * prevalence + specificity * (1 - prevalence),
        "ppv": sensitivity * prevalence / positive if positive else float("nan"),
        "npv": specificity * (1 - prevalence) / (1 - positive) if positive < 1 else float("nan"),
    }


def compared(names: Sequence[str], pooled: dict[str, NDArray[np.float64]], thresholds: Any, images: Images) -> Any:
    """Compare all pairs over all corrupted images together, by patient."""
    repeats = len(next(iter(pooled.values()))) // len(images.y)
    y, patients = np.tile(images.y, repeats), images.patients * repeats
    pairs = [
        (a, b, compare(y, pooled[a], pooled[b], thresholds[a], thresholds[b], patients, resamples=500))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    adjusted = holm([pair.auroc.p for *_, pair in pairs]) if pairs else []
    return [
        {"a": a, "b": b, "p_holm": float(p), **pair.as_json()} for (a, b, pair), p in zip(pairs, adjusted, strict=True)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, help="a source of other patients")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--part", choices=("val", "test"), default="val", help="test: once, when nothing is left to choose"
    )
    parser.add_argument("--severities", type=int, nargs="+", choices=SEVERITIES, default=list(SEVERITIES))
    arguments = parser.parse_args()
    report: dict[str, Any] = {"part": arguments.part, "runs": {}}
    divisions = {open_source(run / "split.csv").select(arguments.part).fingerprint() for run in arguments.runs}
    if len(divisions) > 1:
        parser.error("these runs divide the patients differently: compare runs of one data.seed")
    pooled, thresholds = {}, {}
    for run in arguments.runs:
        classifier = Classifier.load(run / "bundle")
        name = classifier.bundle.name
        images = images_of(open_source(run / "split.csv").select(arguments.part), classifier)
        found = under_shift(classifier, images, arguments.severities)
        thresholds[name] = classifier.threshold
        pooled[name] = np.concatenate([p for (_, severity), p in found.items() if severity])
        clean = evaluate_predictions(images.y, found["clean", 0], images.patients, classifier.threshold)
        recall, specificity = clean["recall"].value, clean["specificity"].value
        entry = {
            "bundle": classifier.bundle.sha256,
            "n": len(images.y),
            "n_patients": len(set(images.patients)),
            "clean": {key: estimate.as_json() for key, estimate in clean.items()},
            "conditions": [
                {
                    "corruption": key,
                    "severity": severity,
                    **row(images, p, classifier.threshold),
                    "ci95": intervals(images, p, classifier.threshold),
                }
                for (key, severity), p in found.items()
            ],
            "corrupted": {
                **row_of_means(found, images, classifier.threshold),
                "auroc_pooled": auroc_estimate(
                    cohort(np.tile(images.y, len(found) - 1), pooled[name], images.patients * (len(found) - 1))
                ).as_json(),
            },
            "prevalence": [at_prevalence(recall, specificity, share) for share in PREVALENCES],
        }
        if arguments.data:
            others = images_of(open_source(arguments.data), classifier)
            p = predict(classifier, others.canvases)
            figures = evaluate_predictions(others.y, p, others.patients, classifier.threshold)
            entry["other"] = {key: estimate.as_json() for key, estimate in figures.items()}
        report["runs"][name] = entry
        print(f"{name}: measured", flush=True)
    report["pairs"] = compared(list(report["runs"]), pooled, thresholds, images)
    write_json(out_folder(arguments.out) / "shift.json", report)
    print_tables(report)


def row_of_means(found: Any, images: Images, threshold: float) -> dict[str, float]:
    """Return the mean of each figure over all corruptions and severities, and the worst."""
    rows = [row(images, p, threshold) for (_, severity), p in found.items() if severity]
    means = {key: float(np.mean([item[key] for item in rows])) for key in rows[0]}
    return means | {f"worst_{key}": float(min(item[key] for item in rows)) for key in rows[0]}


def condition_table(entry: Any) -> list[str]:
    """Return Markdown lines: every corruption in every severity of one network."""
    severities = sorted({item["severity"] for item in entry["conditions"] if item["severity"]})
    lines = [
        "| accuracy, AUROC (95 %) | " + " | ".join(f"severity {severity}" for severity in severities) + " |",
        "|---" * (len(severities) + 1) + "|",
    ]
    for name in CORRUPTIONS:
        rows = {item["severity"]: item for item in entry["conditions"] if item["corruption"] == name}
        lines.append(f"| {name} | " + " | ".join(condition_cell(rows[severity]) for severity in severities) + " |")
    return lines


def condition_cell(item: Any) -> str:
    """Return accuracy and AUROC of a condition, with intervals."""
    parts = []
    for key in ("accuracy", "auroc"):
        low, high = item["ci95"][key]
        parts.append(f"{item[key]:.3f} ({low:.3f}–{high:.3f})")
    return ", ".join(parts)


def print_tables(report: Any) -> None:
    """Print Markdown."""
    runs = report["runs"]
    first = next(iter(runs.values()))
    print(f"\n{report['part']} part: {first['n']} images of {first['n_patients']} patients; means over severities\n")
    print("| condition | " + " | ".join(f"{name}: accuracy / AUROC" for name in runs) + " |")
    print("|---|" + "---|" * len(runs))
    for condition in ("clean", *CORRUPTIONS):
        cells = []
        for entry in runs.values():
            rows = [item for item in entry["conditions"] if item["corruption"] == condition]
            accuracy, auroc = (np.mean([item[key] for item in rows]) for key in ("accuracy", "auroc"))
            cells.append(f"{accuracy:.3f} / {auroc:.4f}")
        print(f"| {condition} | {' | '.join(cells)} |")
    for key in ("accuracy", "balanced_accuracy", "specificity", "auroc", "worst_accuracy", "worst_auroc"):
        cells = [f"{entry['corrupted'][key]:.4f}" for entry in runs.values()]
        print(f"| all corrupted, {key.replace('_', ' ')} | {' | '.join(cells)} |")
    if all("other" in entry for entry in runs.values()):
        for key in ("auroc", "specificity", "recall"):
            figures = [entry["other"][key] for entry in runs.values()]
            cells = [f"{f['value']:.3f} ({f['ci95'][0]:.3f}–{f['ci95'][1]:.3f})" for f in figures]
            print(f"| other patients, {key} | {' | '.join(cells)} |")
    print(
        "\n| pair, all corrupted | AUROC difference (95 %) | p (Holm) | accuracy difference (95 %) |\n|---|---|---|---|"
    )
    for pair in report["pairs"]:
        auroc, accuracy = pair["differences"]["auroc"], pair["differences"]["accuracy"]
        print(
            f"| {pair['a']} − {pair['b']} | {auroc['value']:+.4f} ({auroc['ci95'][0]:+.4f} to {auroc['ci95'][1]:+.4f}) "
            f"| {pair['p_holm']:.2g} | {accuracy['value']:+.4f} ({accuracy['ci95'][0]:+.4f} to "
            f"{accuracy['ci95'][1]:+.4f}) |"
        )


if __name__ == "__main__":
    main()
