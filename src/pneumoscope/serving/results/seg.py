"""The heat map as a fractional segmentation over the radiograph.

Source: DICOM PS3.3, C.8.20 (Segmentation Type FRACTIONAL, Segmentation Fractional Type PROBABILITY).
"""

from __future__ import annotations

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from pneumoscope.explanation.overlay import LEAST, stretch
from pneumoscope.serving.results import codes, words
from pneumoscope.serving.results.finding import Encoded
from pneumoscope.serving.results.instance import CREATOR, Case

KIND = "seg"
# For other classes a segmentation needs a frame of reference, which a heat map lacks.
_PROJECTIONS = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)


def build(case: Case) -> Encoded | None:
    """Return the segmentation; None unless a plain radiograph was flagged: an empty one would read as negative.

    Values are 0..255 for 0..1, of the size of the radiograph; under a fifth they are 0, as in the overlay.
    """
    finding, header = case.finding, case.header
    if (
        header.SOPClassUID not in _PROJECTIONS
        or not words.flagged(finding)
        or finding.heatmap is None
        or not finding.heatmap.max() >= LEAST
    ):
        return None
    grown = np.clip(stretch(finding.heatmap, header.Columns, header.Rows), 0, 1)
    values = np.where(grown < LEAST, 0, grown).astype(np.float32)
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
        source_images=[case.evidence],
        pixel_array=values,
        segmentation_type="FRACTIONAL",
        fractional_type="PROBABILITY",
        segment_descriptions=[segment],
        content_label="EVIDENCE",
        content_description="Where the evidence of the network lies",
        content_creator_name=CREATOR,
        **case.arguments(KIND, 9004, "Pneumoscope map (research)"),
    )
    # highdicom draws this UID at random
    organization = case.uid(KIND, "dimensions")
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    segmentation.PatientOrientation = header.get("PatientOrientation")  # type 2C; highdicom leaves it out
    return case.finish(KIND, segmentation)
