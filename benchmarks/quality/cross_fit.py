"""What networks say of patients that they did not learn from: the teachers of a distilled network.

    python benchmarks/quality/cross_fit.py --data kermany224 --names vgg16-frozen lite0-frozen --out runs/teachers

Only the training part of a division is used: the base's, or that of `--split RUN/split.csv`. It is divided into
`--folds` parts, patients whole; each network is trained anew without each part in turn and judges it. Writes
OUT/NAME.csv, a `predictions.csv` of every training image, for `train.teachers`. Runs that are complete are not
repeated.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
from seeds import experiment_file

from pneumoscope.config import Experiment, load_experiment
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.data.split import divide
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.experiment import Console, run_experiment
from pneumoscope.files import out_folder, write_text
from pneumoscope.predict import Classifier


def out_of_fold(name: str, experiment: Experiment, divided: Manifest, folds: int, out: Path) -> pd.DataFrame:
    """Return the predictions of every training image, each by a network that never saw its patient."""
    console = Console(say=print, report=lambda row: print(row, flush=True))
    taught = {sample.path for sample in divided.select("train").samples}
    # Marked test, the others stay out of every fold; their pixels stay in the cache, which is shared.
    folded = replace(divided, samples=tuple(replace(s, split=_aside(s.split)) for s in divided.samples))
    parts = []
    for fold in range(folds):
        run = out / f"{name}-{fold}"
        data = experiment.data.model_copy(update={"folds": folds, "fold": fold})
        if not (run / "run.json").is_file():
            resume = (run / "experiment.json").is_file() and (run / "checkpoints").is_dir()
            chosen = experiment.model_copy(update={"data": data})
            run_experiment(chosen, folded, run, name=name, resume=resume, console=console)
        if not (run / "test" / "predictions.csv").is_file():
            judged = open_source(run / "split.csv").select("test").where(lambda sample: sample.path in taught)
            evaluate(Classifier.load(run / "bundle"), judged, run / "test")
        parts.append(pd.read_csv(run / "test" / "predictions.csv"))
    return pd.concat(parts)


def _aside(split: str | None) -> str | None:
    return None if split == "train" else "test"


def main() -> None:
    """Train what is missing, and write one table per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True, help="files in configs/ or candidates/, without .toml")
    parser.add_argument("--split", type=Path, help="RUN/split.csv: another division")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    base = load_experiment(experiment_file("lite0-finetuned"))
    if arguments.split:
        divided = open_source(arguments.split)
    else:
        divided = divide(open_source(arguments.data), base.data, base.division_seed)
    out = out_folder(arguments.out)
    for name in arguments.names:
        experiment = load_experiment(experiment_file(name))
        train = experiment.train.model_copy(update={"precision": arguments.precision})
        experiment = experiment.model_copy(update={"train": train})
        table = out_of_fold(name, experiment, divided, arguments.folds, out)
        write_text(out / f"{name}.csv", table.to_csv(index=False))
        print(out / f"{name}.csv", len(table), flush=True)


if __name__ == "__main__":
    main()
