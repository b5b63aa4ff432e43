"""Whether decoded JPEG lossless pixels are those of their stream, which the decoders hardly check.

A decoder that loses its position in a damaged stream goes on to the last pixel and returns noise. Those pixels, encoded
again, take more or fewer bits than the stream has. Only the count is needed, so nothing is encoded. Damage that changes
values and no lengths stays undetected. Source: ITU-T T.81, annexes B, C and H.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SOF3, _DHT, _SOS, _DRI = 0xC3, 0xC4, 0xDA, 0xDD
_SCAN_END = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
_Rows = NDArray[np.int32]
# H.1.2.1, table H.1: from the neighbours at the left, above, and between them.
_PREDICTORS: Mapping[int, Callable[[_Rows, _Rows, _Rows], _Rows]] = MappingProxyType(
    {
        1: lambda left, above, corner: left,
        2: lambda left, above, corner: above,
        3: lambda left, above, corner: corner,
        4: lambda left, above, corner: left + above - corner,
        5: lambda left, above, corner: left + ((above - corner) >> 1),
        6: lambda left, above, corner: above + ((left - corner) >> 1),
        7: lambda left, above, corner: (left + above) >> 1,
    }
)
_CATEGORIES = 17  # H.1.2.2, table H.2: of differences, by how many bits their magnitude has


@dataclass(frozen=True, slots=True)
class _Stream:
    """`lengths`: bits of the Huffman code of each category, 0 where it has none. `parts`: bytes between restarts."""

    precision: int
    components: int
    predictor: int
    shift: int
    interval: int
    lengths: NDArray[np.int64]
    parts: tuple[int, ...]


def checked(syntax: Any, stream: bytes, pixels: NDArray[Any]) -> str | None:
    """Return the `fault` of pixels decoded from a stream, None without, and of other transfer syntaxes.

    `pixels`: as the decoder gave them, with all bits of the stream: where some were cut off, another count results.

    Raises:
        LookupError, ValueError: the markers of the stream are damaged.
    """
    from pydicom.uid import JPEGLossless, JPEGLosslessSV1

    return fault(stream, pixels) if syntax in (JPEGLossless, JPEGLosslessSV1) else None


def fault(stream: bytes, pixels: NDArray[Any]) -> str | None:
    """Return why decoded pixels cannot be those of a stream; None where they can.

    Args:
        stream: one JPEG image, process 14.
        pixels: decoded, [H, W]; colour images are not judged.

    Raises:
        LookupError, ValueError: the markers of the stream are damaged.
    """
    jpeg = _parse(stream)
    if jpeg.components != 1 or pixels.ndim != 2:
        return None
    values = (pixels.astype(np.int32) & ((1 << jpeg.precision) - 1)) >> jpeg.shift
    rows = jpeg.interval // values.shape[1] or values.shape[0]
    blocks = [values[top : top + rows] for top in range(0, values.shape[0], rows)]
    if len(blocks) != len(jpeg.parts):
        return f"the stream has {len(jpeg.parts)} parts between its restart markers, not {len(blocks)}"
    first = 1 << (jpeg.precision - jpeg.shift - 1)
    for block, size in zip(blocks, jpeg.parts, strict=True):
        counts = np.bincount(_categories(block, jpeg.predictor, first).ravel(), minlength=_CATEGORIES)
        if (counts[jpeg.lengths == 0] > 0).any():
            return "the stream has no code for a difference between decoded pixels"
        extra = np.arange(_CATEGORIES) % 16  # category 16 has one value, so no further bits
        needed = int(counts @ (jpeg.lengths + extra))
        if not 0 <= 8 * size - needed <= 8:  # filled up to a whole byte
            return f"the stream has {8 * size} bits of pixels, but {needed} were decoded"
    return None


def _categories(values: NDArray[np.int32], predictor: int, first: int) -> NDArray[np.int64]:
    """Return the category of each difference between a pixel and its prediction (H.1.2.1)."""
    guess = np.empty_like(values)
    guess[0, 0] = first
    guess[0, 1:] = values[0, :-1]
    guess[1:, 0] = values[:-1, 0]
    left, above, corner = values[1:, :-1], values[:-1, 1:], values[:-1, :-1]
    guess[1:, 1:] = _PREDICTORS[predictor](left, above, corner)
    difference = ((values - guess + 0x8000) & 0xFFFF) - 0x8000  # modulo 65536
    table = np.frexp(np.arange(0x8001))[1].astype(np.int64)  # bits of a magnitude
    return np.asarray(table[np.abs(difference)])


def _parse(stream: bytes) -> _Stream:
    """Read the markers up to the scan, and measure the scan."""
    at, interval = 2, 0
    precision, components = 0, 0
    tables: dict[int, NDArray[np.int64]] = {}
    while True:
        at = stream.index(b"\xff", at)
        while stream[at] == 0xFF:
            at += 1
        marker, size = stream[at], int.from_bytes(stream[at + 1 : at + 3])
        segment = stream[at + 3 : at + 1 + size]
        at += 1 + size
        if marker == _SOF3:
            precision, components = segment[0], segment[5]
        elif marker == _DHT:
            tables |= _huffman(segment)
        elif marker == _DRI:
            interval = int.from_bytes(segment[:2])
        elif marker == _SOS:
            break
    if not precision:
        raise ValueError("the stream is not JPEG lossless")
    end = _SCAN_END.search(stream, at)
    if end is None:
        raise ValueError("the stream of pixels has no end")
    parts = [len(part) - part.count(b"\xff\x00") for part in _RESTART.split(stream[at : end.start()])]
    count = segment[0]
    predictor, shift = segment[1 + 2 * count], segment[3 + 2 * count] & 15
    return _Stream(precision, components, predictor, shift, interval, tables[segment[2] >> 4], tuple(parts))


def _huffman(segment: bytes) -> Mapping[int, NDArray[np.int64]]:
    """Return, by the tables' numbers, how long the codes of the categories are (B.2.4.2)."""
    tables = {}
    while segment:
        counts, symbols = segment[1:17], segment[17:]
        lengths = np.zeros(_CATEGORIES, np.int64)
        at = 0
        for length, count in enumerate(counts, start=1):
            for symbol in symbols[at : at + count]:
                lengths[symbol] = length
            at += count
        tables[segment[0] & 15] = lengths
        segment = symbols[at:]
    return tables
