"""How a DICOM object is encoded, also where it says so wrongly or not at all; what its code stream says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pneumoscope.images import elements

_ITEM = b"\xfe\xff\x00\xe0"  # the item with which encapsulated pixels begin (PS3.5, A.4)
_PIXELS = 0x7FE00010
_SOI, _J2K = b"\xff\xd8", b"\xff\x4f\xff\x51"
_BOX = b"\0\0\0\x0cjP  "
_JPEG_LS = 0xF7
_STANDALONE = (0x01, *range(0xD0, 0xDA))  # markers of JPEG without a length


@dataclass(frozen=True, slots=True)
class Codec:
    """`kind`: the marker of the frame of a JPEG or JPEG-LS, `j2k`, or empty; `precision`: bits per sample, or 0."""

    kind: int | str = ""
    precision: int = 0


def syntax_of(dataset: Any, notes: list[str]) -> Any:
    """Return the transfer syntax of a data set: the one it names, else the one that its bytes show, with a note.

    Raises:
        ValueError: it is named, and nothing here decodes it.
    """
    from pydicom import uid

    known, encapsulated = named_syntax(dataset), _is_encapsulated(dataset)
    if known and (known.is_encapsulated == encapsulated or (not encapsulated and not _is_whole(dataset))):
        return known
    if not encapsulated:
        implicit, little = getattr(dataset, "original_encoding", (True, True))
        taken = uid.ExplicitVRBigEndian if little is False else uid.ExplicitVRLittleEndian
        taken = uid.ImplicitVRLittleEndian if implicit and little is not False else taken
    else:
        taken = _by_stream(codec_of(stream_of(dataset)))
    what = f"pixels are not {known.name}, as is said" if known else "the transfer syntax is missing or unknown"
    notes.append(f"{what}: read as {taken.name}")
    return taken


def named_syntax(dataset: Any) -> Any:
    """Return the transfer syntax that a data set names, None where it is missing or none of the standard's."""
    from pydicom.uid import UID

    meta = getattr(dataset, "file_meta", None)
    named = UID(str((meta.get("TransferSyntaxUID") if meta is not None else "") or "").strip())
    return named if named and not named.is_private and named.is_transfer_syntax else None


def _is_encapsulated(dataset: Any) -> bool:
    return bytes(dataset.PixelData[:4]) == _ITEM


def _is_whole(dataset: Any) -> bool:
    """Say whether the pixels have as many bytes as they have uncompressed."""
    sizes = [elements.whole(dataset, name) for name in ("Rows", "Columns", "BitsAllocated")]
    rows, columns, bits = (size or 0 for size in sizes)
    expected = rows * columns * bits * (elements.whole(dataset, "SamplesPerPixel") or 1) // 8
    return bool(expected) and len(dataset.PixelData) in (expected, expected + expected % 2)


def _by_stream(codec: Codec) -> Any:
    from pydicom import uid

    return {
        0xC0: uid.JPEGBaseline8Bit,
        0xC1: uid.JPEGExtended12Bit,
        0xC3: uid.JPEGLossless,
        _JPEG_LS: uid.JPEGLSLossless,
        "j2k": uid.JPEG2000,
    }.get(codec.kind, uid.RLELossless)


def stream_of(dataset: Any) -> bytes:
    """Return the code stream of the only frame of encapsulated pixels."""
    from pydicom.encaps import get_frame

    return bytes(get_frame(dataset.PixelData, 0, number_of_frames=1))


def codec_of(stream: bytes) -> Codec:
    """Return what a code stream says of itself; nothing where it is no JPEG, JPEG-LS or JPEG 2000."""
    if stream.startswith(_BOX):
        start = stream.find(_J2K)
        stream = stream[start:] if start > 0 else stream
    if stream.startswith(_J2K):  # ISO 15444-1, A.5.1: Ssiz of the first component
        return Codec("j2k", (stream[42] & 0x7F) + 1 if len(stream) > 42 else 0)
    if not stream.startswith(_SOI):
        return Codec()
    at = 2
    while at + 9 < len(stream):
        if stream[at] != 0xFF:
            return Codec()
        marker = stream[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker == _JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return Codec(marker, stream[at + 4])
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4])
    return Codec()
