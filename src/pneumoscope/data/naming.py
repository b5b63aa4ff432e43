"""What the file names of the Kermany radiographs say: the patient and the kind of pneumonia.

Patient numbers are given out anew for each subtype and each series of normals, so the group is
(prefix or subtype, number), never the number alone.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from pneumoscope.records import BACTERIAL, VIRAL

_PNEUMONIA = re.compile(r"^person(\d+)_(bacteria|virus)_")
_NORMAL = re.compile(r"^((?:NORMAL2-)?IM)-(\d+)")
_SUBTYPES = {"bacteria": BACTERIAL, "virus": VIRAL}


def patient_from_name(name: str) -> str | None:
    """Return the patient key of a Kermany file name, or None where the name follows no known rule.

    >>> patient_from_name("person17_virus_48.jpeg"), patient_from_name("NORMAL2-IM-0587-0001-0002.jpeg")
    ('virus-person17', 'NORMAL2-IM-0587')
    """
    stem = PurePath(name).name
    if match := _PNEUMONIA.match(stem):
        return f"{match[2]}-person{int(match[1])}"
    if match := _NORMAL.match(stem):
        return f"{match[1]}-{int(match[2]):04d}"
    return None


def subtype_from_name(name: str) -> str | None:
    """Return `bacterial`, `viral`, or None where the name has neither.

    >>> subtype_from_name("person17_virus_48.jpeg")
    'viral'
    """
    match = _PNEUMONIA.match(PurePath(name).name)
    return _SUBTYPES[match[2]] if match else None
