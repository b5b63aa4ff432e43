"""What all DICOM objects of a result share: identity, equipment, encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from io import BytesIO
from typing import Any

from highdicom.base import SOPClass
from pydicom import Dataset
from pydicom.valuerep import DA, TM

from pneumoscope.serving.results import words
from pneumoscope.serving.results.cleaned_header import clean_header
from pneumoscope.serving.results.finding import Encoded, Finding
from pneumoscope.serving.results.uids import stable_uid, stable_uuid
from pneumoscope.version import __version__

MANUFACTURER = "Pneumoscope"
CREATOR = "Pneumoscope^"  # a name of one component ends with a caret
_COPIED = (
    "PatientName",
    "ReferringPhysicianName",
    "IssuerOfPatientID",
    "PatientAge",
    "StudyDescription",
    "TimezoneOffsetFromUTC",
    "BodyPartExamined",
)


@dataclass(frozen=True)
class Case:
    """A finding, the cleaned header of its radiograph, and the time that its results carry."""

    finding: Finding
    made: datetime

    @cached_property
    def header(self) -> Dataset:
        """The header, all values valid, as `clean_header` returns it."""
        return clean_header(self.finding.source)

    @cached_property
    def evidence(self) -> Dataset:
        """The header without names, for highdicom, which logs odd names; `finish` adds them."""
        nameless = deepcopy(self.header)
        nameless.PatientName = nameless.ReferringPhysicianName = ""
        return nameless

    @cached_property
    def bundle_sha256(self) -> str:
        """Identity of the bundle."""
        return str(self.finding.bundle.get("sha256", ""))

    @property
    def device_uid(self) -> str:
        """Identity of the observer: this software with this bundle."""
        return stable_uid("device", __version__, self.bundle_sha256)

    def uid(self, *parts: str) -> str:
        """Return a UID that follows from radiograph, bundle and `parts`."""
        return stable_uid(str(self.header.SOPInstanceUID), self.bundle_sha256, *parts)

    def uuid(self, *parts: str) -> str:
        """Return the same as a UUID."""
        return str(stable_uuid(str(self.header.SOPInstanceUID), self.bundle_sha256, *parts))

    def arguments(self, kind: str, number: int, description: str) -> Mapping[str, Any]:
        """Return the arguments of highdicom's constructors: a new series, and the equipment.

        `number`: of the series; high, so that viewers show the radiograph first.
        """
        bundle = self.finding.bundle
        return {
            "series_instance_uid": self.uid(kind, "series"),
            "series_number": number,
            "sop_instance_uid": self.uid(kind),
            "instance_number": 1,
            "series_description": description,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": str(bundle.get("name", ""))[:64] or "bundle",
            "software_versions": [f"Pneumoscope {__version__}", f"bundle {self.bundle_sha256[:12]}"],
            "device_serial_number": self.bundle_sha256[:64] or "none",
            "content_qualification": "RESEARCH",
            "content_date": self._dated.date(),
            "content_time": self._dated.time(),
            "series_date": self._dated.date(),
            "series_time": self._dated.time(),
        }

    @property
    def _dated(self) -> datetime:
        """`made` in the time zone of the header, if both have one; to the second."""
        offset = self.header.get("TimezoneOffsetFromUTC")
        moment = self.made
        if offset and moment.tzinfo is not None:
            moment = moment.astimezone(datetime.strptime(offset, "%z").tzinfo)
        return moment.replace(microsecond=0, tzinfo=None)

    def finish(self, kind: str, dataset: SOPClass) -> Encoded:
        """Copy values that highdicom leaves out, replace its clock by `made`, and return the encoded object."""
        for keyword in _COPIED:
            if keyword in self.header:
                dataset[keyword] = deepcopy(self.header[keyword])  # a new element: highdicom shares those of evidence
        date, time = DA(self._dated.date()), TM(self._dated.time())
        for prefix in ("InstanceCreation", "PresentationCreation"):
            if f"{prefix}Date" in dataset:
                setattr(dataset, f"{prefix}Date", date)
                setattr(dataset, f"{prefix}Time", time)
        for equipment in dataset.get("ContributingEquipmentSequence", []):
            equipment.ContributionDateTime = f"{self._dated:%Y%m%d%H%M%S}"
        if "DateOfSecondaryCapture" in dataset:
            dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = date, time
        dataset.SpecificCharacterSet = "ISO_IR 192"
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return Encoded(kind, str(dataset.SOPInstanceUID), str(dataset.SOPClassUID), buffer.getvalue(), ".dcm")

    def sentences(self) -> Sequence[str]:
        """Return the result in words."""
        return words.sentences(self.finding)
