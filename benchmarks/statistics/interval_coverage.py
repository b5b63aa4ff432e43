"""Do the 95 % intervals hold 95 % of the time where a patient's images are alike?

    python benchmarks/statistics/interval_coverage.py --out runs/statistics [--simulations 1000] [--resamples 1000]

Simulated studies: patients with three images each, correlated by .8 within the patient, half of the patients with
pneumonia; truths from one study of 600,000 patients. The target is 93 to 97 %. Writes statistics.json and prints
Markdown. `miss` of `threshold` is how often a threshold whose lower bound met the target sensitivity misses it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pneumoscope.bundle.calibration import operating_points
from pneumoscope.evaluation.metrics import evaluate_predictions
from pneumoscope.files import out_folder, write_json
from pneumoscope.records import Estimate
from pneumoscope.statistics.auc import auroc_estimate, paired_auroc
from pneumoscope.statistics.benefit import decision_curve
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.proportions import proportion
from pneumoscope.statistics.rates import likelihood_ratios, predictive_values
from pneumoscope.statistics.reliability import calibration_estimates

CORRELATION, SIZE, CUT, TARGET = 0.8, 3, 0.5, 0.9


@dataclass(frozen=True)
class Study:
    """Truth [n], probabilities of two networks [n], patients [n]."""

    y: NDArray[np.bool_]
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    patients: NDArray[np.int64]


def study(rng: np.random.Generator, patients: int) -> Study:
    """Draw a study; network b is a noisier reading of the same patients, both are too sure of themselves."""
    who = np.repeat(np.arange(patients), SIZE)
    y = np.repeat(rng.random(patients) < 0.5, SIZE)
    shared = rng.normal(size=patients)[who] * np.sqrt(CORRELATION)
    common = shared + rng.normal(size=who.size) * np.sqrt((1 - CORRELATION) / 2)

    def network(separation: float) -> NDArray[np.float64]:
        noise = rng.normal(size=who.size) * np.sqrt((1 - CORRELATION) / 2)
        return special.expit(1.4 * separation * (common + noise + separation * (y - 0.5)) + 0.2)

    return Study(y, network(1.8), network(1.5), who)


def figures(s: Study, seed: int, resamples: int) -> dict[str, Estimate]:
    """Return every estimate that is checked."""
    called = s.a >= CUT
    a, b = cohort(s.y, s.a, s.patients), cohort(s.y, s.b, s.patients)
    found: dict[str, Estimate] = {"auroc (Obuchowski)": auroc_estimate(a)}
    found["auroc (DeLong, ignores patients)"] = auroc_estimate(cohort(s.y, s.a))
    found["auroc difference, paired"] = paired_auroc(a, b).difference
    found["sensitivity (Wilson)"] = proportion(called[s.y], s.patients[s.y])
    found |= likelihood_ratios(s.y, called, s.patients)
    found |= {f"{k} at 10 %": e for k, e in predictive_values(s.y, called, s.patients, 0.1).items()}
    found |= calibration_estimates(s.y, s.a, s.patients, seed=seed, resamples=resamples)
    metrics = evaluate_predictions(s.y, s.a, s.patients, CUT, seed=seed, resamples=resamples)
    found |= {k: metrics[k] for k in ("accuracy", "balanced_accuracy", "auprc", "brier", "ece", "f1", "npv", "mcc")}
    curve = decision_curve(s.y, s.a, s.patients, thresholds=(0.3,), seed=seed, resamples=resamples)
    found["net benefit at .3"] = Estimate(
        float(curve.model[0]), float(curve.low[0]), float(curve.high[0]), curve.method
    )
    return found


def coverage(simulations: int, patients: int, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Return, for every figure, its truth and the share of simulated intervals that hold it."""
    truths = {k: e.value for k, e in figures(study(np.random.default_rng(99), 600_000 // SIZE), 0, 2).items()}
    held: dict[str, list[bool]] = {name: [] for name in truths}
    missed = []
    for index in range(simulations):
        rng = np.random.default_rng([seed, index])
        s = study(rng, patients)
        for name, e in figures(s, index, resamples).items():
            held[name].append(bool(e.low <= truths[name] <= e.high))
        point = operating_points(s.y, s.a, s.patients.astype(str).tolist(), target=TARGET, resamples=1)["triage"]
        if not point.note:
            fresh = study(np.random.default_rng([7, seed, index]), 4000)
            missed.append(bool((fresh.a[fresh.y] >= point.threshold).mean() < TARGET))
    rows = {name: {"truth": truths[name], "coverage": float(np.mean(h))} for name, h in held.items()}
    return {"figures": rows, "threshold": {"miss": float(np.mean(missed)), "n": len(missed)}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--patients", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "simulations": arguments.simulations,
        "patients": arguments.patients,
        "images_per_patient": SIZE,
        "correlation": CORRELATION,
        "resamples": arguments.resamples,
        **coverage(arguments.simulations, arguments.patients, arguments.resamples),
    }
    write_json(out_folder(arguments.out) / "statistics.json", report)
    print("| figure | truth | coverage of the 95 % interval |\n|---|---|---|")
    for name, row in report["figures"].items():
        print(f"| {name} | {row['truth']:.4f} | {100 * row['coverage']:.1f} % |")
    missed = report["threshold"]
    print(f"\nthreshold for sensitivity {TARGET}: missed in {100 * missed['miss']:.1f} % of {missed['n']} studies")


if __name__ == "__main__":
    main()
