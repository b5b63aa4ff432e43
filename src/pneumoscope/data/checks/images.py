"""Checks of the images: unreadable, unfit, or duplicated."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from scipy.stats import fisher_exact

from pneumoscope.data.checks.duplicates import MAX_PAIRS, same_groups
from pneumoscope.data.checks.problems import EXAMPLES, Evidence, Problem, Severity, amount, of_images
from pneumoscope.data.checks.shortcuts import is_colour
from pneumoscope.data.scan import UNLABELLED
from pneumoscope.images.depth import GUESSED
from pneumoscope.records import LABELS

UNREADABLE_LIMIT = 0.05  # above it the readable images no longer represent the source
CONSTANT_STD = 0.5 / 255
SMALL_SIDE = 128
ALPHA = 0.05  # of Fisher's exact test that colour and class are unrelated

# --- single images ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reason:
    kind: str
    pattern: re.Pattern[str]  # the words of `images.read_image`, or Pillow's and pydicom's within them
    says: str
    remedy: str


_REASONS = (
    _Reason("empty", re.compile(r"is empty"), "0 bytes long", "copy them again from their source"),
    _Reason(
        "truncated",
        re.compile(r"truncat|end of file|EOF", re.IGNORECASE),
        "cut off before the end",
        "copy them again from their source",
    ),
    _Reason("too_small", re.compile(r"pixels, at least"), "too small to show a lung", "use the originals"),
    _Reason("unreadable", re.compile(r""), "unreadable", "export them again or delete them"),
)


def check_readable(evidence: Evidence) -> list[Problem]:
    """Report the files that cannot be read, by reason; they void where a class loses more than 5 %."""
    table = evidence.table
    failed = table["error"] != ""
    lost = failed.groupby(table["label"]).mean()  # images without a label enter no result
    voids = bool((lost > UNREADABLE_LIMIT).any())
    broken = table[failed]
    kinds = [next(reason for reason in _REASONS if reason.pattern.search(text)) for text in broken["error"]]
    problems = []
    for reason in _REASONS:
        rows = broken[[kind is reason for kind in kinds]]
        if rows.empty:
            continue
        examples = [f"{name}: {error}" for name, error in zip(rows["name"], rows["error"], strict=True)]
        text = f"{amount(len(rows), 'file is', 'files are')} {reason.says} and will be left out"
        problems.append(
            Problem(reason.kind, "error", len(rows), text, reason.remedy, tuple(examples[:EXAMPLES]), voids=voids)
        )
    return problems


def check_pixels(evidence: Evidence) -> list[Problem]:
    """Report constant images, those of low resolution, of a depth that is not stated, and those stored in colour."""
    table = evidence.table[evidence.scan.readable]
    constant = of_images(
        table[table["std"] < CONSTANT_STD],
        "constant",
        "error",
        says=("is", "are", "of one shade and show no radiograph"),
        remedy="delete them or export them again",
    )
    small = of_images(
        table[table[["width", "height"]].min(axis=1) < SMALL_SIDE],
        "low_resolution",
        "warning",
        says=("has", "have", f"fewer than {SMALL_SIDE} pixels on the short side, fine opacities are lost"),
        remedy="use larger versions where they exist",
    )
    guessed = of_images(
        table[table["notes"].str.contains(GUESSED, regex=False)],
        "unstated_depth",
        "warning",
        says=("does", "do", "not state how deep the pixels are: white was guessed from the brightest"),
        remedy="state it (sBIT of a PNG, SMaxSampleValue of a TIFF), or export 8 bits or all 16",
    )
    return [*constant, *small, *guessed, *_colour(evidence)]


def _colour(evidence: Evidence) -> list[Problem]:
    table = evidence.table[evidence.scan.readable]
    colour = table["mode"].map(is_colour).astype(bool)
    if not colour.any():
        return []
    labels = table["label"].fillna(UNLABELLED)
    shares = colour.groupby(labels).mean()
    cells = [[int((colour & (labels == name)).sum()), int((~colour & (labels == name)).sum())] for name in LABELS]
    differs = fisher_exact(np.array(cells)).pvalue < ALPHA
    by_class = ", ".join(f"{100 * share:.1f} % of {label}" for label, share in shares.items())
    return of_images(
        table[colour],
        "colour",
        "warning" if differs else "note",
        says=("is", "are", f"stored in colour ({by_class})"),
        remedy="they are read as grey; make sure that nothing was drawn onto them",
    )


# --- images that occur twice ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Finding:
    kind: str
    severity: Severity
    groups: list[list[int]]
    says: str
    remedy: str
    voids: bool = False


def check_duplicates(evidence: Evidence) -> list[Problem]:
    """Report identical images: under two labels, in two splits, under two patients, and in all."""
    identical = same_groups(evidence.table["sha256"].tolist())
    in_files = {row for group in identical for row in group}
    pixels_only = [group for group in evidence.equal if not in_files.issuperset(group)]
    labels, splits, patients = (
        [list(group) for group in evidence.differing(evidence.equal, column)]
        for column in ("label", "split", "patient_id")
    )
    once = "delete all copies but one, because they count double"
    findings = (
        _Finding(
            "label_conflict",
            "error",
            labels,
            "the same image under two labels",
            "correct the label, or delete all copies",
            True,
        ),
        _Finding(
            "duplicates_across_splits",
            "error",
            splits,
            "the same image in two splits, trained on in one and tested in the other",
            "delete all copies but one",
            True,
        ),
        _Finding(
            "duplicates_across_patients",
            "warning",
            patients,
            "the same image under two patients, so that a split by patient can part its copies",
            "delete all copies but one, or give them one patient_id",
        ),
        _Finding("identical_files", "warning", identical, "identical files", once),
        _Finding("identical_pixels", "warning", pixels_only, "different files with identical pixels", once),
    )
    return [_grouped(evidence, finding) for finding in findings if finding.groups]


def _grouped(evidence: Evidence, finding: _Finding) -> Problem:
    n = len(finding.groups)
    files = sum(len(group) for group in finding.groups)
    return Problem(
        finding.kind,
        finding.severity,
        n,
        f"{amount(n, 'group', 'groups')} of {files:,} files: {finding.says}",
        finding.remedy,
        tuple(evidence.names(group) for group in finding.groups[:EXAMPLES]),
        voids=finding.voids,
    )


def check_near_duplicates(evidence: Evidence) -> list[Problem]:
    """Report pairs of nearly the same image; none voids, because a person has to decide."""
    pairs = [(pair.first, pair.second) for pair in evidence.near]
    at_least = "at least " if len(pairs) >= MAX_PAIRS else ""
    kinds = (
        ("near_duplicates", pairs, "nearly the same image", "keep one of each pair"),
        (
            "near_label_conflict",
            evidence.differing(pairs, "label"),
            "nearly the same image under two labels",
            "correct the labels",
        ),
        (
            "near_across_splits",
            evidence.differing(pairs, "split"),
            "nearly the same image in two splits",
            "keep one of each pair",
        ),
        (
            "near_across_patients",
            evidence.differing(pairs, "patient_id"),
            "nearly the same image under two patients",
            "keep one of each pair, or give both one patient_id",
        ),
    )
    return [
        Problem(
            kind,
            "warning",
            len(rows),
            f"{at_least}{amount(len(rows), 'pair', 'pairs')}: {text}",
            f"look at the figure, then {remedy}",
            tuple(evidence.names(pair) for pair in rows[:EXAMPLES]),
        )
        for kind, rows, text, remedy in kinds
        if rows
    ]
