"""The result as a FHIR R4B transaction: device, study, observation, preliminary report, task.

Each resource has an identifier and is created only where none has it, so sending twice makes no duplicate.
Source: HL7 FHIR R4B (4.3.0); IHE Radiology, AI Results.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fhir.resources.R4B.bundle import Bundle
from pydicom.sr.coding import Code

from pneumoscope.records import RESEARCH_ONLY
from pneumoscope.serving.results import codes, words
from pneumoscope.serving.results.finding import Encoded
from pneumoscope.serving.results.instance import MANUFACTURER, Case
from pneumoscope.version import __version__

KIND = "fhir"
_SYSTEMS = {"SCT": "http://snomed.info/sct", "DCM": "http://dicom.nema.org/resources/ontology/DCM"}
_UIDS = "urn:dicom:uid"
_IDENTIFIERS = "urn:ietf:rfc:3986"
_TYPES = "http://terminology.hl7.org/CodeSystem/v2-0203"
_ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
_CATEGORIES = "http://terminology.hl7.org/CodeSystem/observation-category"
_SECTIONS = "http://terminology.hl7.org/CodeSystem/v2-0074"


def build(case: Case) -> Encoded:
    """Return the transaction as JSON, validated by `fhir.resources`."""
    name = case.uuid(KIND)
    resources = {
        "Device": _device(case),
        "ImagingStudy": _study(case),
        "Observation": _observation(case),
        "DiagnosticReport": _report(case),
        "Task": _task(case),
    }
    transaction = {
        "resourceType": "Bundle",
        "identifier": _urn(name),
        "type": "transaction",
        "timestamp": _moment(case.made),
        "entry": [_entry(case, kind, content) for kind, content in resources.items()],
    }
    text = Bundle.model_validate(transaction).model_dump_json()
    return Encoded(KIND, name, None, text.encode(), ".json")


def _entry(case: Case, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    identifier = content["identifier"][0]
    return {
        "fullUrl": f"urn:uuid:{_name(case, kind)}",
        "resource": {"resourceType": kind, **content},
        "request": {
            "method": "POST",
            "url": kind,
            "ifNoneExist": f"identifier={identifier['system']}|{identifier['value']}",
        },
    }


def _name(case: Case, kind: str) -> str:
    return case.uuid(KIND, kind)


def _reference(case: Case, kind: str) -> dict[str, Any]:
    return {"reference": f"urn:uuid:{_name(case, kind)}", "type": kind}


def _urn(uuid: str) -> dict[str, str]:
    return {"system": _IDENTIFIERS, "value": f"urn:uuid:{uuid}"}


def _moment(made: datetime) -> str:
    """An instant needs a zone: one without is taken as UTC."""
    aware = made if made.tzinfo is not None else made.replace(tzinfo=UTC)
    return aware.replace(microsecond=0).isoformat()


def _concept(code: Code, text: str | None = None) -> dict[str, Any]:
    coding = {"system": _SYSTEMS[code.scheme_designator], "code": code.value, "display": code.meaning}
    return {"coding": [coding], **({"text": text} if text else {})}


def _subject(case: Case) -> dict[str, Any]:
    """A logical reference: the receiver knows its patients, so no name is sent."""
    header = case.header
    if not header.PatientID:
        return {"type": "Patient", "display": "patient without an identifier: see the imaging study"}
    identifier: dict[str, Any] = {
        "type": {"coding": [{"system": _TYPES, "code": "MR", "display": "Medical record number"}]},
        "value": str(header.PatientID),
    }
    if header.get("IssuerOfPatientID"):
        identifier["assigner"] = {"display": str(header.IssuerOfPatientID)}
    return {"type": "Patient", "identifier": identifier}


def _common(case: Case, kind: str) -> dict[str, Any]:
    return {
        "meta": {"tag": [{"display": RESEARCH_ONLY}]},
        "identifier": [_urn(_name(case, kind))],
    }


def _device(case: Case) -> dict[str, Any]:
    return {
        "identifier": [{"system": _IDENTIFIERS, "value": f"urn:oid:{case.device_uid}"}],
        "manufacturer": MANUFACTURER,
        "deviceName": [{"name": words.algorithm(case.finding), "type": "model-name"}],
        "type": _concept(codes.SOFTWARE),
        "version": [{"value": __version__}, {"value": f"SHA-256 {case.bundle_sha256}"}],
        "note": [{"text": RESEARCH_ONLY}],
    }


def _study(case: Case) -> dict[str, Any]:
    header = case.header
    instance = {
        "uid": str(header.SOPInstanceUID),
        "sopClass": {"system": _IDENTIFIERS, "code": f"urn:oid:{header.SOPClassUID}"},
    }
    series = {
        "uid": str(header.SeriesInstanceUID),
        "modality": {"system": _SYSTEMS["DCM"], "code": str(header.Modality)},
        "instance": [instance],
    }
    return {
        "identifier": [{"system": _UIDS, "value": f"urn:oid:{header.StudyInstanceUID}"}],
        "status": "available",
        "subject": _subject(case),
        "series": [series],
    }


def _observation(case: Case) -> dict[str, Any]:
    finding = case.finding
    content = {
        **_common(case, "Observation"),
        "status": "preliminary",
        "category": [{"coding": [{"system": _CATEGORIES, "code": "imaging"}]}],
        "subject": _subject(case),
        "effectiveDateTime": _moment(case.made),
        "device": _reference(case, "Device"),
        "derivedFrom": [_reference(case, "ImagingStudy")],
        "bodySite": _concept(codes.LUNG),
        "note": [{"text": sentence} for sentence in case.sentences()],
    }
    name = codes.PROBABILITY if words.calibrated(finding) else codes.CERTAINTY
    content["code"] = {**_concept(codes.PNEUMONIA), "text": "Pneumonia on a chest radiograph"}
    if not words.analysed(finding):
        absent = [{"system": _ABSENT, "code": "not-performed", "display": "Not Performed"}]
        return {**content, "dataAbsentReason": {"coding": absent, "text": words.reason(finding)}}
    score = {"value": words.percent(finding), "unit": "%", "system": "http://unitsofmeasure.org", "code": "%"}
    component: dict[str, Any] = {"code": _concept(name), "valueQuantity": score}
    if words.flagged(finding):
        return {**content, "valueCodeableConcept": _concept(codes.PRESENT), "component": [component]}
    unknown = [{"system": _ABSENT, "code": "unknown", "display": "Unknown"}]
    return {
        **content,
        "dataAbsentReason": {"coding": unknown, "text": words.caution(finding)},
        "component": [component],
    }


def _report(case: Case) -> dict[str, Any]:
    return {
        **_common(case, "DiagnosticReport"),
        "status": "preliminary",
        "category": [{"coding": [{"system": _SECTIONS, "code": "RAD", "display": "Radiology"}]}],
        "code": _concept(codes.CHEST_RADIOGRAPHY),
        "subject": _subject(case),
        "effectiveDateTime": _moment(case.made),
        "issued": _moment(case.made),
        "result": [_reference(case, "Observation")],
        "imagingStudy": [_reference(case, "ImagingStudy")],
        "conclusion": " ".join(f"{sentence.rstrip('.')}." for sentence in case.sentences()),
    }


def _task(case: Case) -> dict[str, Any]:
    """Ask for a reading. Only urgent tasks have a priority, so that none is ever lowered."""
    content = {
        **_common(case, "Task"),
        "status": "requested",
        "intent": "proposal",
        "code": {"text": "Read the radiograph"},
        "description": words.headline(case.finding),
        "focus": _reference(case, "DiagnosticReport"),
        "for": _subject(case),
        "authoredOn": _moment(case.made),
    }
    return {**content, "priority": "urgent"} if case.finding.urgent else content
