"""Does the threshold hold: the frozen one here, one chosen locally from k labels, one chosen at other sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pneumoscope.bundle.calibration import TARGET, operating_points, threshold_reaching
from pneumoscope.evaluation.metrics import evaluate_predictions
from pneumoscope.records import Bools, Floats, Ints
from pneumoscope.statistics.auc import auroc_estimate
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.proportions import proportion
from pneumoscope.statistics.reliability import calibration_estimates
from pneumoscope.validation.recalibration import fit
from pneumoscope.validation.study import SITE, Study, counts

SIZES = (25, 50, 100, 200, 400, 800)
DRAWS = 200
OFTEN = 0.9  # share of draws that must succeed before k labels are called enough
LEAST = 10  # images of each class in what is left to measure on
RULES = ("balanced", "sensitivity")


def transfer(
    study: Study, *, seed: int, target: float = TARGET, sizes: Sequence[int] = SIZES, draws: int = DRAWS
) -> dict[str, Any]:
    """Return the results of the frozen threshold, and on other patients those of one chosen on k local labels.

    Each draw takes whole patients until it has k images, chooses a threshold on them and is measured on the rest.
    `balanced`: the maximiser of sensitivity + specificity. `sensitivity`: the largest threshold whose lower bound
    reaches `target`, or whose sensitivity does where k allows no bound. Quantiles are over draws, which share
    patients: the spread of one choice, not the uncertainty of this hospital.
    """
    rng = np.random.default_rng(seed)
    _, codes = np.unique(study.patients, return_inverse=True)
    curve = []
    for k in sizes:
        if k > study.n / 2:
            break
        rows = [row for _ in range(draws) if (row := _draw(study, codes, k, target, rng))]
        curve.append(_summary(k, rows, draws, target))
    auroc = auroc_estimate(cohort(study.y, study.p, study.patients))
    hopeless = "no threshold helps where the AUROC was not shown to exceed .5" if not auroc.low > 0.5 else ""
    needed = {
        "better_than_frozen": next((c["k"] for c in curve if c["better_than_frozen"] >= OFTEN), None),
        "target_met": next((c["k"] for c in curve if c["target_met"] >= OFTEN), None),
    }
    return {
        "frozen": _at(study, study.threshold, np.ones(study.n, dtype=bool)),
        "target": target,
        "draws": draws,
        "often": OFTEN,
        "curve": curve,
        "labels_needed": dict.fromkeys(needed) if hopeless else needed,
        "why_none": hopeless or None,
    }


def _draw(study: Study, codes: Ints, k: int, target: float, rng: np.random.Generator) -> dict[str, float] | None:
    order = rng.permutation(codes.max() + 1)
    sizes = np.bincount(codes)[order]
    chosen = np.isin(codes, order[: int(np.searchsorted(np.cumsum(sizes), k)) + 1])
    y, rest = study.y[chosen], ~chosen
    if y.all() or not y.any() or min(study.y[rest].sum(), (~study.y[rest]).sum()) < LEAST:
        return None
    balanced = youden(y, study.p[chosen])
    reaching, _ = threshold_reaching(y, study.p[chosen], study.patients[chosen].tolist(), target)
    thresholds = {"balanced": balanced, "sensitivity": reaching, "frozen": study.threshold}
    row = {f"{name}_threshold": value for name, value in thresholds.items()}
    for name, threshold in thresholds.items():
        called = study.p[rest] >= threshold
        row[f"{name}_sensitivity"] = float(called[study.y[rest]].mean())
        row[f"{name}_specificity"] = float((~called[~study.y[rest]]).mean())
    return row


def youden(y: Bools, p: Floats) -> float:
    """Return the middle of the first interval of thresholds that maximise sensitivity + specificity.

    `y`: bool [n] with both classes; `p`: float64 [n] in 0..1.
    """
    edges = np.concatenate([[0.0], np.unique(p), [1.0]])
    cuts = (edges[:-1] + edges[1:]) / 2
    missed = np.searchsorted(np.sort(p[y]), cuts) / y.sum()
    spared = np.searchsorted(np.sort(p[~y]), cuts) / (~y).sum()
    return float(cuts[int(np.argmax(np.round(spared - missed, 12)))])


def _summary(k: int, rows: list[dict[str, float]], draws: int, target: float) -> dict[str, Any]:
    if not rows:
        return {"k": k, "undetermined": draws, "better_than_frozen": 0.0, "target_met": 0.0, "rules": {}}
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    gain = column["balanced_sensitivity"] + column["balanced_specificity"]
    gain = (gain - column["frozen_sensitivity"] - column["frozen_specificity"]) / 2

    def spread(values: Floats) -> dict[str, float]:
        low, middle, high = np.quantile(values, (0.025, 0.5, 0.975))
        return {"median": float(middle), "low": float(low), "high": float(high)}

    return {
        "k": k,
        "undetermined": draws - len(rows),
        "better_than_frozen": float((gain > 0).sum() / draws),
        "target_met": float((column["sensitivity_sensitivity"] >= target).sum() / draws),
        "gain_balanced_accuracy": spread(gain),
        "rules": {
            rule: {figure: spread(column[f"{rule}_{figure}"]) for figure in ("threshold", "sensitivity", "specificity")}
            for rule in RULES
        },
    }


def left_out_sites(study: Study, *, seed: int, resamples: int = 1000) -> list[dict[str, Any]]:
    """Return, for every site, the results of a threshold and a Platt calibration chosen at the other sites.

    The network stays as it is: only threshold and calibration are chosen without the site. Patients of the site who
    also appear at other sites do not take part in the choice.
    """
    sites = []
    for level in study.levels(SITE) if len(study.levels(SITE)) > 1 else []:
        local = study.columns[SITE] == level
        others = ~local & (study.columns[SITE] != "") & ~np.isin(study.patients, study.patients[local])
        entry: dict[str, Any] = {"site": level, **counts(study.take(local))}
        fewest = [min(study.y[mask].sum(), (~study.y[mask]).sum()) for mask in (local, others)]
        if min(fewest) < LEAST:
            sites.append({**entry, "why_not": f"fewer than {LEAST} images of a class here or elsewhere"})
            continue
        rest = study.take(others)
        points = operating_points(rest.y, rest.p, rest.patients.tolist(), seed=seed, resamples=200)
        platt = fit("Platt", None)(rest.p, rest.y, study.p[local])
        sites.append(
            {
                **entry,
                "frozen": _at(study, study.threshold, local),
                "from_others": _at(study, points["balanced"].threshold, local),
                "calibration": {
                    "as shipped": _calibration(study.take(local), study.p[local], seed, resamples),
                    "Platt from the other sites": _calibration(study.take(local), platt, seed, resamples),
                },
            }
        )
    return sites


def _calibration(local: Study, p: Floats, seed: int, resamples: int) -> dict[str, Any]:
    patients = local.patients.tolist()
    metrics = evaluate_predictions(local.y, p, patients, local.threshold, seed=seed, resamples=resamples)
    lines = calibration_estimates(local.y, p, patients, seed=seed, resamples=resamples)
    return {name: e.as_json() for name, e in {**{k: metrics[k] for k in ("brier", "ece")}, **lines}.items()}


def _at(study: Study, threshold: float, mask: Bools) -> dict[str, Any]:
    called, y, patients = study.p[mask] >= threshold, study.y[mask], study.patients[mask]
    _, codes = np.unique(patients, return_inverse=True)
    return {
        "threshold": threshold,
        "sensitivity": proportion(called[y], codes[y]).as_json(),
        "specificity": proportion(~called[~y], codes[~y]).as_json(),
    }
