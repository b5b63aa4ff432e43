"""Custom CNN, frozen and fine-tuned networks on the same patients: trained, tested, compared, reported.

    python benchmarks/quality/strategies.py --data ../shared/data/kermany224 --out runs/kermany

Every experiment of configs/ that is named divides the source alike (same seed), so the test images are the
same. A run that is complete is not trained again; one that was interrupted goes on. Prints a table.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from pneumoscope.config import load_experiment
from pneumoscope.data.sources import open_source
from pneumoscope.demo import evaluate_run
from pneumoscope.evaluation.pairs import compare_folders
from pneumoscope.files import read_json
from pneumoscope.report import run_report
from pneumoscope.training.experiment import Console, run_experiment

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("custom-cnn", "vgg16-frozen", "lite0-frozen", "lite0-finetuned")
SHOWN = ("accuracy", "precision", "recall", "specificity", "auroc")


def main() -> None:
    """Run the experiments and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", default=list(NAMES), help="experiment files in configs/, without .toml")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    source = open_source(arguments.data)
    console = Console(say=print, report=lambda row: print(row, flush=True))
    runs = []
    for name in arguments.names:
        run = arguments.out / name
        experiment = load_experiment(CONFIGS / f"{name}.toml")
        if not (run / "run.json").is_file():
            resume = (run / "experiment.json").is_file()
            run_experiment(experiment, source, run, name=name, resume=resume, console=console)
        if not (run / "evaluation" / "report.html").is_file():
            evaluate_run(run, name, experiment.seed, console, each=3)
        runs.append(run)
    comparison = compare_folders([run / "evaluation" for run in runs], arguments.out / "comparison")
    page = run_report.write(runs, arguments.out / "report", arguments.out / "comparison")
    for title, folder in (("validation", "."), ("held-out test", "evaluation")):
        print_results(title, [(read_json(run / "run.json"), read_json(run / folder / "metrics.json")) for run in runs])
    print_pairs(comparison)
    print(f"\n{page}")


def print_results(title: str, rows: list[tuple[Any, Any]]) -> None:
    """Print figures with intervals, one row per run."""
    first = rows[0][1]
    print(f"\n{title}: {first['n']} images of {first['n_patients']} patients\n")
    print(f"| run | {' | '.join(SHOWN)} | training | images/s |\n|{'---|' * (len(SHOWN) + 3)}")
    for facts, metrics in rows:
        figures = [metrics["metrics"][name] for name in SHOWN]
        cells = [f"{f['value']:.3f} ({f['ci95'][0]:.3f}–{f['ci95'][1]:.3f})" for f in figures]
        print(
            f"| {facts['name']} | {' | '.join(cells)} | {facts['seconds']:.0f} s | {facts['images_per_second']:.0f} |"
        )


def print_pairs(comparison: Any) -> None:
    """Print the paired tests."""
    print("\n| pair | AUROC difference | p (Holm) | accuracy difference | McNemar p (Holm) |\n|---|---|---|---|---|")
    for pair in comparison["pairs"]:
        auroc, accuracy = pair["auroc"]["difference"], pair["accuracy"]["difference"]
        print(
            f"| {pair['a']} − {pair['b']} | {auroc['value']:+.4f} ({auroc['ci95'][0]:+.4f} to {auroc['ci95'][1]:+.4f}) "
            f"| {pair['auroc']['p_holm']:.2g} | {accuracy['value']:+.4f} ({accuracy['ci95'][0]:+.4f} to "
            f"{accuracy['ci95'][1]:+.4f}) | {pair['mcnemar']['p_holm']:.2g} |"
        )


if __name__ == "__main__":
    main()
