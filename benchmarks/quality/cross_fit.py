"""What networks say of patients that they did not learn from: the teachers of a distilled network.

    python benchmarks/quality/cross_fit.py --data kermany224 --names vgg16-frozen lite0-frozen --out runs/teachers

The patients that the base's division holds out are put aside. The others are divided into `--folds` parts; each network
is trained anew without each part in turn and judges it. Writes OUT/NAME.csv, a `predictions.csv` of every image, for
`train.teachers`. Runs that are complete are not repeated.
"""

from __future__ import annotations

import argparse
import logging
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
    """Return the predictions of every image that is not held out, each by a network that never saw its patient."""
    console = Console(say=print, report=lambda row: print(row, flush=True))
    held_out = {sample.path for sample in divided.select("test").samples}
    parts = []
    for fold in range(folds):
        run = out / f"{name}-{fold}"
        data = experiment.data.model_copy(update={"folds": folds, "fold": fold})
        if not (run / "run.json").is_file():
            resume = (run / "experiment.json").is_file() and (run / "checkpoints").is_dir()
            chosen = experiment.model_copy(update={"data": data})
            run_experiment(chosen, divided, run, name=name, resume=resume, console=console)
        if not (run / "test" / "predictions.csv").is_file():
            judged = open_source(run / "split.csv").select("test").where(lambda sample: sample.path not in held_out)
            evaluate(Classifier.load(run / "bundle"), judged, run / "test")
        parts.append(pd.read_csv(run / "test" / "predictions.csv"))
    return pd.concat(parts)


def main() -> None:
    """Train what is missing, and write one table per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True, help="files in configs/ or candidates/, without .toml")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    base = load_experiment(experiment_file("lite0-finetuned"))
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
