"""Items of a sequence that refer to an object (DICOM PS3.3, table 10-11)."""

from __future__ import annotations

from pydicom.dataset import Dataset


def reference(sop_class: str, uid: str, failure: int | None = None) -> Dataset:
    """Return an item with an object's class and UID, and where it failed the reason (PS3.3, C.14)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    if failure is not None:
        item.FailureReason = failure
    return item
