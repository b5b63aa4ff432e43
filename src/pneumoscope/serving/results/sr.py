"""The structured report: TID 1500, the whole image as TID 1501 and regions as TID 1410 (DICOM PS3.16).

Source: IHE Radiology, AI Results, which asks for Comprehensive 3D SR.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Literal

from highdicom import sr

from pneumoscope.serving.results import codes, words
from pneumoscope.serving.results.finding import Encoded
from pneumoscope.serving.results.instance import MANUFACTURER, Case
from pneumoscope.serving.results.regions import outlines
from pneumoscope.version import __version__

KIND = "sr"
Form = Literal["comprehensive-3d", "comprehensive", "enhanced"]
_FORMS = MappingProxyType(
    {"comprehensive-3d": sr.Comprehensive3DSR, "comprehensive": sr.ComprehensiveSR, "enhanced": sr.EnhancedSR}
)


def build(case: Case, form: Form = "comprehensive-3d") -> Encoded:
    """Return the report; `form` is for destinations that refuse Comprehensive 3D SR."""
    kind = KIND if form == "comprehensive-3d" else f"{KIND}-{form}"
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_observer(case)),
        procedure_reported=codes.CHEST_RADIOGRAPHY,
        imaging_measurements=[_whole_image(case), *_regions(case)],
        title=codes.REPORT,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept.from_code(codes.ENGLISH)
        ),
    )
    document = _FORMS[form](
        evidence=[case.evidence],
        content=report[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        **case.arguments(kind, 9001, "Pneumoscope report (research)"),
    )
    return case.finish(KIND, document)


def _observer(case: Case) -> Any:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=case.device_uid,
        name="Pneumoscope",
        manufacturer_name=MANUFACTURER,
        model_name=str(case.finding.bundle.get("name", "")) or None,
        serial_number=case.bundle_sha256 or None,
    )
    return sr.ObserverContext(sr.CodedConcept.from_code(codes.DEVICE), device)


def _algorithm(case: Case) -> Any:
    finding = case.finding
    return sr.AlgorithmIdentification(
        name=str(finding.bundle.get("name", "")) or "bundle",
        version=f"{__version__}, SHA-256 {case.bundle_sha256}",
        family=codes.SOFTWARE,
        parameters=[f"threshold {finding.prediction.threshold:.6g}"],
        manufacturer=MANUFACTURER,
    )


def _tracking(case: Case, name: str) -> Any:
    return sr.TrackingIdentifier(uid=case.uid(KIND, name), identifier=name)


def _whole_image(case: Case) -> Any:
    """Finding, evaluation and score; without an answer the evaluation says so, and there is no score."""
    finding = case.finding
    measurements, evaluations = [], []
    if words.analysed(finding):
        name = codes.PROBABILITY if words.calibrated(finding) else codes.CERTAINTY
        measurements.append(sr.Measurement(name=name, value=words.percent(finding), unit=codes.PERCENT))
    if words.flagged(finding):
        evaluations.append(sr.QualitativeEvaluation(codes.PNEUMONIA, codes.PRESENT))
    elif not words.analysed(finding):
        evaluations.append(sr.QualitativeEvaluation(codes.PNEUMONIA, codes.NOT_DONE))
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(case, "whole image"),
        finding_type=codes.PNEUMONIA,
        finding_sites=[sr.FindingSite(codes.LUNG)],
        algorithm_id=_algorithm(case),
        measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(case.header)],
    )
    for sentence in case.sentences():
        group[0].ContentSequence.append(_comment(sentence))
    return group


def _comment(text: str) -> Any:
    contains = sr.RelationshipTypeValues.CONTAINS
    return sr.TextContentItem(name=codes.COMMENT, value=text, relationship_type=contains)


def _regions(case: Case) -> list[Any]:
    """Outlines of the evidence, only where the image was flagged."""
    if not words.flagged(case.finding):
        return []
    header = case.header
    source = sr.SourceImageForRegion.from_source_image(header)
    groups = []
    for number, outline in enumerate(outlines(case.finding.heatmap, header.Columns, header.Rows), 1):
        groups.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=_tracking(case, f"region {number}"),
                referenced_region=sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, outline, source),
                finding_type=codes.OPACITY,
                finding_sites=[sr.FindingSite(codes.LUNG)],
                algorithm_id=_algorithm(case),
            )
        )
    return groups
