"""How fast a bundle answers: PyTorch against OpenVINO, one image and many, the network alone and with decoding.

    python benchmarks/speed.py ../shared/data/kermany_originals [--bundle B ...] [--threads 2]

All engines run in this one process, taking turns, on the same images; ratios to PyTorch hold better than seconds.
Latency: median and 95th percentile of single images. The largest difference between the engines' probabilities
is printed beside.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pneumoscope.images import read_image
from pneumoscope.predict import Classifier, expand
from pneumoscope.preparation import Pixels, to_input

BATCH = 32
ROUNDS = 5


@dataclass
class Timing:
    """Seconds of single images, and images per second in batches, of each round."""

    single: list[float]
    batched: list[float]
    whole: list[float]


def main() -> None:
    """Measure and print a table per bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--bundle", type=Path, nargs="*", default=[None])
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    paths = expand([str(arguments.images)])
    for path in arguments.bundle:
        print_table(path, paths, arguments.threads)


def print_table(bundle: Path | None, paths: list[str], threads: int | None) -> None:
    """Compare the engines on one bundle."""
    classifiers = {engine: Classifier.load(bundle, engine=engine, threads=threads) for engine in ("torch", "openvino")}
    first = next(iter(classifiers.values()))
    preparation = first.bundle.preparation
    canvases = np.stack([first.canvas(read_image(path, at_least=2 * preparation.canvas)) for path in paths])
    pixels = to_input(canvases, preparation)
    timings = {engine: Timing([], [], []) for engine in classifiers}
    for number in range(ROUNDS + 1):  # the first warms up
        for engine, classifier in classifiers.items():
            measured = measure(classifier, pixels, paths)
            if number:
                timings[engine].single += measured.single
                timings[engine].batched += measured.batched
                timings[engine].whole += measured.whole
    answers = {
        engine: np.array([line.probability or 0.0 for line in classifier.predict(paths)])
        for engine, classifier in classifiers.items()
    }
    apart = float(np.abs(answers["torch"] - answers["openvino"]).max())
    print(
        f"\n{first.bundle.label}, {preparation.size} px, {len(paths)} images; engines differ by {apart:.1e} at most\n"
    )
    print(f"| engine | one image, ms (p50 / p95) | batches of {BATCH}, images/s | files, decoding included, images/s |")
    print("|---|---|---|---|")
    base = timings["torch"]
    for engine, timing in timings.items():
        p50, p95 = (1000 * float(np.quantile(timing.single, q)) for q in (0.5, 0.95))
        ratios = [
            f"{statistics.median(base.single) / statistics.median(timing.single):.1f}x",
            f"{statistics.median(timing.batched) / statistics.median(base.batched):.1f}x",
            f"{statistics.median(timing.whole) / statistics.median(base.whole):.1f}x",
        ]
        print(
            f"| {engine} | {p50:.1f} / {p95:.1f} ({ratios[0]}) | {statistics.median(timing.batched):.0f} ({ratios[1]}) "
            f"| {statistics.median(timing.whole):.0f} ({ratios[2]}) |"
        )


def measure(classifier: Classifier, pixels: Pixels, paths: list[str]) -> Timing:
    """Time one round."""
    logits = classifier.runtime.logits
    single = [seconds(lambda one=pixels[i : i + 1]: logits(one)) for i in range(len(pixels))]
    many = np.resize(pixels, (BATCH, *pixels.shape[1:]))
    batched = [BATCH / seconds(lambda: logits(many)) for _ in range(3)]
    whole = [len(paths) / seconds(lambda: list(classifier.predict(paths)))]
    return Timing(single, batched, whole)


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
