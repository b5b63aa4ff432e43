"""One radiograph from file to finished results. Runs in the child that may be killed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pneumoscope.errors import ConfigError
from pneumoscope.gate.header_rules import Rules
from pneumoscope.images import Radiograph, read_header
from pneumoscope.images.preparation import image_box
from pneumoscope.records import PNEUMONIA, FloatArray, Prediction
from pneumoscope.serving.results.finding import Encoded, Finding
from pneumoscope.serving.settings.gateway import BundleChoice

if TYPE_CHECKING:
    from pneumoscope.predict import Classifier

NO_MAP = "none"
_USUAL = ("sr", "sc")
_COARSE = 512  # longer side of a map that covers more than the network's crop


@dataclass(frozen=True, slots=True)
class Task:
    """A request to the child: a DICOM file, the objects to build, and the time that they carry."""

    path: Path
    kinds: Sequence[str]
    made: datetime


@dataclass(frozen=True, slots=True)
class Analysis:
    """The child's answer. `map_png`: grey PNG over the whole image.

    `seconds`: in total, `encoding` of them for the objects.
    """

    prediction: Prediction
    card_sha256: str
    calibrated: bool
    operating_point: str
    urgent: bool
    objects: tuple[Encoded, ...] = ()
    map_png: bytes | None = None
    explained_by: str | None = None
    seconds: float = 0.0
    encoding: float = 0.0


def open_analysis(choice: BundleChoice, rules: Rules | None = None) -> Callable[[Task], Analysis]:
    """Load a bundle, and return the function that analyses an image, at full speed from the first image on.

    `rules`: those of the intake, so that an accepted image is not refused here.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: no method of explanation has that name.
    """
    classifier = _classifier(choice, rules)
    _warm(classifier, choice.explain)
    return partial(_analyse, classifier, choice.explain)


def open_in_haste(choice: BundleChoice, rules: Rules | None = None) -> Callable[[Task], Analysis]:
    """Do the same without warming up: for when an image is already waiting."""
    return partial(_analyse, _classifier(choice, rules), choice.explain)


def _classifier(choice: BundleChoice, rules: Rules | None) -> Classifier:
    from pneumoscope.explanation import METHODS
    from pneumoscope.predict import Classifier

    if choice.explain != NO_MAP and choice.explain not in METHODS:
        raise ConfigError(f"no method is called {choice.explain!r}", remedy=f"use {', '.join(METHODS)} or none")
    return Classifier.load(choice.path, operating_point=choice.operating_point, rules=rules)


def _warm(classifier: Classifier, method: str) -> None:
    """Run every step once, so that no patient waits for code that is loaded and compiled on first use."""
    from pydicom import Dataset

    from pneumoscope.serving.results import encode

    side = classifier.bundle.preparation.canvas
    noise = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    with NamedTemporaryFile(suffix=".png") as file:
        Image.fromarray(noise).save(file.name)
        classifier.predict_one(file.name)  # noise is refused, but also segmented
    heat = None if method == NO_MAP else _map(classifier, method, noise)[0]
    flagged = Prediction("", 0.5, PNEUMONIA, 0.5)
    grey = np.divide(noise, 255, dtype=np.float32)
    finding = Finding(Dataset(), flagged, grey, heat, classifier.bundle.card, method, urgent=False)
    encode(finding, _USUAL, datetime.now(UTC))


def _analyse(classifier: Classifier, method: str, task: Task) -> Analysis:
    from pneumoscope.serving.results import encode

    started = time.perf_counter()
    prediction, radiograph = classifier.predict_one(task.path)
    heat, explained_by = None, None
    if radiograph is not None and method != NO_MAP and not prediction.abstained:
        heat, explained_by = _explain(classifier, method, radiograph)
    urgent = prediction.label == PNEUMONIA
    finding = Finding(
        source=read_header(task.path),
        # Without the path of the file, which must not leave the gateway.
        prediction=replace(prediction, path=""),
        image=None if radiograph is None else radiograph.pixels,
        heatmap=heat,
        bundle=classifier.bundle.card,
        explained_by=explained_by,
        urgent=urgent,
    )
    analysed = time.perf_counter()
    objects = encode(finding, task.kinds, task.made) if task.kinds and prediction.error is None else ()
    return Analysis(
        prediction=prediction,
        card_sha256=classifier.bundle.sha256,
        calibrated=bool(classifier.bundle.card.get("calibration")),
        operating_point=classifier.operating_point,
        urgent=urgent,
        objects=objects,
        map_png=None if heat is None else _png(heat),
        explained_by=explained_by,
        seconds=time.perf_counter() - started,
        encoding=time.perf_counter() - analysed,
    )


def _explain(classifier: Classifier, method: str, radiograph: Radiograph) -> tuple[FloatArray | None, str]:
    values, verdict = _map(classifier, method, classifier.canvas(radiograph))
    heat = None if verdict == "blank" else _over_image(classifier, values, radiograph.pixels)
    return heat, f"{method}, {verdict}"


def _map(
    classifier: Classifier, method: str, canvas: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> tuple[FloatArray, str]:
    from pneumoscope.explanation import METHODS

    heatmap = METHODS[method](classifier, canvas)
    return heatmap.values, heatmap.verdict


def _over_image(classifier: Classifier, values: FloatArray, pixels: FloatArray) -> FloatArray:
    """Return a map float32 [h, w] stretched over the whole image, not only over the network's crop."""
    shown = pixels if classifier.crop is None else classifier.crop(pixels)
    top, bottom, left, right = image_box(shown.shape, classifier.bundle.preparation)
    values = values[top:bottom, left:right]
    if classifier.crop is None:
        return values
    height, width = pixels.shape
    top, bottom, left, right = classifier.crop.box(pixels)
    scale = _COARSE / max(height, width)
    whole = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), np.float32)
    region = whole[round(top * scale) : round(bottom * scale), round(left * scale) : round(right * scale)]
    size = (region.shape[1], region.shape[0])
    region[:] = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    return whole


def _png(heat: FloatArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
