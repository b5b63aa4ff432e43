"""Radiographs as modalities send them, and findings about them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from scripts.pacs.radiographs import chest, radiograph

from pneumoscope.records import NORMAL, PNEUMONIA, Prediction
from pneumoscope.serving.results.finding import Finding

SHA = "0123456789abcdef" * 4
CARD = {
    "name": "made-up",
    "pneumoscope": "0.1.0",
    "sha256": SHA,
    "calibration": {"method": "temperature and bias fitted on the validation split", "temperature": 1.2},
}
THRESHOLD = 0.42


def heat(side: int = 14) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] / side
    return np.exp(-(((x - 0.3) / 0.12) ** 2 + ((y - 0.6) / 0.18) ** 2)).astype(np.float32)


def prediction(probability: float | None = 0.87, **changes: Any) -> Prediction:
    label = None if probability is None else PNEUMONIA if probability >= THRESHOLD else NORMAL
    values: dict[str, Any] = {
        "path": "/in/4711_Doe.dcm",
        "probability": probability,
        "label": label,
        "threshold": THRESHOLD,
        "bundle": f"made-up@{SHA[:12]}",
    }
    return Prediction(**{**values, **changes})


def finding(source: Dataset | None = None, answer: Prediction | None = None, **changes: Any) -> Finding:
    """By default a flagged radiograph with a map."""
    source = radiograph() if source is None else source
    values: dict[str, Any] = {
        "source": source,
        "prediction": answer or prediction(),
        "image": chest(256).astype(np.float32) / 255,
        "heatmap": heat(),
        "bundle": CARD,
        "explained_by": "gradcam, stable",
        "urgent": True,
    }
    return Finding(**{**values, **changes})


def abstained(**changes: Any) -> Finding:
    reason = "not analysed, because the image is nearly constant and shows nothing"
    return finding(answer=prediction(None, abstained=True, reason=reason), heatmap=None, urgent=False, **changes)


def unreadable(**changes: Any) -> Finding:
    fault = "pixels cannot be decoded (bad marker); export it uncompressed"
    answer = prediction(None, error=f"/in/4711_Doe.dcm: {fault}", fault=fault)
    return finding(answer=answer, image=None, heatmap=None, urgent=False, **changes)


def saved(source: Dataset) -> Dataset:
    """The radiograph as read from a file, so that its elements are raw."""
    buffer = io.BytesIO()
    source.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)
