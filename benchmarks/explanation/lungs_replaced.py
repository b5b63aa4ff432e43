"""How often a network says pneumonia where both lungs of an image are replaced.

    python benchmarks/explanation/lungs_replaced.py --data RUN/split.csv [--bundle B] [--part val] [--images 100]
        [--called PNEUMONIA] [--fill normal] [--seed 0] [--threads N] [--out FILE.json]
    python benchmarks/explanation/lungs_replaced.py --data RUN/split.csv --labelled

Images are drawn by seed, one a patient, among those that the bundle calls so, whatever their label. The fill is
the one that the page of `explain` quotes: the one asked for, where it serves for that image.

`--labelled` asks another question, of all labelled images: how well pneumonia is told from normal with each image's own
lungs replaced by each fill, and with all but its lungs replaced by the fill asked for. The outline of what was
replaced stays to be seen, and it is another one in pneumonia.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.bundle.calibration import probabilities
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.explanation.counterfactual import counterfactual
from pneumoscope.explanation.perturbation import FILLS, network_input, remove
from pneumoscope.explanation.zoned import find_lungs, open_segmenter
from pneumoscope.images import read_image
from pneumoscope.lungs import LungSegmenter
from pneumoscope.predict import Classifier
from pneumoscope.records import LABELS, PNEUMONIA
from pneumoscope.statistics.auc import auroc_estimate
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.proportions import proportion


def main() -> None:
    """Measure, print the shares with their intervals, and write a row for each image as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="radiographs of a division")
    parser.add_argument("--bundle", type=Path, help="the shipped one by default")
    parser.add_argument("--part", default="val")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--called", default=PNEUMONIA, choices=LABELS)
    parser.add_argument("--fill", default="normal", choices=list(FILLS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--labelled", action="store_true")
    arguments = parser.parse_args()
    classifier = Classifier.load(arguments.bundle, threads=arguments.threads)
    segmenter = open_segmenter()
    if arguments.labelled:
        tell_apart(classifier, segmenter, open_source(arguments.data).select(arguments.part), arguments.fill)
        return
    paths = drawn(arguments.data, arguments.part, arguments.seed)
    chosen = called(classifier, paths, arguments.called, arguments.images)
    rows = [replaced(classifier, segmenter, path, arguments.fill) for path in chosen]
    threshold = f"threshold {classifier.threshold:.3f}"
    print(f"{classifier.bundle.label}: {len(rows)} images called {arguments.called} ({threshold})")
    told = [row for row in rows if row["fill"]]
    print(f"lungs found in {sum(row['lungs'] for row in rows)}; a fill serves in {len(told)}")
    for name in sorted({row["fill"] for row in told}):
        mine = [row for row in told if row["fill"] == name]
        print(f"filled by {name}: {share(mine, classifier.threshold)}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def drawn(source: Path, part: str, seed: int) -> list[str]:
    """Return one path a patient, in an order drawn by seed."""
    samples = open_source(source).select(part).samples
    patients: dict[str, str] = {}
    for index in np.random.default_rng(seed).permutation(len(samples)):
        patients.setdefault(samples[index].patient_id, samples[index].path)
    return list(patients.values())


def called(classifier: Classifier, paths: list[str], label: str, count: int) -> list[str]:
    """Return the first `count` paths that the bundle calls so."""
    answers = (prediction.path for prediction in classifier.predict(paths) if prediction.label == label)
    return list(islice(answers, count))


def replaced(classifier: Classifier, segmenter: LungSegmenter | str, path: str, fill: str) -> dict[str, Any]:
    """Return scores in 0..1 of one image: whole, of nothing but fill, and with both lungs replaced."""
    canvas = classifier.canvas(read_image(path, at_least=2 * classifier.bundle.preparation.canvas))
    lungs = find_lungs(classifier, canvas, segmenter)
    row: dict[str, Any] = {"image": Path(path).name, "lungs": lungs.zones is not None, "fill": None}
    if lungs.zones is None:
        return row
    removed = counterfactual(classifier, network_input(classifier, canvas), lungs, fill)
    row |= {"score": removed.score, "fill": removed.fill, "refused": dict(removed.refused)}
    if removed.fill is not None:
        row |= {"empty": removed.empty[removed.fill], "both": removed.together[removed.fill]["both lungs"]}
    return row


def tell_apart(classifier: Classifier, segmenter: LungSegmenter | str, held: Manifest, rest: str) -> None:
    """Print AUROC, and the shares called pneumonia, with own lungs replaced by each fill, and the rest by `rest`."""
    samples, scores = [], []
    for sample in held.labelled().samples:
        canvas = classifier.canvas(read_image(sample.path, at_least=2 * classifier.bundle.preparation.canvas))
        lungs = find_lungs(classifier, canvas, segmenter)
        if lungs.zones is None:
            continue
        image = network_input(classifier, canvas)
        names, labels = lungs.parts()
        inside = np.array([[name.partition(" ")[0] in ("right", "left") for name in names]])
        shown = [remove(image, FILLS[fill](image), labels, ~inside)[0] for fill in FILLS]
        shown += [remove(image, FILLS[rest](image), labels, inside)[0], image]
        logits = classifier.runtime.logits(np.ascontiguousarray(np.stack(shown)))
        samples.append(sample)
        scores.append(probabilities(logits, *classifier.calibration)[0])
    ill = np.array([sample.label == PNEUMONIA for sample in samples])
    patients = np.array([sample.patient_id for sample in samples])
    conditions = [*(f"own lungs: {fill}" for fill in FILLS), f"all but the lungs: {rest}", "untouched"]
    print("| replaced | AUROC (95 %) | pneumonia called so | normal called so |\n|---|---|---|---|")
    for condition, found in zip(conditions, np.array(scores).T, strict=True):
        told = auroc_estimate(cohort(ill, found, patients))
        called = found >= classifier.threshold
        area = f"{told.value:.3f} ({told.low:.3f}-{told.high:.3f})"
        print(f"| {condition} | {area} | {called[ill].mean():.3f} | {called[~ill].mean():.3f} |")


def share(rows: list[dict[str, Any]], threshold: float) -> str:
    """Say how many stay at or above the threshold, with the 95 % interval of Wilson."""
    still = np.array([row["both"] >= threshold for row in rows])
    found = proportion(still, np.arange(len(rows)))
    middle = float(np.median([row["both"] for row in rows]))
    return (
        f"{still.sum()} of {len(rows)} called pneumonia with both lungs replaced ({found.value:.2f}, 95 % CI "
        f"{found.low:.2f} to {found.high:.2f}); median score {middle:.3f}"
    )


if __name__ == "__main__":
    main()
