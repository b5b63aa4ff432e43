"""From a bundle to one that computes in eight-bit integers: faster on CPUs, with its own calibration and evidence.

Quantisation shifts a network's scores, so thresholds that fitted before do not fit after. Temperature and bias are
therefore fitted anew, such that the probabilities are those of the original on as many images as there are: labels
are not needed for that. The operating points keep their thresholds, and what they achieve on the validation split,
and what was lost there, is on the card. (Choosing thresholds anew on a few hundred images lost more than quantising.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.bundle.bundle import WEIGHTS, Bundle, add_evidence, load_bundle, write_bundle
from pneumoscope.bundle.calibration import calibration_sections, fit_to, points_at, probabilities
from pneumoscope.bundle.runtime import import_openvino, open_runtime
from pneumoscope.data.cache import PixelCache, open_cache
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import ConfigError, DataError
from pneumoscope.gate.fitting import drawn, refit_gate
from pneumoscope.images.preparation import Pixels, to_input
from pneumoscope.lungs import crop_of
from pneumoscope.records import PNEUMONIA
from pneumoscope.statistics.comparison import compare

_BATCH = 32
_SAMPLE = 300  # images that show the range of each activation; more change nothing measurable
_ALIGNED = 2000  # images on which the probabilities are made those of the original
_ANEW = ("schema", "pneumoscope", "notice", "weights", "sha256", "card_sha256", "evidence", "gate")


def quantise(bundle: Bundle, manifest: Manifest, out: Path, *, name: str, seed: int = 0) -> dict[str, Any]:
    """Write an eight-bit version of a bundle; returns its card.

    Args:
        bundle: one with an ONNX model.
        manifest: the division it was trained on (`RUN/split.csv`): images of `train` show the range of the
            activations and fit the temperature and bias, those of `val` compare.
        out: folder of the new bundle.
        name: of the new bundle.
        seed: of the choice of images and of the bootstrap.

    Raises:
        ConfigError: NNCF or OpenVINO is not installed, or `out` is the bundle itself.
        DataError: the bundle has no ONNX model, or a split is missing.
    """
    if out.resolve() == bundle.folder.resolve():
        raise ConfigError("is the bundle itself", path=out, remedy="choose another --out")
    files = bundle.runtime_files()
    if "model.onnx" not in files:
        raise DataError("the bundle holds no ONNX model", path=bundle.folder, remedy="quantise one that training wrote")
    train, val = manifest.select("train"), manifest.select("val").labelled()
    train_cache, val_cache = _open(train, bundle), _open(val, bundle)
    rows = sorted({row for row in train_cache.rows if row >= 0})
    rng = np.random.default_rng(seed)
    chosen = rng.choice(rows, min(_SAMPLE, len(rows)), replace=False)
    graph = _eight_bit(files["model.onnx"], [_inputs(train_cache, [row], bundle) for row in chosen])
    parts = {WEIGHTS: (bundle.folder / WEIGHTS).read_bytes(), **graph, **bundle.fingerprints_file()}
    sections = _sections(bundle, name, images=len(chosen))

    many = np.concatenate([_inputs(train_cache, [row], bundle) for row in rng.permutation(rows)[:_ALIGNED]])
    readable = [(sample, row) for sample, row in zip(val.samples, val_cache.rows, strict=True) if row >= 0]
    val_rows = [row for _, row in readable]
    pixels = _inputs(val_cache, val_rows, bundle)
    truth = np.array([sample.label == PNEUMONIA for sample, _ in readable], int)
    patients = [sample.patient_id for sample, _ in readable]
    with _draft(parts, sections) as draft:
        fitted = fit_to(_logits(draft, many), _probabilities(bundle, many))
        probability, _ = probabilities(_logits(draft, pixels), fitted.temperature, fitted.bias)
    points = points_at(bundle.card["operating_points"], truth, probability, patients)
    share = {key: value for key, value in bundle.card["calibration"].items() if key == "prevalence"}
    sections |= calibration_sections(fitted, points)
    sections["calibration"] |= share
    sections["calibration"]["method"] = "temperature and bias fitted to the original's probabilities of training images"
    with _draft(parts, sections) as draft:
        refit_gate(draft, bundle, out, train_cache.pixels[drawn(rows, seed)], val_cache.pixels[drawn(val_rows, seed)])

    point = bundle.card["operating_point"]
    limits = points[point].threshold, bundle.card["operating_points"][point]["threshold"]
    compared = compare(truth, probability, _probabilities(bundle, pixels), *limits, patients, seed=seed)
    add_evidence(out, {"against_original": {"images": "validation split", "point": point, **compared.as_json()}})
    return dict(load_bundle(out).card)


def _open(split: Manifest, bundle: Bundle) -> PixelCache:
    canvas, aspect, crop = bundle.preparation.canvas, bundle.preparation.aspect, crop_of(bundle.preparation)
    return open_cache(split.samples, canvas=canvas, aspect=aspect, crop=crop)


def _sections(bundle: Bundle, name: str, *, images: int) -> dict[str, Any]:
    """Return the sections of the original's card that stay, and the new bundle's own."""
    original = {key: value for key, value in bundle.card.items() if key not in _ANEW}
    return original | {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quantised_from": {"name": bundle.name, "sha256": bundle.sha256, "images": images},
        "preparation": asdict(bundle.preparation),
        "runtime": {"precision": "int8"},
    }


@contextmanager
def _draft(parts: Mapping[str, bytes], sections: Mapping[str, Any]) -> Iterator[Bundle]:
    """Yield a temporary bundle, to measure what the final card says."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "draft"
        write_bundle(folder, parts, sections)
        yield load_bundle(folder)


def _inputs(cache: PixelCache, rows: list[int], bundle: Bundle) -> Pixels:
    return to_input(np.array(cache.pixels[rows]), bundle.preparation)


def _probabilities(bundle: Bundle, pixels: Pixels) -> NDArray[np.float64]:
    return probabilities(_logits(bundle, pixels), *bundle.calibration)[0]


def _logits(bundle: Bundle, pixels: Pixels) -> NDArray[np.float64]:
    runtime = open_runtime(bundle, engine="openvino")
    parts = [runtime.logits(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    return np.concatenate(parts).astype(np.float64)


def _eight_bit(model: bytes, images: list[Pixels]) -> dict[str, bytes]:
    """Return OpenVINO's graph and weights after post-training quantisation with full bias correction."""
    try:
        openvino = import_openvino()
        import nncf
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed", remedy='pip install "pneumoscope[int8]"') from error
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source.onnx"
        source.write_bytes(model)
        quantised = nncf.quantize(
            # Reading alone leaves batch norm beside its convolution, and both would stay in floating point.
            openvino.convert_model(source),
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=False,
            subset_size=len(images),
        )
        path = Path(scratch) / "model.xml"
        openvino.save_model(quantised, path, compress_to_fp16=False)
        return {file.name: file.read_bytes() for file in (path, path.with_suffix(".bin"))}
