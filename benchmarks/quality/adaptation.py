"""How many local labels does it take to fit the shipped bundle to adults of another hospital?

    python benchmarks/quality/adaptation.py --data ../shared/data/nih_adult/manifest.csv

For k = 20, 50, 100, 200 labels, 20 draws of whole patients: each method is fitted to them and measured on all other
patients, and the guard decides as `pneumoscope adapt` does. k = 0 and `all` are cross-fitted once. Embeddings are
computed once; batch norm is left out. `within view`: AUROC among images of one view, weighted by pairs, because the
view tells the label here. Quantiles are over draws, which share patients. Writes results/adaptation.json and .md.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.adaptation.adapt import LABELS, Settings, decide
from pneumoscope.adaptation.evidence import Answer, answers, plan
from pneumoscope.adaptation.labelled import Labelled, read_labelled
from pneumoscope.adaptation.methods import METHODS, Basis
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.files import write_json, write_text
from pneumoscope.predict import Classifier
from pneumoscope.statistics.auc import auroc
from pneumoscope.validation.validate import calibrated_prevalence

RESULTS = Path(__file__).parent / "results"
NAMES = tuple(name for name in METHODS if "batch norm" not in name)
FIGURES = ("log_loss", "auroc", "within_view", "balanced_accuracy", "sensitivity", "specificity")


def figures(y: np.ndarray, view: np.ndarray, answer: Answer) -> dict[str, float]:
    """Return the figures of answers about images [n]."""
    p = np.clip(answer.p, 1e-6, 1 - 1e-6)
    sensitivity, specificity = float(answer.called[y].mean()), float((~answer.called[~y]).mean())
    areas, pairs = [], []
    for level in np.unique(view):
        here = view == level
        if 0 < y[here].sum() < here.sum():
            areas.append(auroc(y[here], p[here]))
            pairs.append(int(y[here].sum()) * int((~y[here]).sum()))
    return {
        "log_loss": float(-np.log(np.where(y, p, 1 - p)).mean()),
        "auroc": auroc(y, p),
        "within_view": float(np.average(areas, weights=pairs)),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def draw(basis: Basis, images: Labelled, view: np.ndarray, labels: int | None, seed: int) -> dict[str, Any]:
    """Return the figures of every method in one draw, and what the guard adopts."""
    planned = plan(images, labels, seed=seed)
    at = planned.measured
    given = answers(basis, images, planned, NAMES, labels=labels != 0)
    found = {name: figures(images.y[at], view[at], answer) for name, answer, _ in given if answer is not None}
    choice = decide(basis, images, None, Settings(labels=labels, methods=NAMES, seed=seed, resamples=1000))
    return {"methods": found, "adopted": choice.evidence["adopted"]}


def summary(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median and the 2.5 and 97.5 % quantiles over draws of every figure."""

    def spread(name: str, figure: str) -> list[float]:
        values = [one["methods"][name][figure] for one in draws if name in one["methods"]]
        return [float(value) for value in np.quantile(values, (0.5, 0.025, 0.975))]

    names = [name for name in NAMES if any(name in one["methods"] for one in draws)]
    return {
        "draws": len(draws),
        "adopted": dict(Counter(one["adopted"] or "nothing" for one in draws)),
        "methods": {name: {figure: spread(name, figure) for figure in FIGURES} for name in names},
    }


def table(found: dict[str, Any]) -> str:
    """Return the curve as a Markdown table."""
    lines = [
        "| labels | method | log loss | AUROC | within view | balanced accuracy | adopted |",
        "|---|---|---|---|---|---|---|",
    ]
    for k, one in found["curve"].items():
        for name, values in one["methods"].items():
            cells = [
                f"{m:.3f}" if one["draws"] == 1 else f"{m:.3f} ({low:.3f}–{high:.3f})"
                for m, low, high in (values[figure] for figure in FIGURES[:4])
            ]
            lines.append(f"| {k} | {name} | {' | '.join(cells)} | {one['adopted'].get(name, 0)} of {one['draws']} |")
        lines.append(f"| {k} | *nothing* | | | | | {one['adopted'].get('nothing', 0)} of {one['draws']} |")
    return "\n".join(lines) + "\n"


def run(manifest: Manifest, bundle: Path | None, draws: int) -> dict[str, Any]:
    """Return the adaptation curve of a bundle on the labelled images of a site."""
    classifier = Classifier.load(bundle)
    manifest = manifest.labelled()
    images = read_labelled(classifier, manifest)
    if images.failed:
        raise SystemExit(f"{len(images.failed)} images could not be read")
    view = np.array([sample.view or "" for sample in manifest.samples])
    basis = Basis(classifier.bundle, calibrated_prevalence(classifier.bundle.card), 0)
    curve = {"0": summary([draw(basis, images, view, 0, 0)])}
    for k in LABELS:
        curve[str(k)] = summary([draw(basis, images, view, k, seed) for seed in range(draws)])
    curve["all"] = summary([draw(basis, images, view, None, 0)])
    return {
        "bundle": {"name": classifier.bundle.name, "sha256": classifier.bundle.sha256},
        "data": {"source": manifest.source.name, "sha256": manifest.fingerprint(), **images.counts()},
        "figures": "median (2.5 to 97.5 % quantile over draws); labels 0 and all are cross-fitted once",
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()
    found = run(open_source(arguments.data), arguments.bundle, arguments.draws)
    write_json(RESULTS / "adaptation.json", found)
    write_text(RESULTS / "adaptation.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
