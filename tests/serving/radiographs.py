"""Radiographs as modalities send them, and findings about them."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from pneumoscope.phantom.synthetic import render
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


@cache
def chest(side: int) -> np.ndarray:
    return render(np.random.default_rng(3), kind="bacterial", size=side).pixels


def radiograph(side: int = 256, **changes: Any) -> Dataset:
    """A DX header with 12-bit pixels of a computed chest; a change to None removes the attribute."""
    pixels = chest(side).astype(np.uint16) * 16
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.11"
    source = Dataset()
    source.file_meta = meta
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.11",
        "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
        "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.2",
        "Modality": "DX",
        "PatientName": "Doe^Jane",
        "PatientID": "4711",
        "IssuerOfPatientID": "General Hospital",
        "PatientBirthDate": "20210203",
        "PatientSex": "F",
        "PatientAge": "005Y",
        "StudyID": "7",
        "StudyDate": "20260304",
        "StudyTime": "050000",
        "StudyDescription": "Chest PA",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "Roe^Richard",
        "BodyPartExamined": "CHEST",
        "PatientOrientation": ["L", "F"],
        "BurnedInAnnotation": "NO",
        "Rows": side,
        "Columns": side,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "WindowCenter": 2048,
        "WindowWidth": 4096,
        "PresentationLUTShape": "IDENTITY",
        "PixelData": pixels.tobytes(),
    }
    for keyword, value in {**values, **changes}.items():
        if value is not None:
            setattr(source, keyword, value)
    return source


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
    why = "not analysed, because the image is nearly constant and shows nothing"
    return finding(answer=prediction(None, abstained=True, reason=why), heatmap=None, urgent=False, **changes)


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
