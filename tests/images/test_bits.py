"""Bits of stored pixels: every layout by every decoder gives the values that the file was made of."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless, generate_uid
from scipy.stats import spearmanr
from tests.support.dicom_files import encoded, image_object

from pneumoscope.images import read_image, stored_pixels

RNG = np.random.default_rng(0)
Y, X = np.mgrid[:48, :64]
WAVES = (np.sin(X / 20) + np.cos(Y / 15) + 2) / 4
# Bits Stored, High Bit, Bits Allocated
LAYOUTS = [(12, 11, 16), (12, 15, 16), (12, 13, 16), (10, 9, 16), (14, 13, 16), (16, 15, 16), (8, 7, 8), (8, 7, 16)]
DECODERS = {"native": None, "RLE": RLELossless, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}


def made(
    layout: tuple[int, int, int], *, signed: bool, dirty: bool, photometric: str = "MONOCHROME2"
) -> tuple[Any, Any]:
    """Return values and an object that stores them, the other bits random or zero."""
    stored, high, allocated = layout
    noise = RNG.normal(0, 0.01, WAVES.shape)
    values = np.rint(np.clip(WAVES + noise, 0, 1) * (2**stored - 1)).astype(np.int64) - (
        2 ** (stored - 1) if signed else 0
    )
    shift = high + 1 - stored
    used = ((1 << stored) - 1) << shift
    raw = (values & ((1 << stored) - 1)) << shift
    if dirty:
        raw |= RNG.integers(0, 1 << allocated, raw.shape) & ((1 << allocated) - 1) & ~used
    low, high_value = int(values.min()), int(values.max())
    window = {"WindowCenter": str((low + high_value + 1) / 2), "WindowWidth": str(high_value - low + 1)}
    made_of = raw.astype(np.uint16 if allocated == 16 else np.uint8)
    elements = {"BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed), **window}
    return values, image_object(made_of, photometric, **elements)


def as_whole(ds: Any) -> Any:
    """Return the object as its encoder has to see it, so that no bit is touched."""
    whole = copy.deepcopy(ds)
    whole.BitsStored, whole.HighBit, whole.PixelRepresentation = ds.BitsAllocated, ds.BitsAllocated - 1, 0
    return whole


def check(file: Path, values: Any, *, inverse: bool = False) -> None:
    """Compare with the source: Spearman, and the largest difference."""
    expected = (values - values.min()) / (values.max() - values.min())
    expected = 1 - expected if inverse else expected
    pixels = read_image(file).pixels
    assert spearmanr(pixels.ravel(), expected.ravel()).statistic > 0.99999
    assert np.abs(pixels - expected).max() < 1e-5
    assert (stored_pixels(pydicom.dcmread(file)) == values).all()


@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_layout_by_every_decoder(
    tmp_path: Path, decoder: str, layout: tuple[int, int, int], signed: bool, dirty: bool
) -> None:
    photometric = "MONOCHROME1" if layout[0] == 10 else "MONOCHROME2"
    values, ds = made(layout, signed=signed, dirty=dirty, photometric=photometric)
    if (syntax := DECODERS[decoder]) is not None:
        whole = as_whole(ds)
        whole.compress(syntax, generate_instance_uid=False)
        whole.BitsStored, whole.HighBit, whole.PixelRepresentation = ds.BitsStored, ds.HighBit, ds.PixelRepresentation
        ds = whole
    (tmp_path / "a.dcm").write_bytes(encoded(ds))
    check(tmp_path / "a.dcm", values, inverse=photometric == "MONOCHROME1")


@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("layout", LAYOUTS[:6], ids=str)
@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14"])
def test_intact_jpeg_lossless_is_never_refused(
    tmp_path: Path, kind: str, layout: tuple[int, int, int], signed: bool, dirty: bool
) -> None:
    values, ds = made(layout, signed=signed, dirty=dirty)
    (tmp_path / "plain.dcm").write_bytes(encoded(as_whole(ds)))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(tmp_path / "plain.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    relabelled(tmp_path / "a.dcm", ds)
    check(tmp_path / "a.dcm", values)


def relabelled(file: Path, ds: Any) -> None:
    stored = pydicom.dcmread(file)
    stored.BitsStored, stored.HighBit, stored.PixelRepresentation = ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    stored.save_as(file)


@pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="dcmtk is not installed; sh scripts/pacs/install")
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[3], LAYOUTS[5]], ids=str)
@pytest.mark.parametrize(
    ("make", "take"),
    [
        (["dcmcjpeg", "+e1", "+un"], ["dcmdjpeg"]),
        (["dcmcjpeg", "+el", "+sv", "6", "+un"], ["dcmdjpeg"]),
        (["dcmcjpls", "+el"], ["dcmdjpls"]),
        (["dcmcjpls", "+en", "+md", "2"], ["dcmdjpls"]),
    ],
    ids=lambda tool: " ".join(tool[:2]),
)
def test_dcmtk_decodes_the_same(
    tmp_path: Path, make: list[str], take: list[str], layout: tuple[int, int, int], signed: bool
) -> None:
    values, ds = made(layout, signed=signed, dirty=False)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID = generate_uid(), generate_uid(), "made-up"
    (tmp_path / "plain.dcm").write_bytes(encoded(ds))
    done = subprocess.run([*make, "plain.dcm", "a.dcm"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{make[0]} does not encode it: {done.stderr.strip().splitlines()[-1]}")
    subprocess.run([*take, "a.dcm", "again.dcm"], cwd=tmp_path, check=True, capture_output=True)
    again = np.frombuffer(pydicom.dcmread(tmp_path / "again.dcm").PixelData, "<i2" if signed else "<u2")
    found = stored_pixels(pydicom.dcmread(tmp_path / "a.dcm"))
    stored = layout[0]
    by_dcmtk = again.reshape(found.shape).astype(np.int64) & ((1 << stored) - 1)
    if signed:
        by_dcmtk = np.where(by_dcmtk >> (stored - 1), by_dcmtk - (1 << stored), by_dcmtk)
    assert np.abs(found - by_dcmtk).max() == 0
    assert np.abs(found - values).max() <= (2 if "+en" in make else 0)


@pytest.mark.parametrize("samples", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=str)
def test_colours_by_every_decoder(tmp_path: Path, syntax: UID | None, samples: str) -> None:
    colours = np.stack([np.rint(255 * WAVES), np.rint(255 * WAVES[::-1]), np.rint(127 * WAVES)], axis=-1).astype(
        np.uint8
    )
    if samples == "YBR_FULL":
        colours[..., 1:] = 120 + colours[..., 1:] // 16  # nearly grey: all of it lies within RGB
        colours[..., 0] = 40 + colours[..., 0] // 2
    ds = image_object(colours, samples)
    if syntax is not None:
        ds.compress(syntax, generate_instance_uid=False)
    (tmp_path / "a.dcm").write_bytes(encoded(ds))
    image = read_image(tmp_path / "a.dcm")
    expected = colours[..., 0] if samples == "YBR_FULL" else colours @ [0.299, 0.587, 0.114]
    assert np.abs(image.pixels * 255 - expected).max() < 2.5


def test_a_lossy_decoder_that_passes_the_end_does_not_wrap_around(tmp_path: Path) -> None:
    values = np.where(RNG.random((64, 64)) < 0.5, 4095, 4090).astype(np.uint16)
    ds = image_object(values, BitsStored=12, HighBit=11, WindowCenter="2048", WindowWidth="4096")
    whole = as_whole(ds)
    whole.compress(UID("1.2.840.10008.1.2.4.81"), jls_error=6, generate_instance_uid=False)
    whole.BitsStored, whole.HighBit = 12, 11
    (tmp_path / "a.dcm").write_bytes(encoded(whole))
    assert read_image(tmp_path / "a.dcm").pixels.min() > 0.99


# --- without transfer syntax, meta information or preamble -----------------------------------------------


def bare(ds: Any, *, implicit: bool, meta: str) -> bytes:
    """Return a file that lacks its transfer syntax, its meta information, or the preamble as well."""
    import io

    source = copy.deepcopy(ds)
    buffer = io.BytesIO()
    del source.file_meta
    source.save_as(buffer, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    data = buffer.getvalue()
    if meta == "none":
        return data
    head = bytes(128) + b"DICM"
    if meta == "no syntax":
        head += b"\x02\0\0\0UL\x04\0\x0e\0\0\0" + b"\x02\0\x01\0OB\0\0\x02\0\0\0\0\x01"
    return head + data


@pytest.mark.parametrize("meta", ["none", "preamble only", "no syntax"])
@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
@pytest.mark.parametrize("name", ["a.dcm", "IM0001", "a.jpg"])
def test_a_missing_transfer_syntax_is_guessed(tmp_path: Path, name: str, implicit: bool, meta: str) -> None:
    values, ds = made((12, 11, 16), signed=False, dirty=True)
    (tmp_path / name).write_bytes(bare(ds, implicit=implicit, meta=meta))
    image = read_image(tmp_path / name)
    expected = (values - values.min()) / (values.max() - values.min())
    assert np.abs(image.pixels - expected).max() < 1e-5
    assert any("transfer syntax is missing" in note for note in image.notes)
    from pneumoscope.images.find import expand

    assert expand([str(tmp_path)]) == [str(tmp_path / name)]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=str)
def test_a_missing_compressed_syntax_is_guessed_from_the_stream(tmp_path: Path, syntax: UID) -> None:
    values, ds = made((16, 15, 16), signed=False, dirty=False)
    ds.compress(syntax, generate_instance_uid=False)
    data, size = encoded(ds), len(syntax) + len(syntax) % 2
    said, plain = (str(uid).encode().ljust(size, b"\0") for uid in (syntax, pydicom.uid.ExplicitVRLittleEndian))
    assert said in data
    (tmp_path / "a.dcm").write_bytes(data.replace(said, plain))
    image = read_image(tmp_path / "a.dcm")
    expected = (values - values.min()) / (values.max() - values.min())
    assert np.abs(image.pixels - expected).max() < 1e-5
    assert any("pixels are not Explicit VR Little Endian, as is said" in note for note in image.notes)


def test_uncompressed_pixels_that_are_said_to_be_compressed(tmp_path: Path) -> None:
    values, ds = made((16, 15, 16), signed=False, dirty=False)
    ds["PixelData"].VR = "OW"
    data = encoded(ds)
    said = str(JPEGLosslessSV1).encode().ljust(22, b"\0")
    at = data.index(b"1.2.840.10008.1.2.1\0")
    head = data[: at - 2] + len(said).to_bytes(2, "little") + said + data[at + 20 :]
    (tmp_path / "a.dcm").write_bytes(head)
    image = read_image(tmp_path / "a.dcm")
    assert spearmanr(image.pixels.ravel(), values.ravel()).statistic > 0.9999
