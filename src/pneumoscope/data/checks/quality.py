"""What is wrong with a data source, and which of it would void a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.data.acquisition import Boxes
from pneumoscope.data.checks.duplicates import near_pairs, same_groups
from pneumoscope.data.checks.images import (
    CONSTANT_STD,
    check_duplicates,
    check_near_duplicates,
    check_pixels,
    check_readable,
)
from pneumoscope.data.checks.labels import (
    check_labels,
    check_passed_over,
    check_patients,
    check_shortcuts,
    check_splits,
    precision,
)
from pneumoscope.data.checks.problems import Evidence, Problem
from pneumoscope.data.checks.shortcuts import LIMIT, shortcuts
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.mosaic import write_mosaic
from pneumoscope.data.scan import Scan, scan
from pneumoscope.files import out_folder, write_json
from pneumoscope.records import RESEARCH_ONLY, Progress
from pneumoscope.version import __version__

SHOWN_PAIRS = 16

CHECKS: tuple[Callable[[Evidence], list[Problem]], ...] = (
    check_readable,
    check_duplicates,
    check_patients,
    check_pixels,
    check_near_duplicates,
    check_labels,
    check_splits,
    check_shortcuts,
    check_passed_over,
)
_ORDER = {"error": 0, "warning": 1, "note": 2}


def check(
    manifest: Manifest,
    out: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    scanned: Scan | None = None,
    boxes: Boxes | None = None,
) -> dict[str, Any]:
    """Check a data source; write `quality.json` and figures into `out`, return the JSON.

    Its `verdict` is `problems` where there is an error or a warning, else `ok`; `voids_result` decides.

    Args:
        manifest: the images.
        out: output folder.
        seed: of the bootstrap and the folds behind the shortcut figures.
        progress: called with (images done, images in all).
        scanned: an existing scan of this manifest.
        boxes: finds the lungs, for what their framing tells; see `lungs.boxes`.

    Raises:
        StorageError: `out` cannot be written.
    """
    out_folder(out)
    evidence = gather(scanned or scan(manifest, progress=progress), seed=seed, boxes=boxes, progress=progress)
    problems = [problem for test in CHECKS for problem in test(evidence)]
    problems = sorted(problems, key=lambda problem: (_ORDER[problem.severity], not problem.voids))
    result = {
        "source": str(manifest.source),
        "sha256": manifest.fingerprint(),
        "pneumoscope": __version__,
        "notice": RESEARCH_ONLY,
        "n": len(manifest),
        "n_readable": int(evidence.scan.readable.sum()),
        "patient_rule": manifest.patient_rule,
        "verdict": "problems" if any(problem.severity != "note" for problem in problems) else "ok",
        "problems": [asdict(problem) for problem in problems],
        "precision": precision(evidence.table),
        "shortcuts": {"limit": LIMIT, "features": evidence.shortcuts},
        "figures": _figures(evidence, out),
    }
    write_json(out / "quality.json", result)
    return result


def voids_result(quality: dict[str, Any]) -> bool:
    """Say whether a figure measured on this source would be wrong: the exit status of `data check`.

    It would where one image carries two labels, where a patient or an identical image is in two splits, or
    where more than 5 % of the images of a class cannot be read. The rest is reported and left to judgement.
    """
    return any(problem["voids"] for problem in quality["problems"])


def gather(measured: Scan, *, seed: int = 0, boxes: Boxes | None = None, progress: Progress | None = None) -> Evidence:
    """Compare the images with each other and measure the shortcuts."""
    equal = same_groups(measured.table["pixels_sha256"].tolist())
    copies = [row for group in equal for row in group[1:]]
    compared = measured.readable & (measured.table["std"] >= CONSTANT_STD).to_numpy(bool)
    compared[copies] = False
    near = near_pairs(measured.hashes, measured.thumbs, np.flatnonzero(compared))
    near.sort(key=lambda pair: pair.correlation)  # the least certain first, so that they are the ones shown
    return Evidence(measured, equal, near, shortcuts(measured, seed=seed, boxes=boxes, progress=progress))


def _figures(evidence: Evidence, out: Path) -> dict[str, Any]:
    """Draw pairs side by side, four to a row: the least certain near duplicates, the label conflicts."""
    conflicts = [list(group[:2]) for group in evidence.differing(evidence.equal, "label")]
    near = [[pair.first, pair.second] for pair in evidence.near]
    figures = {}
    for name, pairs in (("near-duplicates", near), ("label-conflicts", conflicts)):
        if not pairs:
            continue
        shown = pairs[:SHOWN_PAIRS]
        file = out_folder(out / "figures") / f"{name}.png"
        write_mosaic(file, [str(evidence.table["path"][row]) for pair in shown for row in pair], columns=8)
        names = [evidence.names(pair) for pair in shown]
        figures[name.replace("-", "_")] = {
            "file": f"figures/{file.name}",
            "names": names,
            "pairs": len(pairs),
        }
    return figures
