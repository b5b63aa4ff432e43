"""Checks of labels, patients and splits, and of properties that predict the label without the lungs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.data.checks.problems import EXAMPLES, Evidence, Problem, amount, of_images
from pneumoscope.data.checks.shortcuts import LIMIT
from pneumoscope.records import LABELS, PNEUMONIA, SPLITS
from pneumoscope.statistics.auc import newcombe_interval
from pneumoscope.statistics.proportions import Z95, wilson

IMBALANCE = 2.0
EXPECTED = 0.95  # accuracy and AUROC at which the precision of a split is computed
HALF_WIDTH = 0.05

# --- labels and patients ----------------------------------------------------------------------------------


def check_labels(evidence: Evidence) -> list[Problem]:
    """Report missing labels, a class without images, and unequal classes."""
    table = evidence.table
    problems = of_images(
        table[table["label"].isna()],
        "missing_labels",
        "warning",
        says=("has", "have", "no label"),
        remedy="fill in the label column; they take part in nothing but prediction",
    )
    counts = {label: int((table["label"] == label).sum()) for label in LABELS}
    absent = [label for label in LABELS if counts[label] == 0]
    if absent:
        text = f"no image is labelled {' or '.join(absent)}"
        remedy = "add images of that class, there is no training and no AUROC without them"
        return [*problems, Problem("missing_class", "warning", len(absent), text, remedy)]
    few, many = sorted(LABELS, key=lambda label: counts[label])
    ratio = counts[many] / counts[few]
    if ratio >= IMBALANCE:
        text = f"{ratio:.1f} {many} images for each {few} image ({counts[many]:,} to {counts[few]:,})"
        remedy = "weight or resample the classes, and report balanced accuracy and AUROC beside accuracy"
        problems.append(Problem("imbalance", "warning", counts[many], text, remedy))
    return problems


def check_patients(evidence: Evidence) -> list[Problem]:
    """Report patients in two splits, and patient numbers that stand for two children."""
    table = evidence.table
    problems = []
    splits = table[table["split"].notna()].groupby("patient_id")["split"].unique()
    astride = [f"{patient}: {', '.join(names)}" for patient, names in splits.items() if len(names) > 1]
    if astride:
        text = f"{amount(len(astride), 'patient has', 'patients have')} images in two splits"
        remedy = "join the splits and split again by patient_id"
        problems.append(
            Problem(
                "patient_in_two_splits",
                "error",
                len(astride),
                text,
                remedy,
                tuple(astride[:EXAMPLES]),
                voids=True,
            )
        )
    shared = _shared_numbers(table)
    if shared:
        text = (
            f"{amount(len(shared), 'patient number occurs', 'patient numbers occur')} with bacterial and "
            "with viral pneumonia; numbers are given out anew for each, so they count as different children"
        )
        remedy = "group by subtype and number, as is done here, never by the number alone"
        examples = tuple(f"person{number}" for number in shared[:EXAMPLES])
        problems.append(Problem("shared_patient_numbers", "note", len(shared), text, remedy, examples))
    return problems


def _shared_numbers(table: pd.DataFrame) -> list[int]:
    kinds: dict[int, set[str]] = {}
    for patient in table["patient_id"].unique():
        if match := re.fullmatch(r"(bacteria|virus)-person(\d+)", patient):
            kinds.setdefault(int(match[2]), set()).add(match[1])
    return sorted(number for number, names in kinds.items() if len(names) > 1)


# --- splits -----------------------------------------------------------------------------------------------


def precision(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for each split (or the whole), how exactly a network of .95 could be measured on it.

    `half_width`: half the length of the 95 % interval that so many images, were they independent, give to
    an accuracy of .95 (Wilson 1927) and to an AUROC of .95 (Newcombe 2006); None with one class only.
    """
    labelled = table[table["label"].notna()]
    parts = {str(name): part for name, part in labelled.groupby("split")}
    if not parts and len(labelled):
        parts = {"all": labelled}
    result = []
    for name in sorted(parts, key=lambda key: SPLITS.index(key) if key in SPLITS else -1):
        n, positive = len(parts[name]), int((parts[name]["label"] == PNEUMONIA).sum())
        auroc = _half(newcombe_interval(EXPECTED, positive, n - positive)) if 0 < positive < n else None
        half_width = {"accuracy": _half(wilson(EXPECTED, n)), "auroc": auroc}
        result.append({"split": name, "n": n, "n_pneumonia": positive, "half_width": half_width})
    return result


def _half(ends: tuple[float, float]) -> float:
    return (ends[1] - ends[0]) / 2


def check_splits(evidence: Evidence) -> list[Problem]:
    """Report splits too small to choose or measure a network on, and a prevalence that shifts."""
    rows = precision(evidence.table)
    measured = [row for row in rows if row["split"] != "train"]
    train = next((row for row in rows if row["split"] == "train"), None)
    problems = [problem for row in measured for problem in _too_small(row)]
    if train is not None:
        problems += [problem for row in measured for problem in _shift(train, row)]
    return problems


def _too_small(row: dict[str, Any]) -> list[Problem]:
    name = "the source" if row["split"] == "all" else f"split {row['split']}"
    auroc, accuracy = row["half_width"]["auroc"], row["half_width"]["accuracy"]
    if auroc is None:
        text = f"{name} has one class only, so it has no AUROC"
        return [Problem("one_class_split", "warning", row["n"], text, "add images of the other class")]
    if auroc <= HALF_WIDTH:
        return []
    text = (
        f"{name} has {amount(row['n'], 'image', 'images')}: too few to choose or measure a network on; "
        f"an AUROC of {EXPECTED} would be known to ±{auroc:.2f}, an accuracy to ±{accuracy:.2f}"
    )
    remedy = {
        "all": "report figures with their intervals, or cross-validate (data.folds)",
        "test": "report figures with their intervals, or collect more",
    }.get(row["split"], "join it with train, and divide anew by patient")
    return [Problem("small_split", "warning", row["n"], text, remedy)]


def _shift(train: dict[str, Any], row: dict[str, Any]) -> list[Problem]:
    """Compare two shares of pneumonia by the normal interval of their difference."""
    shares = [part["n_pneumonia"] / part["n"] for part in (train, row)]
    variance = sum(p * (1 - p) / part["n"] for p, part in zip(shares, (train, row), strict=True))
    if abs(shares[0] - shares[1]) <= Z95 * math.sqrt(variance):
        return []
    text = f"{100 * shares[0]:.1f} % of train is pneumonia, {100 * shares[1]:.1f} % of {row['split']}"
    remedy = "expect the operating point to shift; choose it at the prevalence of use"
    return [Problem("prevalence_shift", "warning", row["n"], text, remedy)]


# --- shortcuts --------------------------------------------------------------------------------------------


def check_shortcuts(evidence: Evidence) -> list[Problem]:
    """Report properties other than the lungs that predict the label."""
    flagged = [row for row in evidence.shortcuts if row["flagged"]]
    if not flagged:
        return []
    flagged.sort(key=lambda row: -abs(row["auroc"]["value"] - 0.5))
    lines = [f"{row['name']}: {_auroc(row)}" for row in flagged]
    text = (
        f"{amount(len(flagged), 'property predicts', 'properties predict')} the label without the lungs, "
        f"most of all {lines[0]}; flagged where the interval lies outside {1 - LIMIT:.2f} to {LIMIT:.2f}"
    )
    remedy = (
        "exchange it between the classes in training (augment.style, framing, transplant), calibrate against it "
        "(train.stress), compare networks by evaluate --stress, and audit the one you keep"
    )
    return [Problem("shortcut", "warning", len(flagged), text, remedy, tuple(lines[:EXAMPLES]))]


def _auroc(row: dict[str, Any]) -> str:
    low, high = row["auroc"]["ci95"]
    return f"AUROC {row['auroc']['value']:.2f} (95 % CI {low:.2f}–{high:.2f})"


def check_passed_over(evidence: Evidence) -> list[Problem]:
    """Report files beside the images that were left out."""
    passed = evidence.scan.manifest.passed_over
    if not passed:
        return []
    lines = tuple(f"{Path(path).name}: {reason}" for path, reason in passed[:EXAMPLES])
    text = f"{amount(len(passed), 'file was', 'files were')} passed over"
    return [Problem("passed_over", "note", len(passed), text, "make sure that none is a radiograph", lines)]
