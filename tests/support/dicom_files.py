"""Radiographs as DICOM files of every transfer syntax, whole and damaged: what the gateway's benchmarks send."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid as syntaxes
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, generate_uid
from scripts.pacs.radiographs import radiograph

SIDE = 256
# dcmtk's options; there is no encoder of JPEG for pydicom.
_DCMCJPEG: Mapping[UID, str] = MappingProxyType(
    {
        syntaxes.JPEGBaseline8Bit: "+eb",
        syntaxes.JPEGExtended12Bit: "+ee",
        syntaxes.JPEGLossless: "+el",
        syntaxes.JPEGLosslessSV1: "+e1",
    }
)
_PLAIN = (
    syntaxes.ImplicitVRLittleEndian,
    syntaxes.ExplicitVRLittleEndian,
    syntaxes.ExplicitVRBigEndian,
    syntaxes.DeflatedExplicitVRLittleEndian,
)
_COMPRESSED = (
    syntaxes.RLELossless,
    syntaxes.JPEGLSLossless,
    syntaxes.JPEGLSNearLossless,
    syntaxes.JPEG2000Lossless,
    syntaxes.JPEG2000,
)


def available() -> tuple[UID, ...]:
    """Return the transfer syntaxes that files can be made of here: those of JPEG need dcmtk."""
    return (*_PLAIN, *_COMPRESSED, *(_DCMCJPEG if shutil.which("dcmcjpeg") else ()))


def chest(side: int = SIDE, **changes: Any) -> pydicom.Dataset:
    """Return a radiograph with UIDs of its own; a change to None removes the attribute."""
    own = {key: generate_uid() for key in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")}
    made = radiograph(side, **{**own, **changes})
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def eight_bit(side: int = SIDE, **changes: Any) -> pydicom.Dataset:
    """Return the radiograph with 8 bits a pixel."""
    values = np.frombuffer(radiograph(side).PixelData, "<u2") >> 4
    return chest(side, **{
        "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "WindowCenter": 128, "WindowWidth": 256,
        "PixelData": values.astype(np.uint8).tobytes(), **changes,
    })  # fmt: skip


def image_object(pixels: NDArray[Any] | None, photometric: str = "MONOCHROME2", **elements: Any) -> pydicom.Dataset:
    """Return the least DICOM object that holds `pixels`: unsigned or signed, 2-D grey, or 3-D colour or frames."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntaxes.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = syntaxes.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    ds = pydicom.Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    if pixels is not None:
        colour = pixels.ndim == 3 and pixels.shape[2] == 3
        ds.Rows, ds.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
        if pixels.ndim == 3 and not colour:
            ds.NumberOfFrames = pixels.shape[0]
        if colour:
            ds.PlanarConfiguration = 0
        ds.SamplesPerPixel, ds.PhotometricInterpretation = (3 if colour else 1), photometric
        ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
        ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
        ds.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(ds, name, value)
    return ds


def encoded(source: pydicom.Dataset, **options: Any) -> bytes:
    """Return a data set as a file."""
    buffer = io.BytesIO()
    source.save_as(buffer, enforce_file_format=True, **options)
    return buffer.getvalue()


def file_of(syntax: UID, **changes: Any) -> bytes:
    """Return the radiograph as a file of a transfer syntax."""
    if syntax in _DCMCJPEG:
        source = eight_bit(**changes) if syntax == syntaxes.JPEGBaseline8Bit else chest(**changes)
        return _by_dcmtk(encoded(source), _DCMCJPEG[syntax])
    source = chest(**changes)
    if syntax in _COMPRESSED:
        options = {"j2k_psnr": [50.0]} if syntax == syntaxes.JPEG2000 else {}
        options |= {"jls_error": 2} if syntax == syntaxes.JPEGLSNearLossless else {}
        source.compress(syntax, generate_instance_uid=False, **options)
        return encoded(source)
    if syntax == syntaxes.ExplicitVRBigEndian:
        source.PixelData = np.frombuffer(source.PixelData, "<u2").astype(">u2").tobytes()
    source.file_meta.TransferSyntaxUID = syntax
    source["PixelData"].VR = "OW"
    return encoded(source)


def _by_dcmtk(data: bytes, option: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        plain, made = Path(folder) / "plain.dcm", Path(folder) / "made.dcm"
        plain.write_bytes(data)
        subprocess.run(["dcmcjpeg", option, "+un", str(plain), str(made)], check=True, capture_output=True)
        return made.read_bytes()


def labelled(syntax: UID, stream: bytes) -> bytes:
    """Return a file that says it is of a transfer syntax and holds `stream` as its only frame."""
    source = chest()
    source.file_meta.TransferSyntaxUID = syntax
    source.PixelData = encapsulate([stream])
    source["PixelData"].VR = "OB"
    source["PixelData"].is_undefined_length = True
    return encoded(source)


def pixels_at(data: bytes) -> int:
    """Return where the pixels of a file begin that is not deflated."""
    for tag in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        if (at := data.rfind(tag)) > 0:
            return at + 12
    return len(data) // 2


def meta_of(data: bytes) -> FileMetaDataset:
    """Return a file's meta information, and read nothing else: what follows may be damaged."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as stream:
        stream.write(data)
        stream.flush()
        return read_file_meta_info(stream.name)


def garbled(data: bytes, count: int = 100, seed: int = 0) -> bytes:
    """Return a file of which so many bytes, in the middle half of its pixels, are random."""
    chance = np.random.default_rng(seed)
    first = pixels_at(data)
    size = len(data) - first
    changed = bytearray(data)
    for at in chance.integers(first + size // 4, first + 3 * size // 4, count):
        changed[at] = int(chance.integers(256))
    return bytes(changed)


@cache
def _seed(syntax: UID) -> bytes:
    """Return one file of a transfer syntax; made once, since OpenJPEG's encoder, used often, ends the process."""
    return file_of(syntax)


def _fresh(data: bytes) -> bytes:
    """Return a file with UIDs of its own."""
    source = pydicom.dcmread(io.BytesIO(data))
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(source, name, generate_uid())
    source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
    return encoded(source)


SEEDS: Mapping[str, Callable[[], bytes]] = MappingProxyType(
    {UID(uid).name: (lambda uid=uid: _fresh(_seed(uid))) for uid in available()}  # type: ignore[misc]
)
