"""Paired comparison of evaluations of the same images, from their files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.bundle.overlap import LIMIT, TUNED
from pneumoscope.errors import DataError, storage_errors
from pneumoscope.files import out_folder, read_json, sha256_file, write_json
from pneumoscope.records import PNEUMONIA
from pneumoscope.statistics.comparison import Comparison, compare, holm


def compare_folders(folders: Sequence[Path], out: Path, *, seed: int = 0, anyway: bool = False) -> dict[str, Any]:
    """Compare every pair of evaluation folders, write `comparison.json` to `out` and return it.

    Each folder holds `metrics.json` and `predictions.csv`. p values are adjusted over the pairs (Holm 1979).
    `anyway`: also where the images trained or tuned a network, or one evaluation is named twice; `doubts` say so.

    Raises:
        DataError: fewer than two folders, one without its files, different images, or a doubt.
    """
    if len(folders) < 2:
        raise DataError("a comparison needs at least two evaluations", remedy="name two or more folders")
    doubts = [(folder, doubt) for at, folder in enumerate(folders) if (doubt := _doubt(folder, folders[:at]))]
    if doubts and not anyway:
        folder, doubt = doubts[0]
        raise DataError(doubt, path=folder, remedy="evaluate on images of a test, or add --anyway")
    tables = [_read(folder) for folder in folders]
    reference = tables[0]
    for folder, table in zip(folders[1:], tables[1:], strict=True):
        if not table.index.equals(reference.index) or not table["label"].equals(reference["label"]):
            raise DataError(
                f"was made on other images than {folders[0]}",
                path=folder,
                remedy="evaluate both on the same --data and --split",
            )
    # An image that any of them left out is compared for none.
    shared = pd.concat([table["probability"].notna() for table in tables], axis=1).all(axis=1).to_numpy()
    tables = [table[shared] for table in tables]
    names = _names(folders)
    y = (tables[0]["label"] == PNEUMONIA).to_numpy()
    patients = tables[0]["patient_id"].astype(str).tolist()
    comparisons: list[tuple[int, int, Comparison]] = []
    for i, j in combinations(range(len(folders)), 2):
        a, b = tables[i], tables[j]
        thresholds = (float(a["threshold"].iloc[0]), float(b["threshold"].iloc[0]))
        comparisons.append((i, j, compare(y, a["probability"], b["probability"], *thresholds, patients, seed=seed)))
    auroc_p = holm([c.auroc.p for _, _, c in comparisons])
    mcnemar_p = holm([c.mcnemar.p for _, _, c in comparisons])
    result = {
        "doubts": [{"dir": str(folder), "text": doubt} for folder, doubt in doubts],
        "n": len(y),
        "n_patients": len(set(patients)),
        "left_out": int((~shared).sum()),
        "evaluations": [
            {"name": name, "dir": str(folder), **_headline(folder)} for name, folder in zip(names, folders, strict=True)
        ],
        "pairs": [
            _pair(names[i], names[j], c, float(auroc_p[k]), float(mcnemar_p[k]))
            for k, (i, j, c) in enumerate(comparisons)
        ],
    }
    out_folder(out)
    write_json(out / "comparison.json", result)
    return result


def _doubt(folder: Path, before: Sequence[Path]) -> str | None:
    """Return why an evaluation proves nothing beside the ones before it, None where nothing speaks against it."""
    same = [other for other in before if _content(other) is not None and _content(other) == _content(folder)]
    if same:
        return f"holds the same predictions as {same[0]}"
    metrics = folder / "metrics.json"
    overlap = (read_json(metrics).get("overlap") or {}) if metrics.is_file() else {}
    tuned = {name: count for name, count in (overlap.get("parts") or {}).items() if name in TUNED}
    if sum(tuned.values()) > LIMIT * overlap.get("images", 0) * overlap.get("share", 1):
        each = " and ".join(f"{count:,} {name}" for name, count in tuned.items())
        return f"was made on images that trained or tuned its network ({each})"
    if not overlap and (folder / "run.json").is_file():
        return "was made on the validation images, which chose the epoch and the threshold"
    return None


def _content(folder: Path) -> str | None:
    file = folder / "predictions.csv"
    return sha256_file(file) if file.is_file() else None


def _read(folder: Path) -> pd.DataFrame:
    for name in ("metrics.json", "predictions.csv"):
        if not (folder / name).is_file():
            raise DataError(f"holds no {name}", path=folder, remedy="name a folder that `pneumoscope evaluate` wrote")
    file = folder / "predictions.csv"
    with storage_errors(file):
        try:
            table = pd.read_csv(file, dtype={"path": str, "patient_id": str, "label": str})
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise DataError(f"is not a CSV table ({error})", path=file, remedy="evaluate again") from error
    missing = [name for name in ("path", "patient_id", "label", "probability", "threshold") if name not in table]
    if missing:
        raise DataError(f"lacks the column {', '.join(missing)}", path=file, remedy="evaluate again")
    return table.set_index("path").sort_index()


def _headline(folder: Path) -> dict[str, Any]:
    file = folder / "metrics.json"
    metrics = read_json(file)
    try:
        return {key: metrics[key] for key in ("metrics", "threshold", "bundle")}
    except (KeyError, TypeError) as error:
        raise DataError(f"lacks {error}", path=file, remedy="evaluate again") from error


def _names(folders: Sequence[Path]) -> list[str]:
    """Return names that tell the folders apart: of the run or the folder, or all paths where these are not enough."""
    absolute = [folder.resolve() for folder in folders]
    names = [folder.parent.name if folder.name == "evaluation" else folder.name for folder in absolute]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _pair(a: str, b: str, c: Comparison, auroc_holm: float, mcnemar_holm: float) -> dict[str, Any]:
    def difference(name: str) -> dict[str, Any]:
        return {"difference": c.differences[name].estimate.as_json(), "p": c.differences[name].p}

    return {
        "a": a,
        "b": b,
        "auroc": {
            "difference": c.auroc.difference.as_json(),
            "p": c.auroc.p,
            "p_holm": auroc_holm,
            "method": c.auroc.difference.method,
        },
        "mcnemar": {
            "p": c.mcnemar.p,
            "p_holm": mcnemar_holm,
            "only_a_right": c.mcnemar.only_a,
            "only_b_right": c.mcnemar.only_b,
            "method": c.mcnemar.method,
        },
        "accuracy": difference("accuracy"),
        "balanced_accuracy": difference("balanced_accuracy"),
    }
