"""How fast a bundle answers, by what computes it: one image and many, the network alone and with decoding.

    python benchmarks/speed/engines.py ../shared/data/kermany_originals [--bundle B] [--int8 B8] [--threads 2]

Eager PyTorch, torch.compile, ONNX Runtime (where it is installed), OpenVINO, and OpenVINO on an eight-bit bundle that
`pneumoscope quantise` made, all in this one process, taking turns, on the same images; ratios to eager PyTorch hold
better than seconds. The gate is left out but for rows of its own, which are what `predict` does. Latency: median and
95th percentile of single images. The share of the machine's arithmetic is that of batches, against a product of large
matrices in single precision on as many threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from pneumoscope.bundle.runtime import Runtime
from pneumoscope.images import read_image
from pneumoscope.images.find import expand
from pneumoscope.images.preparation import Pixels, to_input
from pneumoscope.networks.export import Deployed
from pneumoscope.predict import Classifier

BATCH = 32
ROUNDS = 5
Logits = Callable[[Pixels], NDArray[np.float32]]


@dataclass
class Timing:
    """Seconds of single images, and images per second in batches and from files, of all rounds."""

    single: list[float] = field(default_factory=list)
    batched: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--bundle", type=Path, help="the shipped one by default")
    parser.add_argument("--int8", type=Path, help="an eight-bit version of the bundle")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    paths = expand([str(arguments.images)])
    engines = classifiers(arguments.bundle, arguments.int8, arguments.threads)
    eager = engines["eager PyTorch"]
    preparation = eager.bundle.preparation
    canvases = np.stack([eager.canvas(read_image(path, at_least=2 * preparation.canvas)) for path in paths])
    pixels = to_input(canvases, preparation)
    timings = {name: Timing() for name in engines}
    for number in range(ROUNDS + 1):  # the first warms up
        for name, classifier in engines.items():
            measure(classifier, pixels, paths, timings[name] if number else Timing())
    answers = {name: np.array([p.probability or 0 for p in c.predict(paths)]) for name, c in engines.items()}
    print(f"\n{eager.bundle.label}, {preparation.size} px, {len(paths)} images, {arguments.threads} threads\n")
    print_table(timings, {name: float(np.abs(p - answers["eager PyTorch"]).max()) for name, p in answers.items()})
    print_limit(eager, pixels, timings)


def classifiers(bundle: Path | None, int8: Path | None, threads: int) -> dict[str, Classifier]:
    """Return the bundle, computed in each way that is there."""
    found = {"eager PyTorch": Classifier.load(bundle, engine="torch", threads=threads, gate=False)}

    def add(name: str, logits: Logits) -> None:
        found[name] = Classifier.load(bundle, engine="torch", threads=threads, gate=False)
        found[name].runtime = Runtime(name, logits)

    loaded = found["eager PyTorch"].bundle
    compiled: Any = torch.compile(Deployed(loaded.network, loaded.preparation).eval(), dynamic=False)

    def by_compiled(pixels: Pixels) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = compiled(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
        return result

    add("torch.compile", by_compiled)
    try:
        import onnxruntime
    except ImportError:
        print("ONNX Runtime is not measured: pip install onnxruntime")
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            loaded.folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        add("ONNX Runtime", lambda pixels: session.run(None, {"pixels": pixels})[0])
    found["OpenVINO"] = Classifier.load(bundle, engine="openvino", threads=threads, gate=False)
    found["OpenVINO, gate"] = Classifier.load(bundle, engine="openvino", threads=threads)
    if int8 is not None:
        found["OpenVINO, int8"] = Classifier.load(int8, engine="openvino", threads=threads, gate=False)
        found["OpenVINO, int8, gate"] = Classifier.load(int8, engine="openvino", threads=threads)
    return found


def measure(classifier: Classifier, pixels: Pixels, paths: list[str], timing: Timing) -> None:
    """Time one round."""
    runtime = classifier.runtime
    logits = runtime.logits if classifier.gate is None else runtime.answer
    many = np.resize(pixels, (BATCH, *pixels.shape[1:]))
    timing.single += [seconds(lambda one=pixels[i : i + 1]: logits(one)) for i in range(len(pixels))]  # type: ignore[misc]
    timing.batched += [BATCH / seconds(lambda: logits(many)) for _ in range(3)]
    timing.whole.append(len(paths) / seconds(lambda: list(classifier.predict(paths, batch_size=len(paths)))))


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def print_table(timings: dict[str, Timing], apart: dict[str, float]) -> None:
    """Print Markdown."""
    print(
        f"| computed by | one image, ms (p50 / p95) | batches of {BATCH}, images/s | files with decoding, images/s "
        "| largest difference of a probability |\n|---|---|---|---|---|"
    )
    base = timings["eager PyTorch"]
    for name, timing in timings.items():
        p50, p95 = (1000 * float(np.quantile(timing.single, q)) for q in (0.5, 0.95))
        single, batched, whole = (statistics.median(values) for values in (timing.single, timing.batched, timing.whole))
        print(
            f"| {name} | {p50:.1f} / {p95:.1f} ({statistics.median(base.single) / single:.1f}x) "
            f"| {batched:.0f} ({batched / statistics.median(base.batched):.1f}x) "
            f"| {whole:.0f} ({whole / statistics.median(base.whole):.1f}x) | {apart[name]:.1e} |"
        )


def print_limit(eager: Classifier, pixels: Pixels, timings: dict[str, Timing]) -> None:
    """Print which share of the machine's arithmetic each engine reaches."""
    network = Deployed(eager.bundle.network, eager.bundle.preparation).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.from_numpy(pixels[:1].copy()))
    work = counter.get_total_flops()
    a = torch.rand(2048, 2048)
    limit = max(2 * 2048**3 / seconds(lambda: a @ a) for _ in range(8))
    print(
        f"\n{work / 1e9:.2f} GFLOP per image; matrix products reach {limit / 1e9:.0f} GFLOP/s; share in batches: ",
        end="",
    )
    print(", ".join(f"{name} {statistics.median(t.batched) * work / limit:.0%}" for name, t in timings.items()))


if __name__ == "__main__":
    main()
