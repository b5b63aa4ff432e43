"""A valid header for results, from the header of any radiograph.

Tolerant when reading, strict when writing: a value that breaks the rules of its value representation (DICOM PS3.5, 6.2)
is corrected where that is harmless, else left out. An identifier is never cut or altered, since it might become that of
another patient: an invalid one is left empty, and the result is filed by its Study Instance UID.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.multival import MultiValue
from pydicom.uid import UID, ComputedRadiographyImageStorage, SecondaryCaptureImageStorage

from pneumoscope.errors import ImageError
from pneumoscope.images import dicom_errors
from pneumoscope.serving.results.uids import stable_uid

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_UNENCODABLE = re.compile(r"[\ud800-\udfff]")
_SIDES = frozenset({"A", "P", "R", "L", "H", "F"})


def clean_header(source: Dataset) -> Dataset:
    """Return a header with all that highdicom needs, every value valid, text as Unicode (ISO_IR 192).

    No header makes it raise. It keeps the identity of patient, study and image, and the image's orientation and size.
    A missing or unusable UID is replaced by one derived from the other values.
    """
    # Invalid values are expected; pydicom's warnings would write them, and so the patient, to a log.
    with disable_value_validation():
        header = Dataset()
        for keyword, checked in _CHECKS.items():
            setattr(header, keyword, checked(read(source, keyword)))
        for keyword, checked in _OPTIONAL.items():
            value = checked(read(source, keyword))
            if value not in (None, ""):
                setattr(header, keyword, value)
        _identify(header, source)
        _size(header, source)
    header.SpecificCharacterSet = "ISO_IR 192"
    return header


def read(source: Dataset, keyword: str) -> Any:
    """Return one value, None where it is absent or cannot be decoded."""
    try:
        with dicom_errors(Path("header"), "cannot be decoded", "nothing to do"):
            value = source.get(keyword)
            return None if value is None else value if isinstance(value, (int, float, MultiValue)) else _plain(value)
    except ImageError:
        return None


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bytes, list)) or hasattr(value, "is_sequence") else str(value)


def _text(longest: int) -> Callable[[Any], str]:
    """Free text: control characters become spaces, long text is cut."""

    def checked(value: Any) -> str:
        value = " ".join(str(part) for part in value) if isinstance(value, MultiValue) else str(value or "")
        text = _UNENCODABLE.sub("?", _CONTROL.sub(" ", value)).replace("\\", "/")
        return " ".join(text.split())[:longest].strip()

    return checked


def _identifier(longest: int) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        if value is None or isinstance(value, MultiValue):
            return ""
        text = str(value).strip(" ")
        broken = len(text) > longest or "\\" in text or _CONTROL.search(text) or _UNENCODABLE.search(text)
        return "" if broken else text

    return checked


def _person(value: Any) -> str:
    """A name: at most three groups (alphabetic, ideographic, phonetic) of five components, 64 characters each."""
    groups = _text(1000)(value).split("=")[:3]
    cut = ["^".join(group.split("^")[:5])[:64].rstrip("^ ") for group in groups]
    return "=".join(cut).rstrip("=")


def _code(*allowed: str) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        text = str(value or "").strip().upper()
        valid = text in allowed if allowed else bool(re.fullmatch(r"[A-Z0-9_ ]{1,16}", text))
        return text if valid else ""

    return checked


def _date(value: Any) -> str:
    """A date; one of ACR-NEMA, with points, becomes DICOM's."""
    text = re.sub(r"^(\d{4})[.-](\d{2})[.-](\d{2})$", r"\1\2\3", str(value or "").strip())
    try:
        return text if re.fullmatch(r"\d{8}", text, re.ASCII) and datetime.strptime(text, "%Y%m%d") else ""
    except ValueError:
        return ""


def _time(value: Any) -> str:
    text = re.sub(r"^(\d{2}):(\d{2}):(\d{2})", r"\1\2\3", str(value or "").strip())
    return text if re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", text, re.ASCII) else ""


def _age(value: Any) -> str:
    match = re.fullmatch(r"(\d{1,3})([DWMY])", str(value or "").strip().upper(), re.ASCII)
    return f"{int(match[1]):03d}{match[2]}" if match else ""


def _offset(value: Any) -> str:
    text = str(value or "").strip()
    return text if re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", text, re.ASCII) else ""


def _orientation(value: Any) -> list[str] | None:
    if not isinstance(value, MultiValue) or len(value) != 2:
        return None
    sides = [str(side).strip() for side in value]
    return sides if all(side and set(side) <= _SIDES and len(side) <= 3 for side in sides) else None


# Type 2: always present, empty where unknown.
_CHECKS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "PatientName": _person,
        "PatientID": _identifier(64),
        "PatientBirthDate": _date,
        "PatientSex": _code("M", "F", "O"),
        "AccessionNumber": _identifier(16),
        "StudyID": _identifier(16),
        "StudyDate": _date,
        "StudyTime": _time,
        "ReferringPhysicianName": _person,
    }
)
_OPTIONAL: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "IssuerOfPatientID": _identifier(64),
        "PatientAge": _age,
        "StudyDescription": _text(64),
        "TimezoneOffsetFromUTC": _offset,
        "PatientOrientation": _orientation,
        "PresentationLUTShape": _code("IDENTITY", "INVERSE"),
        "BurnedInAnnotation": _code("YES", "NO"),
    }
)


def _identify(header: Dataset, source: Dataset) -> None:
    meta = getattr(source, "file_meta", Dataset())
    header.SOPInstanceUID = (
        _uid(read(source, "SOPInstanceUID"))
        or _uid(read(meta, "MediaStorageSOPInstanceUID"))
        or stable_uid("instance", *(str(header.get(keyword, "")) for keyword in _CHECKS))
    )
    header.SOPClassUID = _image_class(read(source, "SOPClassUID")) or ComputedRadiographyImageStorage
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        setattr(header, keyword, _uid(read(source, keyword)) or stable_uid(keyword, header.SOPInstanceUID))
    header.Modality = _code()(read(source, "Modality")) or "CR"
    header.BodyPartExamined = "CHEST"  # the network reads no other; paired parts would need a laterality


def _uid(value: Any) -> str:
    """Keep components with a leading zero, which some devices write: references must match."""
    text = str(value or "").strip()
    return text if re.fullmatch(r"\d+(\.\d+)+", text, re.ASCII) and len(text) <= 64 else ""


def _image_class(value: Any) -> str:
    uid = UID(str(value or ""))
    known = uid.type == "SOP Class" and not uid.is_retired and "ImageStorage" in uid.keyword
    return str(uid) if known or uid == SecondaryCaptureImageStorage else ""


def _size(header: Dataset, source: Dataset) -> None:
    for keyword in ("Rows", "Columns"):
        value = read(source, keyword)
        setattr(header, keyword, value if isinstance(value, int) and 0 < value < 65536 else 1)
    samples = read(source, "SamplesPerPixel")
    header.SamplesPerPixel = 3 if samples == 3 else 1
    usual = "RGB" if samples == 3 else "MONOCHROME2"
    header.PhotometricInterpretation = _text(16)(read(source, "PhotometricInterpretation")) or usual


def number(value: Any) -> float | None:
    """Return a finite number that fits the 16 characters of a decimal string, else None."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return float(f"{result:.9g}") if math.isfinite(result) and abs(result) < 1e9 else None
