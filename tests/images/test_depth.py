"""Raster files whose samples are of another kind or depth than usual: right, or refused."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from pneumoscope.errors import ImageError, ImageUnavailableError
from pneumoscope.images import read_image

SIDE = 32
RAMP = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) / (SIDE * SIDE - 1)


def of_bits(bits: int) -> Any:
    return np.rint(RAMP * (2**bits - 1)).astype(np.uint16)


def png(values: Any, significant: int | None) -> bytes:
    info = PngImagePlugin.PngInfo()
    if significant is not None:
        info.add(b"sBIT", bytes([significant]))
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def close(path: Path, expected: Any, most: float = 1e-6) -> None:
    np.testing.assert_allclose(read_image(path).pixels, expected, atol=most)


@pytest.mark.parametrize("bits", [10, 11, 12, 14, 15, 16])
@pytest.mark.parametrize("dim", [1.0, 0.3])
def test_the_significant_bits_of_a_png(tmp_path: Path, bits: int, dim: float) -> None:
    """Both ways of writing them: as they were, or spread over all 16 bits as the standard says."""
    values = np.rint(of_bits(bits) * dim).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(values, bits))
    close(tmp_path / "a.png", values / (2**bits - 1))
    spread = (values << (16 - bits)).astype(np.uint16)
    if spread.max() >= 2**bits:
        (tmp_path / "a.png").write_bytes(png(spread, bits))
        close(tmp_path / "a.png", spread / 65535)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("dim", [1.0, 0.3])
def test_the_greatest_value_of_a_tiff(tmp_path: Path, bits: int, dim: float) -> None:
    values = np.rint(of_bits(bits) * dim).astype(np.uint16)
    for tag in (281, 341):
        tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(tag, 3, 1, 2**bits - 1, True)])
        close(tmp_path / "a.tif", values / (2**bits - 1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.rint(RAMP * 255 - 128).astype(np.int8), RAMP),
        (np.rint(RAMP * 65535 - 32768).astype(np.int16), RAMP),
        (np.rint(RAMP * 1e9 - 5e8).astype(np.int32), RAMP),
        (np.rint(RAMP * 4e9).astype(np.uint32), RAMP),
        (RAMP.astype(np.float32), RAMP),
        (RAMP.astype(np.float64), None),
        ((RAMP / 2).astype(np.float32), RAMP / 2),
        ((RAMP * 255).astype(np.float32), RAMP),
        ((RAMP * 3000 - 1000).astype(np.float32), RAMP),
        (RAMP.astype(np.float16), None),
        (RAMP > 0.5, None),
        (RAMP.astype(np.complex64), None),
    ],
    ids=lambda values: str(getattr(values, "dtype", "")),
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_of_any_type_is_right_or_refused(
    tmp_path: Path, values: Any, expected: Any, compression: str | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression)
    assert (tifffile.imread(tmp_path / "a.tif") == values).all()
    if expected is None:
        with pytest.raises(ImageError, match="the image is damaged"):
            read_image(tmp_path / "a.tif")
        return
    close(tmp_path / "a.tif", expected, most=4e-3 if values.dtype == np.int8 else 1e-5)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_deep_tiff_in_which_zero_is_white(tmp_path: Path, bits: int) -> None:
    values = of_bits(bits)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    close(tmp_path / "a.tif", 1 - values / (2**bits - 1))


@pytest.mark.parametrize("bits", [8, 12, 14, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colours_are_right_or_refused(tmp_path: Path, channels: int, bits: int) -> None:
    """Pillow reads the upper eight bits of these: with few bits in use hardly any is left."""
    values = of_bits(bits)
    samples = np.stack([values] * channels, axis=-1)
    if channels in (2, 4):
        samples[..., -1] = 65535
    kind = {2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)

    head = SIDE.to_bytes(4) * 2 + bytes([16, kind, 0, 0, 0])
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    if bits == 16:
        close(tmp_path / "a.png", values / 65535, most=5e-3)
    else:
        with pytest.raises(ImageError, match="few of their bits"):
            read_image(tmp_path / "a.png")


@pytest.mark.parametrize("largest", [255, 1023, 4095, 65535])
def test_a_portable_greymap_has_the_depth_it_states(tmp_path: Path, largest: int) -> None:
    values = np.rint(RAMP * largest * 0.3).astype(">u2" if largest > 255 else np.uint8)
    (tmp_path / "a.pgm").write_bytes(f"P5 {SIDE} {SIDE} {largest}\n".encode() + values.tobytes())
    close(tmp_path / "a.pgm", values.astype(float) / largest, most=2e-5)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("dpi", [(200, 100), (100, 200), (96, 96)])
def test_the_resolution_of_a_raster_file_makes_pixels_square(tmp_path: Path, kind: str, dpi: tuple[int, int]) -> None:
    image = Image.fromarray((RAMP * 255).astype(np.uint8))
    image.save(tmp_path / "a", kind, dpi=dpi)
    height = SIDE * 2 if dpi[0] > dpi[1] else SIDE  # twice as many pixels an inch across: each half as wide
    width = SIDE * 2 if dpi[1] > dpi[0] else SIDE
    assert read_image(tmp_path / "a").pixels.shape == (height, width)


def test_messages_say_what_is_wrong(tmp_path: Path) -> None:
    data = bytearray(png(of_bits(8).astype(np.uint8), None))
    data[30] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="the checksum of its header is wrong"):
        read_image(tmp_path / "a.png")
    data[30] ^= 1
    data[-20] ^= 1  # of the pixels
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        read_image(tmp_path / "a.png")
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(ImageError, match="begins like a TIFF image"):
        read_image(tmp_path / "a.tif")


def test_no_permission_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png(of_bits(8).astype(np.uint8), None))

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "a.png")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ImageUnavailableError, match=r"cannot be read \(permission denied\); check who may read"):
        read_image(tmp_path / "a.png")
