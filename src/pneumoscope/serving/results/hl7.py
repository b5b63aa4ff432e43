"""The result as an HL7 v2.5.1 message, unsolicited observation (ORU^R01).

Source: HL7 v2.5.1, chapters 2.7 (escape sequences), 3.4.2 (PID), 4.5.4 (TQ1) and 7.3.1 (ORU).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from hl7apy.parser import parse_message
from pydicom.sr.coding import Code

from pneumoscope.serving.results import codes, words
from pneumoscope.serving.results.finding import Encoded
from pneumoscope.serving.results.instance import Case

KIND = "hl7"
_CONTROL_ID = 20  # longest MSH-10 of this version
_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"})


def build(case: Case) -> Encoded:
    """Return the message, UTF-8, segments ended by carriage returns; validated by hl7apy."""
    control = case.uuid(KIND).replace("-", "")[:_CONTROL_ID]
    segments = [_header(case, control), _patient(case), _order(case)]
    if case.finding.urgent:
        segments.append("TQ1|1||||||||S^Stat^HL70485")
    segments += [f"OBX|{number}|{fields}" for number, fields in enumerate(_observations(case), 1)]
    text = "\r".join(segments) + "\r"
    parse_message(text, find_groups=True).validate()
    return Encoded(KIND, control, None, text.encode(), ".hl7")


def escaped(text: object) -> str:
    """Return text on one line, with HL7's delimiters escaped."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f]+", " ", str(text)).translate(_ESCAPES).split())


def _header(case: Case, control: str) -> str:
    made = _moment(case.made)
    return f"MSH|^~\\&|PNEUMOSCOPE||||{made}||ORU^R01^ORU_R01|{control}|P|2.5.1||||||UNICODE UTF-8"


def _moment(moment: datetime) -> str:
    zone = f"{moment:%z}" if moment.tzinfo is not None else ""
    return f"{moment:%Y%m%d%H%M%S}{zone}"


def _concept(code: Code) -> str:
    return f"{escaped(code.value)}^{escaped(code.meaning)}^{code.scheme_designator}"


def _patient(case: Case) -> str:
    header = case.header
    issuer = escaped(header.get("IssuerOfPatientID", ""))
    # Required fields: an unknown one is an explicit null, which matches no patient.
    number = f"{escaped(header.PatientID)}^^^{issuer}" if header.PatientID else '""'
    # DICOM: family, given, middle, prefix, suffix; HL7 has the last two the other way round.
    parts = [escaped(part) for part in str(header.PatientName).split("=")[0].split("^")] + [""] * 5
    family, given, middle, prefix, suffix = parts[:5]
    name = "^".join([family, given, middle, suffix, prefix]).rstrip("^") or '""'
    return f"PID|1||{number.rstrip('^')}||{name}||{header.PatientBirthDate}|{header.PatientSex}".rstrip("|")


def _order(case: Case) -> str:
    header = case.header
    number, made = escaped(header.AccessionNumber), _moment(case.made)
    return f"OBR|1||{number}|{_concept(codes.CHEST_RADIOGRAPHY)}|||{made}|||||||||||||||{made}||RAD|P"


def _observations(case: Case) -> Iterator[str]:
    """Yield value type, code, value, units and status; status X: there is no result."""
    finding = case.finding
    if words.flagged(finding):
        yield _observation("CWE", _concept(codes.PNEUMONIA), _concept(codes.PRESENT))
    if words.analysed(finding):
        name = codes.PROBABILITY if words.calibrated(finding) else codes.CERTAINTY
        yield _observation("NM", _concept(name), f"{words.percent(finding):g}", "%^Percent^UCUM")
    else:
        yield _observation("TX", _concept(codes.PNEUMONIA), escaped(words.reason(finding)), status="X")
    for sentence in case.sentences():
        yield _observation("TX", _concept(codes.COMMENT), escaped(sentence))
    yield _observation("ST", _concept(codes.STUDY_UID), str(case.header.StudyInstanceUID))


def _observation(kind: str, concept: str, value: str, units: str = "", status: str = "P") -> str:
    return f"{kind}|{concept}||{value}|{units}|||||{status}"
