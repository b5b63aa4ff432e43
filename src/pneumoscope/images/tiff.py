"""What the tags of a TIFF say about its values, and what Pillow gets wrong of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# TIFF 6.0: tags, and their values.
_BITS, _PHOTOMETRIC, _MAX, _SMAX, _SMIN, _FORMAT = 258, 262, 281, 341, 340, 339
_UNSIGNED, _SIGNED = 1, 2
_WHITE_IS_ZERO = 0


@dataclass(frozen=True, slots=True)
class TiffFacts:
    """`white`, `black`: values that are stated; `bits`: of a sample, 0 where the image is no TIFF."""

    bits: int = 0
    sample_format: int = _UNSIGNED
    white_is_zero: bool = False
    white: float | None = None
    black: float = 0.0

    @property
    def signed_bytes(self) -> bool:
        """Whether samples are signed 8-bit, which Pillow reads as unsigned."""
        return self.bits == 8 and self.sample_format == _SIGNED

    @property
    def pillow_leaves(self) -> bool:
        """Whether Pillow leaves white at zero: it inverts unsigned samples of 8 bits and fewer itself."""
        return self.bits > 8 or self.signed_bytes

    def restored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values of what Pillow read, in their own type."""
        if self.signed_bytes:
            return values.astype(np.uint8).view(np.int8)
        if self.bits == 32 and self.sample_format == _UNSIGNED and values.dtype == np.int32:
            return values.view(np.uint32)
        if self.bits == 16 and self.sample_format == _SIGNED and values.dtype == np.uint16:
            return values.view(np.int16)
        return values


def tiff_facts(image: Image.Image) -> TiffFacts:
    """Return what the tags of an image say; nothing where it is no TIFF.

    Raises:
        ValueError: its samples are of a kind that cannot be read rightly.
    """
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return TiffFacts()

    def first(tag: int) -> float | None:
        value = tags.get(tag)
        value = value[0] if isinstance(value, tuple) and value else value
        try:
            return None if value in (None, ()) else float(value)
        except (TypeError, ValueError):
            return None

    bits, kind = int(first(_BITS) or 1), int(first(_FORMAT) or _UNSIGNED)
    if bits == 1:  # programs disagree on which is white, and no radiograph has one bit
        raise ValueError("one bit per pixel is a mask, not a radiograph")
    if kind > 3:
        raise ValueError(f"its sample format {kind} is neither whole nor fractional numbers")
    white = first(_SMAX)
    if white is None and bits > 8:
        white = first(_MAX)
    if white is None and 8 < bits < 16:
        white = 2.0**bits - 1
    black = first(_SMIN) or 0.0
    plain = bits <= 8 and kind != _SIGNED  # Pillow spreads them over 0..255
    if plain or white is None or white <= black:
        white, black = None, 0.0
    return TiffFacts(bits, kind, first(_PHOTOMETRIC) == _WHITE_IS_ZERO, white, black)
