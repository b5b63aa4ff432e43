"""Explanations as files: original, overlay, map and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pneumoscope.errors import ConfigError, ImageError
from pneumoscope.explanation import METHODS, Options
from pneumoscope.explanation.counterfactual import counterfactual
from pneumoscope.explanation.faithfulness import with_faithfulness, with_infidelity
from pneumoscope.explanation.method import DEFAULTS, energy
from pneumoscope.explanation.overlay import layer, overlay, scale
from pneumoscope.explanation.perturbation import network_input
from pneumoscope.explanation.similar import Gallery, nearest
from pneumoscope.explanation.stability import pooled, rank_correlation, with_stability
from pneumoscope.explanation.zoned import Lungs, find_lungs, open_segmenter, worths
from pneumoscope.files import atomic_path, out_folder, write_json
from pneumoscope.images import Header, open_image
from pneumoscope.images.find import missing
from pneumoscope.images.preparation import Pixels, image_box
from pneumoscope.lungs import ZONES, LungSegmenter
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, RESEARCH_ONLY, FloatArray, Heatmap, Progress

_STEPS = 9  # of the legend's colours
_SHOWN = 1024  # longest side of the written pictures, pixels


@dataclass(frozen=True)
class _Wanted:
    options: Options
    check: bool
    segmenter: LungSegmenter | str | None
    similar: Gallery | str | None


def explain_images(
    classifier: Classifier,
    paths: Sequence[str],
    methods: Sequence[str],
    out: Path,
    *,
    options: Options = DEFAULTS,
    check: bool = False,
    zones: bool = False,
    similar: Gallery | str | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Explain images by every method; returns one entry per image and method, with `error` where one failed.

    Writes to `out`, for image number N: `N-STEM.png`; `N-STEM.json`, what is known of the image; with zones
    `N-STEM-zones.npz`; `N-STEM-METHOD.png` (overlay), `-layer.png` (the map alone, transparent), `.npz` (the map,
    float32 [S, S], and the method's other results) and `.json`. For all: `index.json` with the entries, and
    `explanation.json` with the facts of the network.

    Args:
        classifier: the network.
        paths: image files.
        methods: keys of `METHODS`.
        out: the folder.
        options: of the methods.
        check: test each map, which takes several times as long; else its verdict is `not tested`.
        zones: segment the lungs and measure the effect of each zone, some 150 answers of the network for an image.
        similar: labelled images to compare with, or why there are none; None to leave the comparison out.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: a method is unknown.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ConfigError(f"no method is called {unknown[0]!r}", remedy=f"use {', '.join(METHODS)}")
    out_folder(out)
    wanted = _Wanted(options, check, open_segmenter() if zones else None, similar)
    context = _context(classifier, methods, wanted)
    entries: list[dict[str, Any]] = []
    images: list[str] = []
    for number, path in enumerate(paths, start=1):
        stem = f"{number:03d}-{_safe(path)}"
        image, explained = _explain_one(classifier, path, methods, out, stem, wanted)
        write_json(out / f"{stem}.json", image)
        images.append(f"{stem}.json")
        entries += explained
        if progress:
            progress(number, len(paths))
    write_json(out / "index.json", entries)
    write_json(out / "explanation.json", {**context, "images": images})
    return entries


def _context(classifier: Classifier, methods: Sequence[str], wanted: _Wanted) -> dict[str, Any]:
    """Return the facts of the network that a reader of a score needs: thresholds, figures, population, limits."""
    card = classifier.bundle.card
    facts: dict[str, Any] = {
        "notice": RESEARCH_ONLY,
        "bundle": {"name": classifier.bundle.name, "sha256": classifier.bundle.sha256},
        "operating_point": classifier.operating_point,
        "threshold": classifier.threshold,
        **{key: card.get(key) for key in ("operating_points", "population", "limits", "calibration")},
        "held_out": _held_out(card),
        "ages": classifier.ages,
        "methods": list(methods),
        "scale": scale(_STEPS),
        "options": asdict(wanted.options),
    }
    if wanted.similar is not None:
        gallery = wanted.similar
        facts["similar"] = {"reason": gallery} if isinstance(gallery, str) else gallery.facts()
    return facts


def _held_out(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a card's evidence from held-out images: their number, the threshold, and the figures of calls."""
    evaluation = (card.get("evidence") or {}).get("held_out")
    if not evaluation:
        return None
    facts = {key: evaluation.get(key) for key in ("n", "n_patients", "operating_point", "threshold", "data")}
    metrics = evaluation.get("metrics") or {}
    return {**facts, "metrics": {key: metrics.get(key) for key in ("recall", "specificity")}}


def _safe(path: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(path).stem)[:60]


def _explain_one(
    classifier: Classifier,
    path: str,
    methods: Sequence[str],
    out: Path,
    stem: str,
    wanted: _Wanted,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the facts of the image, and an entry for each method."""
    try:
        file = open_image(path)
        radiograph = file.decode(None)
    except ImageError as error:
        failed = {"path": path, "error": str(missing(path) or error)}
        return {**failed, "maps": []}, [failed]
    prediction = next(iter(classifier.predict([path])))
    # A map belongs to the network's input, so where that is cropped to the lungs, the crop is shown.
    pixels = _shrink(classifier.crop(radiograph.pixels) if classifier.crop else radiograph.pixels)
    _save_png(out / f"{stem}.png", np.asarray(pixels * 255, np.uint8))
    about: dict[str, Any] = {**prediction.as_json(), "image": f"{stem}.png", "notice": RESEARCH_ONLY}
    about["cut"] = classifier.crop is not None
    if prediction.abstained:
        reason = f"not explained: {prediction.reason}"
        return {**about, "maps": []}, [
            {**about, "method": name, "overlay": None, "verdict": reason} for name in methods
        ]
    # The same reduced decoding as in `predict`, so that the map belongs to the score beside it.
    canvas = classifier.canvas(file.decode(2 * classifier.bundle.preparation.canvas))
    heatmaps = {name: explain_canvas(classifier, canvas, name, wanted.options, check=wanted.check) for name in methods}
    box = image_box(pixels.shape, classifier.bundle.preparation)
    image: dict[str, Any] = {**about, "box": box, "age_checked": _age_checked(classifier, file.header)}
    lungs = None
    if wanted.segmenter is not None:
        lungs = find_lungs(classifier, canvas, wanted.segmenter)
        image |= _by_zone(classifier, canvas, lungs, wanted.options.fill, out / f"{stem}-zones.npz")
    if isinstance(wanted.similar, Gallery):
        image["similar"] = nearest(wanted.similar, path, canvas)
    agreements = {name: _agreements(name, heatmaps) for name in heatmaps}
    entries = []
    for method, heatmap in heatmaps.items():
        entry = {**about, **_save_map(out, f"{stem}-{method}", heatmap, pixels, box), **heatmap.facts()}
        entry["agreement"] = agreements[method]
        if lungs is not None:
            entry["energy_in_lungs"] = _energy(heatmap, lungs)
        write_json(out / f"{stem}-{method}.json", entry)
        entries.append(entry)
    return {**image, "maps": [f"{stem}-{method}.json" for method in heatmaps]}, entries


def _age_checked(classifier: Classifier, header: Header | None) -> bool:
    return classifier.ages is not None and header is not None and header.age_years is not None


def _by_zone(classifier: Classifier, canvas: Pixels, lungs: Lungs, fill: str, file: Path) -> dict[str, Any]:
    """Ask what the zones are worth, and keep where they lie."""
    facts: dict[str, Any] = {"lungs": {"found": lungs.zones is not None, "reason": lungs.reason}}
    facts["lungs"]["segmenter"] = lungs.segmenter
    if lungs.zones is None:
        return facts
    _save_arrays(file, {"zones": lungs.zones.astype(np.uint8)})
    image = network_input(classifier, canvas)
    removed = counterfactual(classifier, image, lungs, fill)
    facts["lungs"] |= {"zones": file.name, "names": list(ZONES), "share": float((lungs.zones > 0).mean())}
    return facts | {
        "counterfactual": removed.as_json(),
        "zones": worths(classifier, image, lungs, removed.fill or fill),
    }


def _agreements(method: str, heatmaps: Mapping[str, Heatmap]) -> dict[str, float | None]:
    """Return the rank correlation of a map with each other one, None where one of them is blank."""
    own = heatmaps[method]
    agreements: dict[str, float | None] = {}
    for name, other in heatmaps.items():
        if name != method:
            blank = "blank" in (own.verdict, other.verdict)
            agreements[name] = None if blank else round(rank_correlation(pooled(own.values), pooled(other.values)), 4)
    return agreements


def _energy(heatmap: Heatmap, lungs: Lungs) -> float | None:
    if lungs.zones is None or heatmap.verdict == "blank":
        return None
    return round(energy(heatmap.values, lungs.zones > 0), 4)


def explain_canvas(
    classifier: Classifier, canvas: Pixels, method: str, options: Options = DEFAULTS, *, check: bool = False
) -> Heatmap:
    """Return the map of one image, uint8 [canvas, canvas]; with `check` its stability and faithfulness are tested."""
    if not check:
        return METHODS[method](classifier, canvas, options)
    heatmap = with_stability(METHODS[method], classifier, canvas, options)
    heatmap = with_faithfulness(heatmap, classifier, canvas, fill=options.fill, seed=options.seed)
    return with_infidelity(heatmap, classifier, canvas, fill=options.fill, seed=options.seed)


def _save_map(out: Path, name: str, heatmap: Heatmap, pixels: FloatArray, box: Sequence[int]) -> dict[str, str]:
    """Write the pictures and arrays of a map, and return the file names."""
    top, bottom, left, right = box
    shown = heatmap.values[top:bottom, left:right]
    _save_png(out / f"{name}.png", overlay(pixels, shown))
    _save_png(out / f"{name}-layer.png", layer(shown))
    arrays = {
        "map": heatmap.values,
        "signed": heatmap.signed,
        "segments": heatmap.segments,
        "contributions": heatmap.contributions,
    }
    _save_arrays(out / f"{name}.npz", {key: array for key, array in arrays.items() if array is not None})
    return {"overlay": f"{name}.png", "layer_file": f"{name}-layer.png", "map": f"{name}.npz"}


def _save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


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
    entries = [{**e, "case": cases[e["path"]], "predicted": e.get("label"), "label": truth[e["path"]]} for e in entries]
    write_json(folder / "index.json", entries)
