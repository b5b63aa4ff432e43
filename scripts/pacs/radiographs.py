"""Radiographs as modalities send them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from pneumoscope.phantom.synthetic import render


@cache
def chest(side: int) -> np.ndarray:
    """Return a computed child's chest with pneumonia, uint8, `side` x `side`."""
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
