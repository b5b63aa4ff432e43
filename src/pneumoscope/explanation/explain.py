"""Explanations as files: original, overlay, map and what is known about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pneumoscope.errors import ConfigError, ImageError
from pneumoscope.explanation import METHODS, Options
from pneumoscope.explanation.faithfulness import with_faithfulness
from pneumoscope.explanation.method import DEFAULTS
from pneumoscope.explanation.overlay import overlay
from pneumoscope.explanation.stability import with_stability
from pneumoscope.files import atomic_path, out_folder, write_json
from pneumoscope.images import read_image
from pneumoscope.predict import Classifier
from pneumoscope.preparation import Pixels
from pneumoscope.records import PNEUMONIA, RESEARCH_ONLY, Heatmap

_SHOWN = 1024  # longest side of the written pictures, pixels


def explain_images(
    classifier: Classifier,
    paths: Sequence[str],
    methods: Sequence[str],
    out: Path,
    *,
    options: Options = DEFAULTS,
    check: bool = False,
) -> list[dict[str, Any]]:
    """Explain images by every method; returns one entry per image and method, with `error` where one failed.

    Writes to `out`, for image number N: `N-STEM.png`, `N-STEM-METHOD.png` (overlay), `.npz` (the map, float32
    [S, S], and what else the method found) and `.json`, and `index.json` with all entries. With `check` each map is
    tested, which takes several times as long; else its verdict is `not tested`.

    Raises:
        ConfigError: a method is unknown.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ConfigError(f"no method is called {unknown[0]!r}", remedy=f"use {', '.join(METHODS)}")
    out_folder(out)
    entries: list[dict[str, Any]] = []
    for number, path in enumerate(paths, start=1):
        stem = f"{number:03d}-{_safe(path)}"
        entries += _explain_one(classifier, path, methods, out, stem, options=options, check=check)
    write_json(out / "index.json", entries)
    return entries


def _safe(path: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(path).stem)[:60]


def _explain_one(
    classifier: Classifier,
    path: str,
    methods: Sequence[str],
    out: Path,
    stem: str,
    *,
    options: Options,
    check: bool,
) -> list[dict[str, Any]]:
    try:
        radiograph = read_image(path)
    except ImageError as error:
        return [{"path": path, "error": str(error)}]
    prediction = next(iter(classifier.predict([path])))
    pixels = _shrink(radiograph.pixels)
    _save_png(out / f"{stem}.png", np.asarray(pixels * 255, np.uint8))
    # The same reduced decoding as in `predict`, so that the map belongs to the score beside it.
    canvas = classifier.canvas(read_image(path, at_least=2 * classifier.bundle.preparation.canvas))
    entries = []
    for method in methods:
        entry = {**prediction.as_json(), "image": f"{stem}.png", "method": method, "notice": RESEARCH_ONLY}
        if prediction.abstained:
            entries.append({**entry, "overlay": None, "verdict": f"not explained: {prediction.reason}"})
            continue
        heatmap = explain_canvas(classifier, canvas, method, options, check=check)
        name = f"{stem}-{method}"
        _save_png(out / f"{name}.png", overlay(pixels, _uncover(heatmap.values, pixels.shape, classifier)))
        _save_arrays(out / f"{name}.npz", heatmap)
        entry |= {"overlay": f"{name}.png", "map": f"{name}.npz", **heatmap.facts()}
        write_json(out / f"{name}.json", entry)
        entries.append(entry)
    return entries


def explain_canvas(
    classifier: Classifier, canvas: Pixels, method: str, options: Options = DEFAULTS, *, check: bool = False
) -> Heatmap:
    """Return the map of one image, uint8 [canvas, canvas]; with `check` its stability and faithfulness are tested."""
    if not check:
        return METHODS[method](classifier, canvas, options)
    heatmap = with_stability(METHODS[method], classifier, canvas, options)
    return with_faithfulness(heatmap, classifier, canvas, fill=options.fill, seed=options.seed)


def _save_arrays(path: Path, heatmap: Heatmap) -> None:
    found: dict[str, Any] = {
        "map": heatmap.values,
        "signed": heatmap.signed,
        "segments": heatmap.segments,
        "contributions": heatmap.contributions,
    }
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **{key: array for key, array in found.items() if array is not None})


def _uncover(heat: np.ndarray[Any, Any], shape: tuple[int, ...], classifier: Classifier) -> np.ndarray[Any, Any]:
    """Cut away the rows or columns of the map that lie on padding."""
    if classifier.bundle.preparation.aspect != "pad":
        return heat
    height, width = shape
    side, size = max(height, width), heat.shape[0]
    rows, columns = round(size * height / side), round(size * width / side)
    top, left = (size - rows) // 2, (size - columns) // 2
    return heat[top : top + rows, left : left + columns]


def _shrink(pixels: Any) -> Any:
    height, width = pixels.shape
    factor = _SHOWN / max(height, width)
    if factor >= 1:
        return pixels
    size = (round(width * factor), round(height * factor))
    shrunk = Image.fromarray(np.asarray(pixels * 255, np.uint8)).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(shrunk, np.float32) / np.float32(255)


def _save_png(path: Path, pixels: Any) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def typical_and_wrong(predictions: pd.DataFrame, each: int = 3) -> list[tuple[str, str]]:
    """Choose (path, case) to explain: the most confident right answers and the most confident errors of each kind.

    `predictions`: the table of `predictions.csv`. Chosen by the score alone, not by how the maps look.
    """
    table = predictions[predictions["probability"].notna()]
    sick, called = table["label"] == PNEUMONIA, table["predicted"] == PNEUMONIA
    cases = (
        ("true positive", sick & called, False),
        ("true negative", ~sick & ~called, True),
        ("false positive", ~sick & called, False),
        ("false negative", sick & ~called, True),
    )
    chosen = []
    for case, mask, ascending in cases:
        rows = table[mask].sort_values(["probability", "path"], ascending=[ascending, True]).head(each)
        chosen += [(str(path), case) for path in rows["path"]]
    return chosen


def explain_evaluation(classifier: Classifier, evaluation: Path, each: int) -> None:
    """Explain `each` of the most confident right and wrong answers of an evaluation folder, for its report."""
    table = pd.read_csv(evaluation / "predictions.csv")
    truth = dict(zip(table["path"], table["label"], strict=True))
    cases = dict(typical_and_wrong(table, each))
    folder = evaluation / "explanations"
    entries = explain_images(classifier, list(cases), ["gradcam"], folder)
    told = [{**e, "case": cases[e["path"]], "predicted": e.get("label"), "label": truth[e["path"]]} for e in entries]
    write_json(folder / "index.json", told)
