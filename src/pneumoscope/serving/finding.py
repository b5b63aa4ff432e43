"""What the gateway knows of one radiograph once the network has answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydicom

from pneumoscope.records import FloatArray, Prediction


@dataclass(frozen=True)
class Finding:
    """One answer about one radiograph, with what its results are made of.

    `source`: header of the radiograph analysed, with or without its pixels. `prediction`: probability and label, or
    `abstained` with a reason, or `error`. `image`: float32 [H, W] in 0..1 as `images.read_image` reads it, None where
    it cannot be read. `heatmap`: float32 [h, w] in 0..1, stretched over the whole image, or None. `bundle`: its card.
    `explained_by`: method and verdict of the map, such as `gradcam, stable`. `urgent`: to be read before others.
    """

    source: pydicom.Dataset
    prediction: Prediction
    image: FloatArray | None
    heatmap: FloatArray | None
    bundle: Mapping[str, Any]
    explained_by: str | None
    urgent: bool
