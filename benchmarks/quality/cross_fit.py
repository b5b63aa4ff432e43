"""What frozen networks say of patients that they did not learn from: the teachers of a distilled network.

    python benchmarks/quality/cross_fit.py --data kermany224 --names vgg16-frozen lite0-frozen --out runs/teachers

Only the training part of a division is used: the base's, or that of `--split RUN/split.csv`. Its patients are divided
into `--folds` parts; a logistic regression on the features of all other parts judges each. Writes OUT/NAME.csv, a
`predictions.csv` of every training image, for `train.teachers`, and prints its AUROC.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from seeds import experiment_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumoscope.config import load_experiment
from pneumoscope.data.cache import open_cache
from pneumoscope.data.sources import open_source
from pneumoscope.data.split import divide, folds
from pneumoscope.files import out_folder, write_text
from pneumoscope.lungs import crop_of
from pneumoscope.records import BACTERIAL, NORMAL, PNEUMONIA, VIRAL, Sample
from pneumoscope.statistics.auc import auroc
from pneumoscope.training.allocator import keep_freed_memory
from pneumoscope.training.experiment import make_network
from pneumoscope.training.features import best_device, encode

CLASSES = (NORMAL, BACTERIAL, VIRAL)
RIDGE = 0.01  # inverse strength of the penalty on standardised features


def judged(samples: Sequence[Sample], features: NDArray[np.float32], count: int, seed: int) -> pd.DataFrame:
    """Return path, label, probability and viral share of every sample, each by a fit without its patient."""
    kind = np.array([sample.subtype or NORMAL for sample in samples])
    probability, viral = np.zeros(len(samples)), np.zeros(len(samples))
    for rest, part in folds(samples, count, seed):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=RIDGE, max_iter=500))
        model.fit(features[rest], kind[rest])
        found = model.predict_proba(features[part])
        normal, bacterial, virus = (found[:, list(model.classes_).index(name)] for name in CLASSES)
        probability[part], viral[part] = 1 - normal, virus / (bacterial + virus)
    return pd.DataFrame(
        {
            "path": [sample.path for sample in samples],
            "label": [sample.label for sample in samples],
            "probability": probability,
            "viral": viral,
        }
    )


def main() -> None:
    """Write one table per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True, help="files of frozen networks in configs/, without .toml")
    parser.add_argument("--split", type=Path, help="RUN/split.csv: another division")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    base = load_experiment(experiment_file("lite0-finetuned"))
    divided = divide(open_source(arguments.data), base.data, base.division_seed)
    if arguments.split:
        other = {sample.path: sample.split for sample in open_source(arguments.split).samples}
        divided = replace(divided, samples=tuple(replace(s, split=other.get(s.path)) for s in divided.samples))
    out = out_folder(arguments.out)
    for name in arguments.names:
        experiment = load_experiment(experiment_file(name))
        network, _, preparation = make_network(experiment)
        # The features of all images are computed, once: every division shares them.
        crop = crop_of(preparation)
        cache = open_cache(divided.samples, canvas=preparation.canvas, aspect=preparation.aspect, crop=crop)
        features = encode(network, cache, preparation, device=best_device()).numpy()
        taught = [
            (s, row) for s, row in zip(divided.samples, cache.rows, strict=True) if s.split == "train" and row >= 0
        ]
        samples = [sample for sample, _ in taught]
        table = judged(samples, features[[row for _, row in taught]], arguments.folds, experiment.seed)
        write_text(out / f"{name}.csv", table.to_csv(index=False))
        area = auroc(table["label"] == PNEUMONIA, table["probability"])
        print(f"{out / name}.csv: {len(table)} images, AUROC {area:.4f}", flush=True)


if __name__ == "__main__":
    main()
