"""The stored values of a DICOM image: decoded, its bits put right, by whatever decoder they came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images import elements, lossless
from pneumoscope.images.syntax import codec_of, stream_of, syntax_of

_PIXELS = 0x7FE00010
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_GREYS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_OVERSHOOT = 16  # a part of the range by which a lossy decoder may pass the ends


@dataclass(frozen=True, slots=True)
class Layout:
    """How pixels are stored, after what is missing or contradictory was put right (PS3.3, C.7.6.3)."""

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: int
    syntax: Any


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """`values`: [H, W], or [H, W, 3] of colours, of `bits` bits; `raw`: the same before their bits were put right."""

    values: NDArray[Any]
    raw: NDArray[Any]
    layout: Layout
    bits: int


def layout_of(dataset: Any, notes: list[str]) -> Layout:
    """Return how a header says that its pixels are stored; what is damaged is replaced, with a note.

    Raises:
        ValueError: there are no rows or columns, or bits or samples that nothing can be stored in.
    """
    syntax = syntax_of(dataset, notes)
    rows, columns = elements.whole(dataset, "Rows") or 0, elements.whole(dataset, "Columns") or 0
    photometric = elements.text(dataset, "PhotometricInterpretation").replace("_", " ")
    photometric = photometric.replace(" ", "_") if photometric.startswith("YBR") else photometric
    said = elements.whole(dataset, "SamplesPerPixel")
    samples = said or (3 if photometric in _COLOURS else 1)
    if said is None:
        notes.append(f"SamplesPerPixel is missing: {samples} by the photometric interpretation")
    if photometric not in (_COLOURS if samples == 3 else _GREYS):
        taken = "RGB" if samples == 3 else "MONOCHROME2"
        notes.append(f"photometric interpretation {photometric[:32] or 'missing'}: taken as {taken}")
        photometric = taken
    if samples not in (1, 3):
        raise ValueError(f"{samples} samples per pixel are neither grey nor colours")
    size = 8 * len(dataset.PixelData) // max(1, rows * columns * samples)
    allocated = elements.whole(dataset, "BitsAllocated")
    if allocated is None:
        allocated = 8 if (size if not syntax.is_encapsulated else 16) < 16 else 16
        notes.append(f"BitsAllocated is missing: taken as {allocated}")
    stored, high = elements.whole(dataset, "BitsStored"), elements.whole(dataset, "HighBit")
    if stored is None or not 1 <= stored <= allocated:
        stored = high + 1 if stored is None and high is not None and 0 < high < allocated else allocated
        notes.append(f"BitsStored is missing or impossible: taken as {stored}")
    if high is None or not stored - 1 <= high < allocated:
        high = stored - 1
        notes.append(f"HighBit is missing or impossible: taken as {high}")
    sign = elements.whole(dataset, "PixelRepresentation")
    if sign not in (0, 1):
        notes.append("PixelRepresentation is missing or damaged: taken as unsigned")
    planar = elements.whole(dataset, "PlanarConfiguration")
    return Layout(
        rows,
        columns,
        samples,
        photometric,
        allocated,
        stored,
        high,
        sign == 1,
        planar if planar in (0, 1) else 0,
        syntax,
    )


def read_stored(dataset: Any, notes: list[str]) -> Stored:
    """Decode the pixels of a DICOM object of one frame; to be called within `dicom_errors`.

    Raises:
        ValueError: they are damaged, or of a transfer syntax that nothing here decodes.
    """
    layout = layout_of(dataset, notes)
    if layout.syntax.is_deflated:
        _check_end(dataset)
    raw, precision = _decoded(dataset, layout)
    bits = min(layout.stored, precision)
    values = _aligned(raw, layout, precision, bits, signed=layout.signed and layout.samples == 1)
    return Stored(values, raw, layout, bits)


def _decoded(dataset: Any, layout: Layout) -> tuple[NDArray[Any], int]:
    """Return what the decoder gives, unsigned and with all its bits, and how many bits it has."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax, allocated, precision = layout.syntax, layout.allocated, layout.allocated
    photometric, stream = layout.photometric, b""
    if syntax.is_encapsulated:
        stream = stream_of(dataset)
        codec = codec_of(stream)
        precision = codec.precision or allocated
        allocated = (8 if precision <= 8 else 16) if codec.precision else allocated
    elif photometric == "YBR_FULL_422" and 8 * len(dataset.PixelData) >= 3 * layout.rows * layout.columns * allocated:
        photometric = "YBR_FULL"  # not subsampled, whatever it says
    options: dict[str, Any] = {"planar_configuration": layout.planar} if layout.samples == 3 else {}
    with _panic_is_damage():
        decoder: Any = get_decoder(syntax)  # its types know no data apart from a data set
        pixels, _ = decoder.as_array(
            dataset.PixelData,
            rows=layout.rows,
            columns=layout.columns,
            number_of_frames=1,
            samples_per_pixel=layout.samples,
            photometric_interpretation=photometric,
            bits_allocated=allocated,
            bits_stored=min(precision, allocated),
            pixel_representation=0,
            pixel_keyword="PixelData",
            pixel_vr=_vr(dataset),
            # Bits and sign are put right below, alike for all decoders; the check of lossless streams needs them raw.
            correct_unused_bits=False,
            apply_j2k_sign_correction=False,
            apply_jls_sign_correction=False,
            allow_excess_frames=False,
            decoding_plugin=_decoder(syntax) if syntax.is_encapsulated else "",
            **options,
        )
    if syntax.is_encapsulated and (reason := lossless.checked(syntax, stream, pixels)) is not None:
        raise ValueError(reason)
    return np.asarray(pixels), precision


def _vr(dataset: Any) -> str:
    vr = getattr(dataset.get_item(_PIXELS), "VR", None)
    return vr if vr in ("OB", "OW") else "OW"


def _aligned(raw: NDArray[Any], layout: Layout, precision: int, bits: int, *, signed: bool) -> NDArray[Any]:
    """Shift by High Bit, cut to Bits Stored, and extend the sign (PS3.5, 8.1.1), whatever the other bits hold.

    A codec may have dropped the bits below or above: `precision` is how many it has.
    """
    shift = max(0, min(layout.high + 1, precision) - bits)
    wide: NDArray[Any] = raw.astype(np.int64 if raw.dtype.itemsize > 2 else np.int32)
    values: NDArray[Any] = np.right_shift(wide, shift)
    top = 1 << bits
    cut: NDArray[Any] = np.bitwise_and(values, top - 1)
    if signed:
        half = top >> 1
        cut = np.where(cut >= half, cut - top, cut)
    if layout.syntax.is_encapsulated and _lossy(layout.syntax):
        cut = cut if signed else _clipped(values, cut, top)
    return cut


def _clipped(values: NDArray[Any], cut: NDArray[Any], top: int) -> NDArray[Any]:
    """A lossy decoder may pass the end by a little: that is clipped, where cutting its bits would wrap it around."""
    over = values >= top
    if not over.any() or (values[over] >= top + top // _OVERSHOOT).any():
        return cut
    return np.where(over, top - 1, cut)


def _lossy(syntax: Any) -> bool:
    from pydicom import uid

    return syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K)


def _decoder(syntax: Any) -> str:
    """Return which plugin of pydicom decodes: one each, since fallbacks would differ by machine.

    GDCM ends the process on damaged JPEG; pylibjpeg decodes damaged JPEG-LS to noise without a word.
    """
    from pydicom.uid import JPEGLSLossless, JPEGLSNearLossless

    return "pyjpegls" if syntax in (JPEGLSLossless, JPEGLSNearLossless) else "pylibjpeg"


def _check_end(dataset: Any) -> None:
    """Raise `ValueError` where anything but signatures and padding follows the pixels (PS3.5, 7.1 and 8.1).

    Deflate has no checksum here, and damaged, it mostly gives another number of bytes.
    """
    tags = list(dataset.keys())  # as they came
    if any(tag.group < 0xFFFA for tag in tags[tags.index(_PIXELS) + 1 :]):
        raise ValueError("the data set goes on after its pixels")


@contextmanager
def _panic_is_damage() -> Iterator[None]:
    """Turn a panic of the decoder of RLE, written in Rust, into a `ValueError`; it is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError("the decoder gave up") from error
