"""The heat map as a fractional segmentation over the radiograph.

Source: DICOM PS3.3, C.8.20 (Segmentation Type FRACTIONAL, Segmentation Fractional Type PROBABILITY).
"""

from __future__ import annotations

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentAlgorithmTypeValues, SegmentDescription

from pneumoscope.explanation.overlay import LEAST, stretch
from pneumoscope.serving.encode import codes, words
from pneumoscope.serving.encode.instance import MANUFACTURER, Case, Encoded

KIND = "seg"


def build(case: Case) -> Encoded | None:
    """Return the segmentation; None unless flagged with a map: an empty one would read as nothing found.

    Values are 0..255 for 0..1, of the size of the radiograph; under a fifth they are 0, as in the overlay.
    """
    finding, header = case.finding, case.header
    if not words.flagged(finding) or finding.heatmap is None or not finding.heatmap.max() >= LEAST:
        return None
    grown = np.clip(stretch(finding.heatmap, header.Columns, header.Rows), 0, 1)
    values = np.where(grown < LEAST, 0, np.rint(grown * 255)).astype(np.uint8)
    bundle = finding.bundle
    algorithm = AlgorithmIdentificationSequence(
        name=str(bundle.get("name", "")) or "bundle", family=codes.SOFTWARE, version=case.bundle_sha256[:64] or "none"
    )
    segment = SegmentDescription(
        segment_number=1,
        segment_label="Evidence",
        segmented_property_category=codes.ABNORMAL,
        segmented_property_type=codes.OPACITY,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=case.uid(KIND, "evidence"),
        tracking_id="evidence",
    )
    segmentation = Segmentation(
        source_images=[header],
        pixel_array=values,
        segmentation_type="FRACTIONAL",
        fractional_type="PROBABILITY",
        segment_descriptions=[segment],
        content_label="EVIDENCE",
        content_description="Where the evidence of the network lies",
        content_creator_name=MANUFACTURER,
        **case.arguments(KIND, 9004, "Pneumoscope map (research)"),
    )
    return case.finish(KIND, segmentation)
