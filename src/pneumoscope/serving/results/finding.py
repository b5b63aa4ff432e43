"""The answer about one radiograph, and the results made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pneumoscope.records import FloatArray, Prediction

if TYPE_CHECKING:
    import pydicom


@dataclass(frozen=True)
class Finding:
    """The answer about one radiograph, with the data for its results.

    `source`: header of the radiograph analysed, with or without its pixels. `prediction`: probability and label, or
    `abstained` with a reason, or `error`. `image`: float32 [H, W] in 0..1 as `images.read_image` reads it, None if
    unreadable. `heatmap`: float32 [h, w] in 0..1, stretched over the whole image, or None. `bundle`: its card.
    `explained_by`: method and verdict of the map, such as `gradcam, stable`. `urgent`: to be read before others.
    """

    source: pydicom.Dataset
    prediction: Prediction
    image: FloatArray | None
    heatmap: FloatArray | None
    bundle: Mapping[str, Any]
    explained_by: str | None
    urgent: bool


@dataclass(frozen=True)
class Encoded:
    """One result, ready to send.

    `uid`: SOP Instance UID, or id of the message; the same for the same result. `sop_class`: None
    for what is not DICOM. `suffix`: of a file that holds `data`.
    """

    kind: str
    uid: str
    sop_class: str | None
    data: bytes
    suffix: str
