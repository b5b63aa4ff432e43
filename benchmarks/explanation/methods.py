"""What explanations are worth for a bundle, and what they cost, on computed radiographs whose truth is known.

    python benchmarks/explanation/methods.py [--bundle B] [--data RUN/split.csv] [--part val] [--images 20]
        [--samples 300] [--seeds 5] [--methods gradcam,lime] [--threads 2] [--out FILE.json]

With `--data` all but localisation is measured on real radiographs of that part with pneumonia.

One row a method: seconds and answers of the network for one map, rank correlation over seeds (or under noise, for
methods that draw nothing), mean |rho| to the maps of the network with a random head and with random weights
throughout, insertion less deletion above that of random maps with its interval, and localisation of the opacity beside
that of the usual location. Fills are validated first, and the best serves everything. Only images that the bundle calls
pneumonia count. Last comes what LIME and KernelSHAP cost against the same number of images in batches.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from localisation import iou, pointing_game, usual_location
from PIL import Image
from randomisation import randomisation

from pneumoscope.data.sources import open_source
from pneumoscope.explanation import METHODS, Options
from pneumoscope.explanation.explain import explain_canvas
from pneumoscope.explanation.faithfulness import MOST_KEPT, faithfulness, probability, validated
from pneumoscope.explanation.method import energy
from pneumoscope.explanation.perturbation import BATCH, network_input
from pneumoscope.explanation.stability import agreement, ranked
from pneumoscope.images import read_image
from pneumoscope.images.preparation import Pixels, to_canvas
from pneumoscope.phantom.synthetic import render
from pneumoscope.predict import Classifier
from pneumoscope.records import PNEUMONIA, FloatArray, Heatmap

_TRIES = 6  # images drawn for each that the bundle may call normal
_COST = 300


def main() -> None:
    """Measure, print two tables, and write everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="the shipped one by default")
    parser.add_argument("--data", type=Path, help="labelled radiographs; computed ones by default")
    parser.add_argument("--part", default="val")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--samples", type=int, help="of methods that perturb; their own number by default")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--segments", default="slic")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    classifier = Classifier.load(arguments.bundle, threads=arguments.threads)
    computed = cases(classifier, arguments.images)
    canvases = computed[0]
    if arguments.data is not None:
        canvases = radiographs(classifier, arguments.data, arguments.part, arguments.images)
    images = np.stack([network_input(classifier, canvas) for canvas in canvases])
    score = probability(classifier)
    shares = validated(score, images)
    fill = min(shares, key=lambda name: shares[name])
    served = "serves" if shares[fill] <= MOST_KEPT else "is the best, but decides nothing"
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    print(f"{classifier.bundle.label}, {len(images)} images called pneumonia, {classifier.runtime.engine}", end="")
    print(f", {arguments.threads} threads\nshare of the score that removed images keep: {told}; {fill} {served}\n")
    options = Options(samples=arguments.samples, segments=arguments.segments, fill=fill)
    result: dict[str, Any] = {"bundle": classifier.bundle.label, "n": len(images), "kept": dict(shares), "fill": fill}
    result["usual location"] = located(list(usual_location(computed[1])), computed[1])
    print("| method | seconds | answers | stability | random head, all | above random maps | pointing, IoU, energy |")
    print("|---|---|---|---|---|---|---|")
    print(f"| usual location | | | | | | {scores(result['usual location'])} |")
    for name in arguments.methods.split(","):
        row = measured(classifier, name, canvases, computed, options, arguments.seeds)
        result[name] = row
        print(line(name, row), flush=True)
    result["cost"] = cost(classifier, canvases[0], options)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2, default=float) + "\n", encoding="utf-8")


def cases(classifier: Classifier, count: int) -> tuple[list[Pixels], np.ndarray[Any, Any]]:
    """Draw ill patients until `count` are called pneumonia; return their canvases and opacities, bool [n, S, S]."""
    preparation = classifier.bundle.preparation
    canvases, masks = [], []
    for seed in range(_TRIES * count):
        drawn = render(np.random.default_rng(seed), kind=("bacterial", "viral")[seed % 2], size=preparation.canvas)
        canvas = to_canvas(drawn.pixels / np.float32(255), preparation.canvas, preparation.aspect)
        if probability(classifier)(network_input(classifier, canvas)[None])[0] < 0.5 or not drawn.opacity.any():
            continue
        canvases.append(canvas)
        size = (preparation.size, preparation.size)
        masks.append(np.asarray(Image.fromarray(drawn.opacity).resize(size, Image.Resampling.NEAREST)))
        if len(canvases) == count:
            break
    if len(canvases) < 2:
        raise SystemExit("this bundle calls hardly any computed radiograph pneumonia: nothing to measure")
    return canvases, np.stack(masks)


def radiographs(classifier: Classifier, source: Path, part: str, count: int) -> list[Pixels]:
    """Return the canvases of the first radiographs with pneumonia, one a patient, that are called so."""
    canvases, patients = [], set()
    for sample in open_source(source).select(part).samples:
        if sample.label != PNEUMONIA or sample.patient_id in patients or len(canvases) == count:
            continue
        canvas = classifier.canvas(read_image(sample.path))
        if probability(classifier)(network_input(classifier, canvas)[None])[0] >= 0.5:
            canvases.append(canvas)
            patients.add(sample.patient_id)
    return canvases


def measured(
    classifier: Classifier,
    name: str,
    canvases: list[Pixels],
    computed: tuple[list[Pixels], np.ndarray[Any, Any]],
    options: Options,
    seeds: int,
) -> dict[str, Any]:
    """Return all figures of one method; `computed`: the images for localisation, and their opacities."""
    method = METHODS[name]
    images = np.stack([network_input(classifier, canvas) for canvas in canvases])
    maps = [method(classifier, canvas, options) for canvas in canvases]
    values = [heatmap.values for heatmap in maps]
    places = maps if canvases is computed[0] else [method(classifier, canvas, options) for canvas in computed[0]]
    random = randomisation(method, classifier, canvases[:8], options=options, depths=(0, 10**6))
    drawn = [index for index, heatmap in enumerate(maps) if heatmap.verdict != "blank"]  # a blank map orders nothing
    tested = None
    if len(drawn) > 1:
        chosen = [values[index] for index in drawn]
        tested = asdict(faithfulness(probability(classifier), images[drawn], chosen, fill=options.fill))
    pairs = zip(canvases[:8], maps, strict=False)
    agree = [repeated(classifier, name, canvas, heatmap, options, seeds) for canvas, heatmap in pairs]
    r2 = [heatmap.r2 for heatmap in maps if heatmap.r2 is not None]
    return {
        "seconds": float(np.median([heatmap.seconds for heatmap in maps])),
        "evaluations": float(np.mean([heatmap.evaluations for heatmap in maps])),
        "blank": sum(heatmap.verdict == "blank" for heatmap in maps),
        "r2": float(np.median(r2)) if r2 else None,
        "stability": float(np.mean(agree)),
        "random head": random[0].rho,
        "random weights": random[1].rho,
        "faithfulness": tested,
        **located([heatmap.values for heatmap in places], computed[1]),
    }


def repeated(classifier: Classifier, name: str, canvas: Pixels, first: Heatmap, options: Options, seeds: int) -> float:
    """Return the agreement over seeds at the same number of samples, or that of `--check` where nothing is drawn."""
    if first.seed is None:
        found = explain_canvas(classifier, canvas, name, options, check=True).stability
        return 0.0 if found is None else found
    again = [replace(options, seed=seed) for seed in range(1, seeds)]
    others = [METHODS[name](classifier, canvas, other) for other in again]
    return agreement([ranked(one) for one in (first, *others)])


def located(maps: list[FloatArray], masks: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return mean localisation scores."""
    kinds = {"pointing": pointing_game, "iou": iou, "energy": energy}
    return {key: float(np.mean([f(m, k) for m, k in zip(maps, masks, strict=True)])) for key, f in kinds.items()}


def scores(row: Mapping[str, Any]) -> str:
    """Return localisation scores as text."""
    return f"{row['pointing']:.2f}, {row['iou']:.2f}, {row['energy']:.2f}"


def line(name: str, row: Mapping[str, Any]) -> str:
    """Return one row of Markdown."""
    above = None if row["faithfulness"] is None else row["faithfulness"]["above"]
    gain = "undecided" if above is None else f"{above['value']:+.3f} ({above['low']:+.3f} to {above['high']:+.3f})"
    blank = f", {row['blank']} blank" if row["blank"] else ""
    return (
        f"| {name}{blank} | {row['seconds']:.2f} | {row['evaluations']:.0f} | {row['stability']:.2f} "
        f"| {row['random head']:.2f}, {row['random weights']:.2f} | {gain} | {scores(row)} |"
    )


def cost(classifier: Classifier, canvas: Pixels, options: Options) -> dict[str, float]:
    """Print and return what LIME and KernelSHAP with 300 answers take against 300 images in batches."""
    batch = np.repeat(network_input(classifier, canvas)[None], BATCH, axis=0)
    options = Options(samples=_COST, segments=options.segments, fill=options.fill)
    found: dict[str, list[float]] = {"forward": [], "lime": [], "shap": []}
    for turn in range(4):  # taking turns, because other programs come and go; the first warms up
        started = time.perf_counter()
        for _ in range(4):
            classifier.runtime.logits(batch)
        forward = (time.perf_counter() - started) / (4 * BATCH) * _COST
        times = {"forward": forward, **{n: METHODS[n](classifier, canvas, options).seconds for n in ("lime", "shap")}}
        for key, seconds in times.items() if turn else ():
            found[key].append(seconds)
    best = {key: min(values) for key, values in found.items()}
    side = classifier.bundle.preparation.size
    print(f"\n{_COST} answers about {side} px: batches alone {best['forward']:.2f} s", end="")
    for name in ("lime", "shap"):
        print(f", {name} {best[name]:.2f} s ({best[name] / best['forward']:.2f}x)", end="")
    print()
    return best


if __name__ == "__main__":
    main()
