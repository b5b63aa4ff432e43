"""Examples on the card: an image under each condition, and the mean maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from pneumoscope.explanation.overlay import overlay
from pneumoscope.files import atomic_path
from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.shortcuts.attention import Attention
from pneumoscope.shortcuts.conditions import (
    Condition,
    border_added,
    border_masked,
    corners_masked,
    letter_pasted,
    lung_region_removed,
    lungs_only,
    lungs_removed,
    mirrored,
    untouched,
)
from pneumoscope.shortcuts.radiographs import Radiographs

_SIDE = 448
_OUTLINE = (86, 180, 233)  # the sky blue of the palette, seen on inferno and on grey
SHOWN: Mapping[str, Condition] = {
    "untouched": untouched,
    "lungs_only": lungs_only,
    "lungs_removed": lungs_removed,
    "lung_region_removed": lung_region_removed,
    "border_masked": border_masked,
    "corners_masked": corners_masked,
    "letter_pasted": letter_pasted,
    "border_added": border_added,
    "mirrored": mirrored,
}


def write_examples(radiographs: Radiographs, out: Path, seed: int) -> list[dict[str, Any]]:
    """Write one image of each class, drawn by seed, under every condition shown; return their records.

    Each is `{"file", "condition", "label"}`, the file relative to `out`, PNG, grey.
    """
    rng = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    groups: dict[str | None, NDArray[np.bool_]] = {None: np.ones(radiographs.n, np.bool_)}
    if radiographs.labels is not None:
        groups = {NORMAL: ~radiographs.labels, PNEUMONIA: radiographs.labels}
    for label, members in groups.items():
        if not members.any():
            continue
        chest = radiographs.chests[int(rng.choice(np.flatnonzero(members)))]
        for name, condition in SHOWN.items():
            file = f"figures/{(label or 'image').lower()}-{name}.png"
            _save(Image.fromarray(condition(chest, radiographs.fill)), out / file)
            records.append({"file": file, "condition": name, "label": label})
    return records


def write_maps(radiographs: Radiographs, measured: Mapping[str, Attention], out: Path) -> list[dict[str, Any]]:
    """Write the mean map of each method over the mean image, with the outline of the common lung region."""
    records = []
    mean = np.asarray(radiographs.canvases.mean(axis=0, dtype=np.float64) / 255, np.float32)
    usual = radiographs.lungs.mean(axis=0, dtype=np.float32) >= 0.5
    for method, measurement in measured.items():
        heat = measurement.mean_map / max(float(measurement.mean_map.max()), 1e-12)
        picture = Image.fromarray(overlay(mean, heat)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        mask = np.asarray(Image.fromarray(usual).resize((_SIDE, _SIDE)))
        drawn = np.array(picture)
        drawn[mask & ~binary_erosion(mask, iterations=2)] = _OUTLINE
        file = f"figures/map-{method}.png"
        _save(Image.fromarray(drawn), out / file)
        records.append({"file": file, "method": method, "images": measurement.n})
    return records


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        image.save(stream, format="PNG")
