"""From image files to predictions, in order, whatever single files do."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.bundle.bundle import Bundle, load_bundle
from pneumoscope.bundle.calibration import pneumonia_logit, probabilities
from pneumoscope.bundle.runtime import Engine, open_runtime
from pneumoscope.errors import BundleError, ConfigError, ImageError
from pneumoscope.files import plain
from pneumoscope.gate.header_rules import Rules, ages_of, judge
from pneumoscope.gate.pixel_rules import LungMasks, by_pixels, by_size
from pneumoscope.gate.refusal import Refusal
from pneumoscope.gate.scores import CHECKS, read_gate
from pneumoscope.images import Header, Radiograph
from pneumoscope.images.find import missing
from pneumoscope.images.given import Given, count, items, one_item
from pneumoscope.images.picture import collimated, noise, sharpness
from pneumoscope.images.preparation import Pixels, to_canvas, to_input
from pneumoscope.lungs import crop_of
from pneumoscope.predictions import Predictions
from pneumoscope.records import BACTERIAL, NORMAL, PNEUMONIA, VIRAL, Prediction

_FLAT = 0.01  # standard deviation of grey (0..1) under which an image shows nothing


@dataclass(frozen=True)
class _Decoded:
    path: str
    canvas: Pixels | None
    quality: Mapping[str, Any]
    error: ImageError | None
    milliseconds: float
    refusal: Refusal | None = None
    radiograph: Radiograph | None = None


@dataclass(frozen=True)
class _Answer:
    probability: float
    odds: float
    viral: float | None
    gate: Mapping[str, float]
    refusal: Refusal | None
    embedding: tuple[float, ...] | None


class Classifier:
    """A bundle ready to answer.

    `gate`: whether it may refuse an image by view, body part and age in the header, and by size and pixels where the
    bundle holds a gate. Nearly constant images, other modalities and raw data are always refused. `rules`: for headers.

    >>> classifier = pneumoscope.Classifier.load("fast", operating_point="triage")
    >>> [prediction.label for prediction in classifier.predict("chest.png")]
    ['NORMAL']
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        operating_point: str | None = None,
        engine: Engine = "auto",
        device: str = "cpu",
        threads: int | None = None,
        gate: bool = True,
        rules: Rules | None = None,
    ) -> None:
        self.bundle = bundle
        self._options: dict[str, Any] = {
            "operating_point": operating_point, "engine": engine, "device": device, "threads": threads, "gate": gate,
            "rules": rules,
        }  # fmt: skip
        self.rules = rules or Rules()
        self.ages = ages_of(self.rules, bundle.card) if gate else None
        self._gated = gate
        data = bundle.gate_file() if gate else None
        self.gate = None if data is None else read_gate(data, bundle.card["gate"], bundle.folder)
        self._lungs = LungMasks()
        self.operating_point = operating_point or str(bundle.card["operating_point"])
        points = bundle.card["operating_points"]
        if self.operating_point not in points:
            raise BundleError(
                f"the bundle {bundle.name} has no operating point {self.operating_point!r}",
                remedy=f"use one of {', '.join(points)}",
            )
        self.threshold = float(points[self.operating_point]["threshold"])
        self.calibration = bundle.calibration
        self.device = device
        self.runtime = open_runtime(
            bundle, engine=engine, device=device, threads=threads, features=self.gate is not None
        )
        self.crop = crop_of(bundle.preparation)

    @classmethod
    def load(cls, path: str | Path | None = None, **options: Any) -> Classifier:
        """Load a bundle (the shipped one by default), with the options of the class; raises `BundleError`."""
        return cls(load_bundle(None if path is None else Path(path)), **options)

    def __repr__(self) -> str:
        return (
            f"<Classifier {self.bundle.label}, {self.operating_point} at {self.threshold:.3f}, {self.runtime.engine}>"
        )

    def __copy__(self) -> Classifier:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the folder of the bundle, which is opened again, and the options."""
        return _reopened, (self.bundle.folder.resolve(), self.bundle.card["card_sha256"], self._options, self.threshold)

    def logits(self, canvases: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits float32 [B, classes] from uint8 [B, canvas, canvas]."""
        return self.runtime.logits(to_input(canvases, self.bundle.preparation))

    def canvas(self, radiograph: Radiograph) -> Pixels:
        """Return uint8 [canvas, canvas], what is left of an image after preparation."""
        pixels = self.crop(radiograph.pixels) if self.crop else radiograph.pixels
        return to_canvas(pixels, self.bundle.preparation.canvas, self.bundle.preparation.aspect)

    def predict(self, images: object, *, batch_size: int = 16, workers: int | None = None) -> Predictions:
        """Answer images in the order given; one that cannot be read gets a prediction with `error`.

        `images`: a file, folder or glob; a NumPy array [H, W], an image of Pillow, the bytes of an image file, a file
        open in binary mode, a pydicom dataset; a list of these, or a frame with the column `path`. What is black and
        white in an array: uint8 0 and 255; other whole numbers 0 and 2**n - 1, n the fewest bits from 8 to 16 that hold
        the largest; fractions 0 and 1 or, with larger ones, 255; else, and below 0, its own range, with a note.

        Answers come as they are asked for: files are decoded in threads while the network works, and memory does not
        grow with their number.

        Raises:
            TypeError: something is none of these; an element of a list when its turn comes.
            ConfigError: `batch_size` or `workers` is no whole number of at least 1.
            DataError: the folder holds no images.
        """
        for option in (batch_size, 1 if workers is None else workers):
            if not isinstance(option, int) or isinstance(option, bool) or option < 1:
                raise ConfigError("batch_size and workers are whole numbers of at least 1", remedy="leave them out")
        source = items(images)
        answers = self._predict(source, batch_size, workers or min(8, os.cpu_count() or 1))
        return Predictions(answers, count(images))

    def _predict(self, source: Iterator[Given], batch_size: int, workers: int) -> Iterator[Prediction]:
        with ThreadPoolExecutor(workers) as pool:
            ahead: deque[Future[_Decoded]] = deque()
            for given in islice(source, 2 * batch_size + workers):
                ahead.append(pool.submit(self._decoded, given))
            while ahead:
                batch = [ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))]
                for given in islice(source, len(batch)):
                    ahead.append(pool.submit(self._decoded, given))
                yield from self._answer(batch)

    def predict_one(self, image: object) -> tuple[Prediction, Radiograph | None]:
        """Return one image's prediction and, where it could be read, the radiograph that was decoded for it.

        `image`: as of `predict`, but only one; raises `TypeError` otherwise.
        """
        decoded = self._decode(one_item(image))
        return next(self._answer([decoded])), decoded.radiograph

    def _decoded(self, given: Given) -> _Decoded:
        return replace(self._decode(given), radiograph=None)  # memory is for what waits, not for what was seen

    def _decode(self, given: Given) -> _Decoded:
        started = time.perf_counter()

        def spent() -> float:
            return (time.perf_counter() - started) * 1000

        path = given.name
        try:
            image = given.open()
            if (refusal := judge(image.header, self.rules, self.ages, gate=self._gated)) is not None:
                return _Decoded(path, None, _quality(image.header), None, spent(), refusal)
            radiograph = image.decode(2 * self.bundle.preparation.canvas)
            canvas = self.canvas(radiograph)
        except ImageError as error:
            absent = missing(path) if given.path else None
            return _Decoded(path, None, {}, absent or error, spent())
        quality = _quality(image.header, radiograph, canvas)
        return _Decoded(path, canvas, quality, None, spent(), self._refused_by_size(radiograph, quality), radiograph)

    def _refused_by_size(self, radiograph: Radiograph, quality: Mapping[str, Any]) -> Refusal | None:
        if quality["contrast"] < _FLAT:
            return Refusal("flat", "the image is nearly constant and shows nothing")
        return None if self.gate is None else by_size(self.gate, radiograph)

    def _answer(self, batch: Sequence[_Decoded]) -> Iterator[Prediction]:
        started = time.perf_counter()
        good = [item for item in batch if item.canvas is not None and item.refusal is None]
        canvases = [item.canvas for item in good if item.canvas is not None]
        answers = dict(zip(map(id, good), self._answers(np.stack(canvases)), strict=True)) if canvases else {}
        share = (time.perf_counter() - started) * 1000 / max(1, len(good))
        for item in batch:
            yield self._prediction(item, answers.get(id(item)), share)

    def _answers(self, canvases: Pixels) -> list[_Answer]:
        """Return an answer for each of uint8 [B, canvas, canvas]."""
        if self.gate is None:
            logits = self.logits(canvases)
            scores, embeddings = np.zeros((len(canvases), 0)), None
        else:
            logits, features = self.runtime.answer(to_input(canvases, self.bundle.preparation))
            scores, embeddings = self.gate.scores(canvases, features), self.gate.embedding(features)
        p, viral = probabilities(logits, *self.calibration)
        odds = pneumonia_logit(logits)
        return [
            _Answer(
                float(p[index]),
                float(odds[index]),
                None if viral is None else float(viral[index]),
                {name: round(float(score), 4) for name, score in zip(CHECKS, scores[index], strict=False)},
                None if self.gate is None else by_pixels(self.gate, scores[index], canvas, self._lungs),
                None if embeddings is None else tuple(embeddings[index].tolist()),
            )
            for index, canvas in enumerate(canvases)
        ]

    def _prediction(self, item: _Decoded, answer: _Answer | None, share: float) -> Prediction:
        refusal = item.refusal if answer is None else answer.refusal
        quality: dict[str, Any] = dict(item.quality)
        if answer is not None and answer.gate:
            quality["gate"] = answer.gate
        if refusal is not None:
            quality["refused_by"] = refusal.key
        common: dict[str, Any] = {
            "path": item.path,
            "threshold": self.threshold,
            "quality": quality,
            "bundle": self.bundle.label,
            "milliseconds": item.milliseconds + (share if answer else 0.0),
            "embedding": None if answer is None else answer.embedding,
        }
        if refusal is not None:
            return Prediction(probability=None, label=None, abstained=True, reason=str(refusal), **common)
        if answer is None:
            assert item.error is not None
            return Prediction(probability=None, label=None, error=str(item.error), fault=item.error.clause, **common)
        probability, viral = answer.probability, answer.viral
        return Prediction(
            probability=probability,
            label=PNEUMONIA if probability >= self.threshold else NORMAL,
            subtype=None if viral is None else {BACTERIAL: 1 - viral, VIRAL: viral},
            logit=answer.odds,
            **common,
        )


def _reopened(folder: Path, card: str, options: dict[str, Any], threshold: float) -> Classifier:
    bundle = load_bundle(folder)
    if bundle.card["card_sha256"] != card:
        raise BundleError("has changed since the classifier was pickled", path=folder, remedy="load it again")
    classifier = Classifier(bundle, **options)
    classifier.threshold = threshold
    return classifier


def _quality(
    header: Header | None, radiograph: Radiograph | None = None, canvas: Pixels | None = None
) -> dict[str, Any]:
    """Return `quality` of a prediction; where its header is refused, no pixels are looked at."""
    quality: dict[str, Any] = {
        "width": header and header.columns,
        "height": header and header.rows,
        "mean": None,
        "contrast": None,
        "sharpness": None,
        "noise": None,
        "collimated": None,
        "modality": header and header.modality,
        "notes": [],
    }
    if radiograph is None or canvas is None:
        return quality
    grey = canvas / 255.0
    return quality | {
        "width": radiograph.width,
        "height": radiograph.height,
        "mean": round(float(grey.mean()), 4),
        "contrast": round(float(grey.std()), 4),
        "sharpness": round(sharpness(canvas), 4),
        "noise": round(noise(canvas), 3),
        "collimated": round(collimated(radiograph.pixels), 4),
        "notes": list(radiograph.notes),
    }


def as_line(prediction: Prediction) -> str:
    """Return a prediction as one line of JSON, line feed included."""
    return json.dumps(plain(prediction.as_json()), ensure_ascii=False, allow_nan=False) + "\n"
