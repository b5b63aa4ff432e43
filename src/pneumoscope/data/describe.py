"""What is in a data source: counts, sizes, intensities and pictures, per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.data.manifest import Manifest
from pneumoscope.data.mosaic import write_difference, write_grey, write_mosaic
from pneumoscope.data.scan import BINS, UNLABELLED, Scan, scan
from pneumoscope.files import out_folder, write_json
from pneumoscope.records import LABELS, NORMAL, PNEUMONIA, RESEARCH_ONLY, SPLITS, SUBTYPES, Progress
from pneumoscope.version import __version__

SHOWN = 24  # images in a mosaic
COLUMNS = 8
_POINTS = (("min", 0), ("p05", 5), ("p25", 25), ("median", 50), ("p75", 75), ("p95", 95), ("max", 100))


def describe(
    manifest: Manifest,
    out: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    scanned: Scan | None = None,
) -> dict[str, Any]:
    """Describe a data source; write `describe.json` and `figures/*.png` into `out`, return the JSON.

    Args:
        manifest: the images.
        out: output folder.
        seed: draws the images of the mosaics.
        progress: called with (images done, images in all).
        scanned: an existing scan of this manifest.

    Raises:
        StorageError: `out` cannot be written.
    """
    out_folder(out)
    measured = scanned or scan(manifest, progress=progress)
    table = measured.table
    result = {
        "source": str(manifest.source),
        "kind": manifest.kind,
        "sha256": manifest.fingerprint(),
        "pneumoscope": __version__,
        "notice": RESEARCH_ONLY,
        "seed": seed,
        "n": len(manifest),
        "n_readable": int(measured.readable.sum()),
        "n_passed_over": len(manifest.passed_over),
        "patient_rule": manifest.patient_rule,
        **_counts(table),
        "patients": _patients(table),
        "people": _people(table),
        "images": _images(table[measured.readable]),
        "intensity": _intensity(measured),
        "figures": _figures(measured, out, seed),
    }
    write_json(out / "describe.json", result)
    return result


def quantiles(values: pd.Series) -> dict[str, float | int] | None:
    """Return n, mean, minimum, maximum and the 5, 25, 50, 75, 95 % points; None where no value is known."""
    finite = values.to_numpy(float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return None
    points = {name: float(np.percentile(finite, at)) for name, at in _POINTS}
    return {"n": int(finite.size), "mean": float(finite.mean()), **points}


def labels_of(table: pd.DataFrame) -> list[str]:
    """Return the labels that occur, in their fixed order, `unlabelled` last."""
    present = set(table["label"].fillna(UNLABELLED))
    return [label for label in (*LABELS, UNLABELLED) if label in present]


def _by_label(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    keys = table["label"].fillna(UNLABELLED)
    return {label: table[keys == label] for label in labels_of(table)}


# --- counts -----------------------------------------------------------------------------------------------


def _counts(table: pd.DataFrame) -> dict[str, Any]:
    groups = _by_label(table)
    classes = {
        label: {
            "images": len(part),
            "patients": part["patient_id"].nunique(),
            "share": len(part) / len(table),
        }
        for label, part in groups.items()
    }
    subtypes = {
        name: {"images": int(mine.sum()), "patients": table.loc[mine, "patient_id"].nunique()}
        for name in SUBTYPES
        if (mine := table["subtype"] == name).any()
    }
    return {"classes": classes, "subtypes": subtypes, "splits": _cross(table, "split", order=SPLITS)}


def _cross(table: pd.DataFrame, column: str, order: tuple[str, ...] = ()) -> dict[str, dict[str, int]]:
    """Return value -> label -> images, with `unknown` for missing values; empty where all are missing."""
    if not table[column].notna().any():
        return {}
    values, labels = table[column].fillna("unknown"), table["label"].fillna(UNLABELLED)
    names = sorted(set(values), key=lambda name: (name == "unknown", _position(name, order), name))
    return {
        name: {label: int(((values == name) & (labels == label)).sum()) for label in labels_of(table)} for name in names
    }


def _position(name: str, order: tuple[str, ...]) -> int:
    return order.index(name) if name in order else len(order)


def _patients(table: pd.DataFrame) -> dict[str, Any]:
    labelled = table[table["label"].notna()]
    labels_each = labelled.groupby("patient_id")["label"].nunique()
    each = {label: part.groupby("patient_id").size() for label, part in _by_label(table).items()}
    return {
        "n": table["patient_id"].nunique(),
        "with_both_classes": int((labels_each > 1).sum()),
        "images_per_patient": {
            label: {
                **(quantiles(sizes) or {}),
                "histogram": {str(k): int(v) for k, v in sizes.value_counts().sort_index().items()},
            }
            for label, sizes in each.items()
        },
    }


def _people(table: pd.DataFrame) -> dict[str, Any]:
    ages = {label: quantiles(part["age_years"]) for label, part in _by_label(table).items()}
    return {
        "age_years": {label: points for label, points in ages.items() if points is not None},
        "sex": _cross(table, "sex"),
        "view": _cross(table, "view"),
        "site": _cross(table, "site"),
    }


# --- images -----------------------------------------------------------------------------------------------


def _images(table: pd.DataFrame) -> dict[str, Any]:
    measured = {
        "width": table["width"],
        "height": table["height"],
        "aspect_ratio": table["width"] / table["height"],
        "kilobytes": table["bytes"] / 1000,
    }
    frame = pd.DataFrame({**measured, "label": table["label"]})
    sizes = table.groupby(["width", "height"]).size().sort_values(ascending=False, kind="stable")
    notes = table["notes"][table["notes"] != ""].value_counts()
    return {
        **{
            name: {label: quantiles(part[name]) for label, part in _by_label(frame).items()}
            for name in measured
            if len(frame)
        },
        "sizes": {"distinct": len(sizes), "most_frequent": _most_frequent(sizes)},
        "formats": _cross(table, "format"),
        "modes": _cross(table, "mode"),
        "notes": {str(note): int(count) for note, count in notes.items()},
    }


def _most_frequent(sizes: pd.Series) -> list[dict[str, int]]:
    rows = sizes.head(5).rename("images").reset_index().astype(int)
    return [{str(key): int(value) for key, value in row.items()} for row in rows.to_dict("records")]


def _intensity(measured: Scan) -> dict[str, Any]:
    readable = measured.table[measured.readable]
    groups = _by_label(readable)
    return {
        "bins": BINS,
        "histogram": {label: measured.histograms[part.index].mean(axis=0) for label, part in groups.items()},
        "mean": {label: quantiles(part["mean"]) for label, part in groups.items()},
        "std": {label: quantiles(part["std"]) for label, part in groups.items()},
    }


# --- figures ----------------------------------------------------------------------------------------------


def _figures(measured: Scan, out: Path, seed: int) -> dict[str, Any]:
    folder = out_folder(out / "figures")
    mosaics = []
    for key, title, rows in _groups(measured):
        chosen = _draw(measured.table, rows, seed)
        file = folder / f"mosaic-{key}.png"
        write_mosaic(file, [str(measured.table["path"][row]) for row in chosen], columns=COLUMNS)
        names = [str(measured.table["name"][row]) for row in chosen]
        mosaics.append({"file": _relative(file), "title": title, "images": len(rows), "names": names})
    counts = measured.table[measured.readable]["label"].fillna(UNLABELLED).value_counts()
    averages = {
        label: measured.fields[label] / counts[label] for label in labels_of(measured.table) if label in measured.fields
    }
    means = {}
    top = max((float(average.max()) for average in averages.values()), default=1.0) or 1.0
    for label, average in averages.items():
        file = folder / f"mean-{label.lower()}.png"
        write_grey(file, average / top)  # one window for all classes
        means[label] = {"file": _relative(file), "images": int(counts[label])}
    return {
        "mosaics": mosaics,
        "means": means,
        "mean_window": [0, top],
        "difference": _difference(averages, folder),
    }


def _difference(averages: dict[str, NDArray[np.float64]], folder: Path) -> dict[str, Any] | None:
    if NORMAL not in averages or PNEUMONIA not in averages:
        return None
    file = folder / "difference.png"
    limit = write_difference(
        file, averages[PNEUMONIA] - averages[NORMAL], label="pneumonia − normal, mean pixel value (0..1)"
    )
    return {"file": _relative(file), "limit": limit}


def _relative(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _groups(measured: Scan) -> list[tuple[str, str, NDArray[np.int64]]]:
    """Return (key, title, rows) of each mosaic: the classes, pneumonia by subtype where it is known."""
    readable = measured.readable
    labels = measured.table["label"].fillna(UNLABELLED).to_numpy(str)
    subtypes = measured.table["subtype"].fillna("").to_numpy(str)
    result = []
    for label in labels_of(measured.table):
        parts = sorted(set(subtypes[labels == label]), key=lambda name: (name == "", name))
        for part in parts:
            rows = np.flatnonzero(readable & (labels == label) & (subtypes == part))
            rest = " of unknown subtype" if len(parts) > 1 else ""
            title = f"{label}, {part}" if part else f"{label}{rest}"
            if rows.size:
                result.append((f"{label}-{part}".strip("-").lower(), title, rows))
    return result


def _draw(table: pd.DataFrame, rows: NDArray[np.int64], seed: int) -> list[int]:
    """Draw up to 24 rows, of different patients first, and put them in the order of the manifest."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    repeated = table["patient_id"].iloc[shuffled].duplicated().to_numpy(bool)
    order = shuffled[np.argsort(repeated, kind="stable")]
    return sorted(order[:SHOWN].tolist())
