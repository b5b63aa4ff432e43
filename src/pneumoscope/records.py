"""The values that cross from one stage to the next: small, frozen, free of behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMAL = "NORMAL"
PNEUMONIA = "PNEUMONIA"
LABELS = (NORMAL, PNEUMONIA)

BACTERIAL = "bacterial"
VIRAL = "viral"
SUBTYPES = (BACTERIAL, VIRAL)

SPLITS = ("train", "val", "test")

VERDICTS = ("stable", "unstable", "not faithful", "blank", "not tested")

RESEARCH_ONLY = "For research use only. Not for diagnosis."

FloatArray = NDArray[np.float32]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Progress = Callable[[int, int | None], None]  # called with how many are done, and of how many, where that is known
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Sample:
    """One radiograph of a data source.

    `path` is a file path, or `archive.npz#val/12` for row 12 of `val_images` in a MedMNIST archive.
    `patient_id` groups images of one person; it is a key, never a name.
    """

    path: str
    patient_id: str
    label: str | None = None
    subtype: str | None = None
    split: str | None = None
    site: str | None = None
    age_years: float | None = None
    sex: str | None = None
    view: str | None = None
    covariates: Mapping[str, str] = field(default_factory=lambda: _NONE)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval. `low` and `high` are NaN where none can be given."""

    value: float
    low: float
    high: float
    method: str

    def as_json(self) -> dict[str, Any]:
        """Return the form of the `metrics.json` contract."""
        return {"value": self.value, "ci95": [self.low, self.high], "method": self.method}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the classifier says of one image; `error` is set where it could not be read.

    `fault` is the error without the file, whose name may be a patient's.
    `probability` is the calibrated probability of pneumonia in 0..1; `subtype` maps `bacterial` and
    `viral` to their probabilities given pneumonia, and is None for a two-class network.
    `logit` is the uncalibrated log-odds of pneumonia. `embedding`: where the network placed the image, of bundles
    with a gate (`Gate.embedding`); the journal keeps it, the line of `predict` does not.

    >>> [prediction] = pneumoscope.load().predict("chest.png")
    >>> prediction.label, prediction.probability < prediction.threshold, prediction.reason, prediction.error
    ('NORMAL', True, None, None)
    """

    path: str
    probability: float | None
    label: str | None
    threshold: float
    subtype: Mapping[str, float] | None = None
    abstained: bool = False
    reason: str | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    bundle: str = ""
    milliseconds: float = 0.0
    logit: float | None = None
    error: str | None = None
    fault: str | None = None
    embedding: tuple[float, ...] | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON line of the `predict` contract, with `error` only where there is one."""
        line: dict[str, Any] = {
            "path": self.path,
            "probability": self.probability,
            "label": self.label,
            "threshold": self.threshold,
            "subtype": None if self.subtype is None else dict(self.subtype),
            "abstained": self.abstained,
            "reason": self.reason,
            "quality": dict(self.quality),
            "bundle": self.bundle,
            "milliseconds": round(self.milliseconds, 2),
        }
        if self.error is not None:
            line["error"] = self.error
        return line

    def cells(self) -> tuple[str, ...]:
        """Return path, call, probability, threshold, and why there is no call, as text for a table."""
        called = self.label or ("not read" if self.error else "not analysed")
        probability = "" if self.probability is None else f"{self.probability:.3f}"
        return self.path, called, probability, f"{self.threshold:.3f}", self.fault or self.error or self.reason or ""

    def _repr_html_(self) -> str:
        return html_table([self])


def html_table(predictions: Sequence[Prediction], *, more: bool = False) -> str:
    """Return predictions as a table for a notebook, file names and reasons escaped; `more`: there are others."""
    head = "".join(f"<th>{name}</th>" for name in ("image", "label", "probability", "threshold", ""))
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in p.cells())}</tr>" for p in predictions)
    note = f"The first {len(predictions)} only. " if more else ""
    return f"<table><caption>{note}{RESEARCH_ONLY}</caption><tr>{head}</tr>{rows}</table>"


@dataclass(frozen=True, slots=True)
class Heatmap:
    """An attribution map over the image as the network saw it, and what is known about it.

    `values`: float32 [S, S] in 0..1, S the network's input size, row 0 the top of the image: what speaks for
    pneumonia, by its maximum; all zero where the verdict is `blank`. `signed`: float32 [S, S], also what speaks
    against, in log-odds where the method gives such (perturbations, integrated gradients), else in units of its own.
    `segments`: int32 [S, S], 0..K-1, and `contributions`: float64 [K] in log-odds, of methods that remove segments.

    `verdict`: one of `VERDICTS`; `reason` says why. `seed` is None where nothing is drawn at random. `samples`: what
    was asked for, None where the method takes none. `evaluations`: answers of the network, those of a check included.
    `r2`: share of the answers' variance that the surrogate predicts for images it was not fitted to (at most 1),
    None without surrogate. `stability`: rank correlation over seeds, or under noise, None where it was not tested.
    `infidelity`: how badly the map foretells what removing squares changes, 0 best and 1 no better than none; or None.

    >>> heatmap = pneumoscope.explain(pneumoscope.load(), "chest.png")
    >>> heatmap.method, heatmap.values.dtype, heatmap.target
    ('gradcam', dtype('float32'), 'log-odds of pneumonia, not calibrated')
    """

    values: FloatArray
    method: str
    layer: str
    target: str
    verdict: str
    seconds: float
    reason: str | None = None
    seed: int | None = None
    samples: int | None = None
    evaluations: int = 1
    r2: float | None = None
    stability: float | None = None
    infidelity: float | None = None
    signed: FloatArray | None = None
    segments: NDArray[np.int32] | None = None
    contributions: NDArray[np.float64] | None = None

    def _repr_html_(self) -> str:
        from base64 import b64encode
        from io import BytesIO

        from PIL import Image

        buffer = BytesIO()
        Image.fromarray(np.rint(np.clip(self.values, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG")
        words = f"{self.method}: {self.verdict}. {self.target}. {RESEARCH_ONLY}"
        picture = b64encode(buffer.getvalue()).decode()
        image = f'<img alt="map" src="data:image/png;base64,{picture}">'
        return f"<figure>{image}<figcaption>{escape(words)}</figcaption></figure>"

    def facts(self) -> dict[str, Any]:
        """Return what is known about the map, without its arrays, as `explain` writes it."""
        return {
            "method": self.method,
            "layer": self.layer,
            "target": self.target,
            "seed": self.seed,
            "samples": self.samples,
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 4),
            "surrogate_r2": self.r2,
            "stability": self.stability,
            "infidelity": self.infidelity,
            "verdict": self.verdict,
            "verdict_reason": self.reason,
        }
