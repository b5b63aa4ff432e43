"""The form in which the journal stores embeddings."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

from pneumoscope.errors import DataError

EMBEDDING = 1  # version of the form


def pack_embedding(values: Sequence[float] | None) -> dict[str, Any] | None:
    """Return numbers as the journal stores them: base64 of float16, little-endian, with the version of this form."""
    if values is None:
        return None
    packed = base64.b64encode(struct.pack(f"<{len(values)}e", *values)).decode("ascii")
    return {"version": EMBEDDING, "float16": packed}


def unpack_embedding(packed: Any) -> tuple[float, ...] | None:
    """Return the numbers of a stored embedding; raises `DataError` where it is of another version."""
    if packed is None:
        return None
    if isinstance(packed, list):  # journals of format 1
        return tuple(map(float, packed))
    try:
        if packed["version"] != EMBEDDING:
            raise DataError(f"an embedding of version {packed['version']} cannot be read", remedy="update Pneumoscope")
        data = base64.b64decode(packed["float16"], validate=True)
        return struct.unpack(f"<{len(data) // 2}e", data)
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise DataError(f"an embedding cannot be read ({error})", remedy="look at who wrote this journal") from error
