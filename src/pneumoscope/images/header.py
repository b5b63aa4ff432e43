"""What is kept of a DICOM header; an element that is missing or damaged is None, never an error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pneumoscope.errors import ImageError
from pneumoscope.images import age_in_years, dicom_errors, read_header

OWN = "Pneumoscope"  # manufacturer or model of the objects that the gateway makes
_LONGEST = 256  # characters kept of any text; a header may hold megabytes
_IDENTITY = frozenset({"patient_id", "issuer", "patient_name", "birth_date", "accession"})
_UIDS = frozenset({"sop_uid", "study_uid", "series_uid"})


@dataclass(frozen=True, slots=True)
class Header:
    """Of one DICOM object. Texts are at most 256 characters, without NUL; `age_years` and the doses are finite."""

    sop_uid: str
    sop_class: str
    study_uid: str
    series_uid: str
    transfer_syntax: str
    own: bool = False
    patient_id: str | None = None
    issuer: str | None = None
    patient_name: str | None = None
    birth_date: str | None = None
    accession: str | None = None
    modality: str | None = None
    view: str | None = None
    body_part: str | None = None
    description: str | None = None
    intent: str | None = None
    priority: str | None = None
    age_years: float | None = None
    sex: str | None = None
    study_date: str | None = None
    rows: int | None = None
    columns: int | None = None
    frames: int | None = None
    bits: int | None = None
    photometric: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    station: str | None = None
    device_serial: str | None = None
    institution: str | None = None
    kvp: float | None = None
    exposure_uas: float | None = None

    def facts(self) -> dict[str, Any]:
        """Return all but identity and UIDs, as JSON knows it."""
        left_out = _IDENTITY | _UIDS
        return {name: getattr(self, name) for name in self.__slots__ if name not in left_out}


def read(path: Path) -> Header:
    """Read the header of a DICOM file.

    Raises:
        ImageError: the file is no DICOM, or does not say which object it is.
    """
    dataset = read_header(path)

    def text(keyword: str) -> str | None:
        return _clean(_element(path, dataset, keyword))

    def number(keyword: str) -> float | None:
        try:
            value = float(text(keyword) or "nan")
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    def whole(keyword: str) -> int | None:
        value = number(keyword)
        return None if value is None else int(value)

    uids = {name: text(name) for name in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID")}
    if missing := [name for name, uid in uids.items() if not uid or len(uid) > 64]:
        raise ImageError(f"the DICOM object has no valid {missing[0]}", path=path, remedy="export it again")
    descriptions = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription", "StudyDescription")
    told = [found for name in descriptions if (found := text(name))]
    makers = (text("Manufacturer"), text("ManufacturerModelName"))
    return Header(
        sop_uid=str(uids["SOPInstanceUID"]),
        sop_class=str(uids["SOPClassUID"]),
        study_uid=str(uids["StudyInstanceUID"]),
        series_uid=str(uids["SeriesInstanceUID"]),
        transfer_syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        own=any(maker and maker.startswith(OWN) for maker in makers),
        patient_id=text("PatientID"),
        issuer=text("IssuerOfPatientID"),
        patient_name=text("PatientName"),
        birth_date=text("PatientBirthDate"),
        accession=text("AccessionNumber"),
        modality=_upper(text("Modality")),
        view=_upper(text("ViewPosition")),
        body_part=_upper(text("BodyPartExamined")),
        description="; ".join(told)[:_LONGEST] or None,
        intent=_upper(text("PresentationIntentType")),
        priority=_upper(text("RequestedProcedurePriority")),
        age_years=_age(text),
        sex=_upper(text("PatientSex")),
        study_date=text("StudyDate"),
        rows=whole("Rows"),
        columns=whole("Columns"),
        frames=whole("NumberOfFrames"),
        bits=whole("BitsStored"),
        photometric=_upper(text("PhotometricInterpretation")),
        manufacturer=makers[0],
        model=makers[1],
        station=text("StationName"),
        device_serial=text("DeviceSerialNumber"),
        institution=text("InstitutionName"),
        kvp=number("KVP"),
        exposure_uas=number("ExposureInuAs") or _thousandfold(number("Exposure")),
    )


def _element(path: Path, dataset: Any, keyword: str) -> Any:
    try:
        with dicom_errors(path, "an element is damaged", "export it again"):
            return dataset.get(keyword)
    except ImageError:
        return None


def _clean(value: Any) -> str | None:
    """Return the first value as text that every database takes."""
    if value is not None and not isinstance(value, str) and hasattr(value, "__getitem__") and hasattr(value, "append"):
        value = value[0] if len(value) else None
    if value is None:
        return None
    text = str(value).replace("\0", "").encode("utf-8", "replace").decode().strip()
    return text[:_LONGEST] or None


def _upper(text: str | None) -> str | None:
    return None if text is None else text.upper()


def _thousandfold(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def _age(text: Any) -> float | None:
    """Age at the study: what is told, else from the dates; None where neither makes sense."""
    told = age_in_years(text("PatientAge") or "")
    if told is not None:
        return told
    born, taken = _date(text("PatientBirthDate")), _date(text("StudyDate"))
    if born is None or taken is None or taken < born:
        return None
    return round((taken - born).days / 365.25, 2)


def _date(text: str | None) -> date | None:
    try:
        return datetime.strptime(text or "", "%Y%m%d").date()
    except ValueError:
        return None
