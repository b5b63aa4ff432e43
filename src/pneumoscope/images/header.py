"""DICOM files up to their pixels: the dataset, and its header."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from pneumoscope.errors import ImageError
from pneumoscope.images.content import Content, is_bare
from pneumoscope.images.decoded import BOMB, MAX_PIXELS, image_errors

MAX_INFLATED = 4 * MAX_PIXELS  # bytes of a deflated data set
OWN = "Pneumoscope"  # manufacturer or model of the objects that the gateway makes
_LONGEST = 256  # characters kept of any text; a header may hold megabytes
_IDENTITY = frozenset({"patient_id", "issuer", "patient_name", "birth_date", "accession"})
_UIDS = frozenset({"sop_uid", "study_uid", "series_uid"})


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one DICOM object; a missing or damaged element is None, a UID then empty.

    Texts are at most 256 characters, without NUL, of several values the first; numbers are finite. `acquired_on`: day
    of the image, YYYYMMDD, else of the study. `exposure_index`, its target and deviation as in IEC 62494-1. `lossy`:
    the pixels were once compressed with loss.
    """

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
    acquired_on: str | None = None
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
    exposure_index: float | None = None
    target_exposure_index: float | None = None
    deviation_index: float | None = None
    detector_type: str | None = None
    detector_id: str | None = None
    software: str | None = None
    grid: str | None = None
    pixel_spacing_mm: float | None = None
    source_distance_mm: float | None = None
    lossy: bool | None = None

    def facts(self) -> dict[str, Any]:
        """Return all but identity and UIDs, as JSON knows it."""
        left_out = _IDENTITY | _UIDS
        return {name: getattr(self, name) for name in self.__slots__ if name not in left_out}


@contextmanager
def dicom_errors(path: str | Path, what: str, remedy: str) -> Iterator[None]:
    """Do as `image_errors`, also for what pydicom raises; elements are decoded, and fail, when first asked for."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    with image_errors(path, what, remedy):
        try:
            yield
        except (BytesLengthException, InvalidDicomError) as error:
            raise ValueError(error) from error


def read_header(path: Path | Content) -> Any:
    """Read a DICOM file without its pixels; raises `ImageError` where it is not DICOM.

    Its elements are decoded when they are asked for: do that within `dicom_errors`.
    """
    return read_dataset(path, pixels=False)


def read_dataset(path: Path | Content, *, pixels: bool = True) -> Any:
    """Read a DICOM file, its pixels not decoded yet; raises `ImageError` where it is not DICOM.

    A data set without preamble, meta information or transfer syntax is read as its first bytes suggest.
    """
    import pydicom

    content = path if isinstance(path, Content) else Content.of(path)
    with dicom_errors(content.name, "is not a readable DICOM file", "export it again"):
        _check_inflated(content)
        with content.open() as stream:
            return pydicom.dcmread(stream, stop_before_pixels=not pixels, force=is_bare(content.head()))


def _check_inflated(content: Content) -> None:
    """Raise `ImageError` where a deflated data set (PS3.5, A.5), which pydicom inflates whole, is a bomb."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with content.open() as stream:
        read_preamble(stream, force=is_bare(content.head()))
        meta = _read_file_meta_info(stream)  # leaves the stream where the data set begins
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflating, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := stream.read(1 << 16):
            while chunk:
                size += len(inflating.decompress(chunk, 1 << 20))
                chunk = inflating.unconsumed_tail
                if size > MAX_INFLATED:
                    raise ImageError("holds a deflated data set that is too large", path=content.name, remedy=BOMB)


def read(path: Path) -> Header:
    """Read the header of a DICOM file.

    Raises:
        ImageError: the file is no DICOM, or does not say which object it is.
    """
    header = header_of(read_header(path))
    uids = {
        "SOPInstanceUID": header.sop_uid,
        "SOPClassUID": header.sop_class,
        "StudyInstanceUID": header.study_uid,
        "SeriesInstanceUID": header.series_uid,
    }
    if missing := [name for name, uid in uids.items() if not uid or len(uid) > 64]:
        raise ImageError(f"the DICOM object has no valid {missing[0]}", path=path, remedy="export it again")
    return header


def header_of(dataset: Any) -> Header:
    """Return the header of a dataset."""

    def text(keyword: str) -> str | None:
        return text_of(dataset, keyword)

    def number(keyword: str) -> float | None:
        try:
            value = float(text(keyword) or "nan")
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    def whole(keyword: str) -> int | None:
        value = number(keyword)
        return None if value is None else int(value)

    descriptions = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription", "StudyDescription")
    described = [value for name in descriptions if (value := text(name))]
    makers = (text("Manufacturer"), text("ManufacturerModelName"))
    return Header(
        sop_uid=text("SOPInstanceUID") or "",
        sop_class=text("SOPClassUID") or "",
        study_uid=text("StudyInstanceUID") or "",
        series_uid=text("SeriesInstanceUID") or "",
        transfer_syntax=text_of(getattr(dataset, "file_meta", {}), "TransferSyntaxUID") or "",
        own=any(maker and maker.startswith(OWN) for maker in makers),
        patient_id=text("PatientID"),
        issuer=text("IssuerOfPatientID"),
        patient_name=text("PatientName"),
        birth_date=text("PatientBirthDate"),
        accession=text("AccessionNumber"),
        modality=_upper(text("Modality")),
        view=_upper(text("ViewPosition")),
        body_part=_upper(text("BodyPartExamined")),
        description="; ".join(described)[:_LONGEST] or None,
        intent=_upper(text("PresentationIntentType")),
        priority=_upper(text("RequestedProcedurePriority")),
        age_years=_age(text),
        sex=_upper(text("PatientSex")),
        study_date=text("StudyDate"),
        acquired_on=text("AcquisitionDate") or text("StudyDate"),
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
        exposure_index=number("ExposureIndex"),
        target_exposure_index=number("TargetExposureIndex"),
        deviation_index=number("DeviationIndex"),
        detector_type=_upper(text("DetectorType")),
        detector_id=text("DetectorID"),
        software=text("SoftwareVersions"),
        grid=_upper(text("Grid")),
        pixel_spacing_mm=number("ImagerPixelSpacing") or number("PixelSpacing"),
        source_distance_mm=number("DistanceSourceToDetector"),
        lossy={"00": False, "01": True}.get(text("LossyImageCompression") or ""),
    )


def text_of(dataset: Any, keyword: str) -> str | None:
    """Return an element as text of at most 256 characters, its first value; None where it is missing or damaged."""
    try:
        with dicom_errors(Path(), "an element is damaged", "export it again"):
            return _clean(dataset.get(keyword))
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


def age_in_years(text: str | None) -> float | None:
    """Turn a DICOM age string into years (PS3.5, 6.2: nnnD, nnnW, nnnM, nnnY), None where it is not one.

    >>> age_in_years("018M")
    1.5
    """
    if not text or len(text) < 2 or not text[:-1].isdecimal():
        return None
    unit = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}.get(text[-1].upper(), math.nan)
    years = int(text[:-1]) / unit
    return years if math.isfinite(years) else None


def _age(text: Any) -> float | None:
    """Age at the study: Patient's Age, else from the dates; None where neither makes sense."""
    stated = age_in_years(text("PatientAge") or "")
    if stated is not None:
        return stated
    born, studied = _date(text("PatientBirthDate")), _date(text("StudyDate"))
    if born is None or studied is None or studied < born:
        return None
    years = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    part = round((studied - born).days / 365.25 - years, 2)  # of the year until the next birthday, which rounds to none
    return years + min(0.99, max(0.0, part))


def _date(text: str | None) -> date | None:
    try:
        return datetime.strptime(text or "", "%Y%m%d").date()
    except ValueError:
        return None
