"""Give a bundle that was trained before there were gates one, its scores untouched, and its evidence anew.

    python benchmarks/quality/gate_bundle.py RUN/split.csv --bundle default --out runs/gated
        [--original runs/gated-default]

The gate learns from the images of `train`; `val` sets its limits. Weights, graph, calibration and thresholds stay as
they are, and the program checks that logits of the validation images stay the same to the bit. The identity changes,
because a refusal is an answer; so validation and held-out images are evaluated again. Evidence that rests on logits
alone, asked without the gate (the shortcut card, the comparison with an original), is carried over with the identity
that it was measured under. `--original`: the gated bundle that this one was quantised from.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.bundle.bundle import Bundle, add_evidence, load_bundle
from pneumoscope.bundle.runtime import open_runtime
from pneumoscope.data.cache import open_cache
from pneumoscope.data.sources import open_source
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.gate.fitting import add_gate, drawn, least_side
from pneumoscope.images.preparation import to_input
from pneumoscope.predict import Classifier
from pneumoscope.training.provenance import ages

ON_LOGITS = ("shortcut_card", "against_original")
MEASURED = {"validation": "val", "held_out": "test"}


def main() -> None:
    """Write the gated bundle and print what it refuses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--original", type=Path)
    arguments = parser.parse_args()
    bundle, manifest = load_bundle(arguments.bundle), open_source(arguments.split)
    before = dict(bundle.card)
    if arguments.original is not None:
        original = load_bundle(arguments.original)
        origin = {**before["quantised_from"], "sha256": original.sha256}
        bundle = Bundle(bundle.folder, {**before, "quantised_from": origin}, bundle.preparation)
    preparation = bundle.preparation
    parts = {}
    for name in ("train", "val"):
        cache = open_cache(manifest.select(name).samples, canvas=preparation.canvas, aspect=preparation.aspect)
        parts[name] = cache.pixels[drawn(cache.rows, 0)]
    paths = [sample.path for sample in manifest.select("val").samples]
    add_gate(
        bundle, arguments.out, parts["train"], parts["val"],
        smallest_side=least_side(paths, preparation.size), ages=ages(manifest),
    )  # fmt: skip
    gated = load_bundle(arguments.out)
    check_scores(bundle, gated, parts["val"])
    evidence: dict[str, Any] = {}
    for name, found in before["evidence"].items():
        if name in MEASURED:
            with tempfile.TemporaryDirectory() as folder:
                part = manifest.select(MEASURED[name])
                evidence[name] = evaluate(Classifier(gated), part, Path(folder), seed=0)
            print(name, evidence[name]["n"], evidence[name]["refused"], evidence[name]["metrics"]["auroc"])
        elif name in ON_LOGITS:
            told = {"measured_under": before["sha256"], "note": "of the same logits, before it had a gate"}
            evidence[name] = {**found, **told, "bundle": {"name": gated.name, "sha256": gated.sha256}}
    add_evidence(arguments.out, evidence)


def check_scores(before: Bundle, after: Bundle, canvases: Any) -> None:
    """Raise `SystemExit` where a logit of canvases uint8 [n, canvas, canvas] changed by a single bit."""
    plain, gated = open_runtime(before), open_runtime(after, features=True)
    for start in range(0, len(canvases), 16):
        pixels = to_input(np.array(canvases[start : start + 16]), before.preparation)
        if not np.array_equal(plain.logits(pixels), gated.answer(pixels)[0]):
            raise SystemExit("the gated bundle answers otherwise")


if __name__ == "__main__":
    main()
