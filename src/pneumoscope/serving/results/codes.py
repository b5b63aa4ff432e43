"""Coded concepts of the results.

Sources: DICOM PS3.16 (DCM), SNOMED CT concepts in DICOM's licence (SCT), UCUM.
"""

from __future__ import annotations

from pydicom.sr.coding import Code

FINDING = Code("121071", "DCM", "Finding")
PNEUMONIA = Code("233604007", "SCT", "Pneumonia")
PRESENT = Code("52101004", "SCT", "Present")
NOT_DONE = Code("373121007", "SCT", "Test not done")
PROBABILITY = Code("122157", "DCM", "Probability")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
PERCENT = Code("%", "UCUM", "Percent")
OPACITY = Code("112033", "DCM", "Abnormal opacity")
LUNG = Code("39607008", "SCT", "Lung")
CHEST_RADIOGRAPHY = Code("399208008", "SCT", "Plain chest X-ray")
COMMENT = Code("121106", "DCM", "Comment")
REPORT = Code("126000", "DCM", "Imaging Measurement Report")
SOFTWARE = Code("123110", "DCM", "Artificial Intelligence")
STUDY_UID = Code("110180", "DCM", "Study Instance UID")
DEVICE = Code("121007", "DCM", "Device")
ENGLISH = Code("en", "RFC5646", "English")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
