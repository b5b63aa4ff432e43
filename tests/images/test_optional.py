"""Elements that a DICOM image can do without: damaged, contradictory or unusual, they never cost or change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from tests.support.dicom_files import encoded, image_object

from pneumoscope.images import read_image
from pneumoscope.serving.web.pixels import rendition

SIDE = 40
Y, X = np.mgrid[:SIDE, :SIDE]
VALUES = (np.add.outer(np.arange(SIDE), np.arange(SIDE)) * 52).astype(np.uint16)  # 0..4056
TWELVE = {"BitsStored": 12, "HighBit": 11}
WINDOW = {"WindowCenter": "2048", "WindowWidth": "4096"}
SHOWN = VALUES / 4095


def written(folder: Path, ds: Dataset, *raw: tuple[bytes, bytes]) -> Path:
    """Write an object, bytes of it replaced by as many others: what pydicom refuses to write."""
    data = encoded(ds)
    for old, new in raw:
        assert data.count(old) == 1
        assert len(old) == len(new)
        data = data.replace(old, new)
    (folder / "a.dcm").write_bytes(data)
    return folder / "a.dcm"


def stretched(values: Any) -> Any:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1)


def text(tag: bytes, vr: bytes, value: bytes) -> bytes:
    return tag + vr + len(value).to_bytes(2, "little") + value


# --- damaged ----------------------------------------------------------------------------------------------

CENTRE, WIDTH = b"\x28\0\x50\x10", b"\x28\0\x51\x10"
INTERCEPT, SLOPE = b"\x28\0\x52\x10", b"\x28\0\x53\x10"
SAMPLES, PHOTOMETRIC = b"\x28\0\x02\0", b"\x28\0\x04\0"


@pytest.mark.parametrize(
    "value", [b"2000,0", b"AUTO  ", b"nan   ", b"1e999 ", b"\0\0\0\0\0\0", b"\xff\xfe\xfdabc", b"--1   "]
)
@pytest.mark.parametrize("tag", [CENTRE, WIDTH], ids=["centre", "width"])
def test_a_window_that_is_no_number(tmp_path: Path, tag: bytes, value: bytes) -> None:
    ds = image_object(VALUES, **TWELVE, WindowCenter="1000.5", WindowWidth="2000.5")
    old = text(tag, b"DS", b"1000.5" if tag == CENTRE else b"2000.5")
    image = read_image(written(tmp_path, ds, (old, text(tag, b"DS", value))))
    np.testing.assert_allclose(image.pixels, stretched(VALUES), atol=1e-6)
    assert any("no window in the header" in note for note in image.notes)


@pytest.mark.parametrize("value", [b"2,0   ", b"x     ", b"      ", b"0     ", b"nan   "])
def test_a_rescale_that_is_no_number(tmp_path: Path, value: bytes) -> None:
    ds = image_object(VALUES, **TWELVE, **WINDOW, RescaleSlope="1.0000", RescaleIntercept="0")
    image = read_image(written(tmp_path, ds, (text(SLOPE, b"DS", b"1.0000"), text(SLOPE, b"DS", value))))
    np.testing.assert_allclose(image.pixels, SHOWN, atol=1e-6)
    assert any(note.startswith("RescaleSlope is damaged or empty") for note in image.notes)


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_an_empty_rescale(tmp_path: Path, name: str) -> None:
    elements = {"RescaleSlope": "1", "RescaleIntercept": "0", name: ""}
    image = read_image(written(tmp_path, image_object(VALUES, **TWELVE, **WINDOW, **elements)))
    np.testing.assert_allclose(image.pixels, SHOWN, atol=1e-6)
    assert f"{name} is damaged or empty, and was left out" in image.notes


def lut(descriptor: list[int] | None, data: Any, vr: str = "US") -> Dataset:
    item = Dataset()
    if descriptor is not None:
        item.add_new(0x00283002, "US", descriptor)
    if data is not None:
        item.add_new(0x00283006, vr, data)
    return item


BROKEN = {
    "no items": [],
    "empty item": [Dataset()],
    "empty descriptor": [lut([], [1, 2, 3])],
    "short descriptor": [lut([4096, 0], list(range(4096)))],
    "no descriptor": [lut(None, [1, 2, 3])],
    "no data": [lut([4096, 0, 12], None)],
    "empty data": [lut([4096, 0, 12], b"", "OW")],
}


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_table_is_left_out(tmp_path: Path, broken: str, sequence: str) -> None:
    ds = image_object(VALUES, **TWELVE, **WINDOW, **{sequence: BROKEN[broken]})
    image = read_image(written(tmp_path, ds))
    np.testing.assert_allclose(image.pixels, SHOWN, atol=1e-6)
    assert any("is damaged or empty, and was left out" in note for note in image.notes)


def test_the_first_usable_table_counts(tmp_path: Path) -> None:
    good = lut([4096, 0, 12], list(range(4095, -1, -1)))
    image = read_image(written(tmp_path, image_object(VALUES, **TWELVE, VOILUTSequence=[Dataset(), good])))
    np.testing.assert_allclose(image.pixels, 1 - SHOWN, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_modality_table_of_any_depth(tmp_path: Path, bits: int) -> None:
    entries = np.arange(4096) * (2**bits - 1) // 4095
    ds = image_object(VALUES, **TWELVE, ModalityLUTSequence=[lut([4096, 0, bits], entries.tolist())])
    image = read_image(written(tmp_path, ds))
    np.testing.assert_allclose(image.pixels, stretched(entries[VALUES]), atol=1e-6)


@pytest.mark.parametrize("value", [b"Monochrome2 ", b"monochrome2 ", b"MONOCHROME  ", b"            ", b"GREY        "])
def test_a_photometric_interpretation_in_other_letters(tmp_path: Path, value: bytes) -> None:
    ds = image_object(VALUES, **TWELVE, **WINDOW)
    old = text(PHOTOMETRIC, b"CS", b"MONOCHROME2 ")
    image = read_image(written(tmp_path, ds, (old, text(PHOTOMETRIC, b"CS", value))))
    np.testing.assert_allclose(image.pixels, SHOWN, atol=1e-6)


def test_a_photometric_interpretation_in_small_letters_inverts(tmp_path: Path) -> None:
    ds = image_object(VALUES, "MONOCHROME1", **TWELVE, **WINDOW)
    raw = (text(PHOTOMETRIC, b"CS", b"MONOCHROME1 "), text(PHOTOMETRIC, b"CS", b"monochrome1 "))
    np.testing.assert_allclose(read_image(written(tmp_path, ds, raw)).pixels, 1 - SHOWN, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"],
)
def test_a_missing_element_is_replaced_with_a_note(tmp_path: Path, name: str) -> None:
    ds = image_object(VALUES, **TWELVE, **WINDOW)
    ds["PixelData"].VR = "OW"
    delattr(ds, name)
    image = read_image(written(tmp_path, ds))
    np.testing.assert_allclose(image.pixels, SHOWN, atol=1e-6)
    assert any("missing" in note for note in image.notes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NumberOfFrames", b"ONE "),
        ("PixelAspectRatio", b"x\\y "),
        ("PixelSpacing", b"0\\0 "),
        ("PixelSpacing", b"0.2 "),
        ("VOILUTFunction", b"LOG "),
        ("PresentationLUTShape", b"ODD "),
        ("WindowWidth", b"    "),
    ],
)
def test_other_damage_costs_nothing(tmp_path: Path, name: str, value: bytes) -> None:
    good = {"NumberOfFrames": "1234", "PixelAspectRatio": "11\\1", "PixelSpacing": "11\\1", "WindowWidth": "4096"}
    ds = image_object(
        VALUES,
        **TWELVE,
        **{
            **WINDOW,
            name: good.get(name, "ABCD").split("\\") if "\\" in good.get(name, "") else good.get(name, "ABCD"),
        },
    )
    old = encoded(ds)
    tag = pydicom.datadict.tag_for_keyword(name)
    at = old.index(tag.to_bytes(4, "big")[1::-1] + tag.to_bytes(4, "big")[3:1:-1]) + 8
    (tmp_path / "a.dcm").write_bytes(old[:at] + value + old[at + 4 :])
    image = read_image(tmp_path / "a.dcm")
    np.testing.assert_allclose(image.pixels, stretched(VALUES) if name == "WindowWidth" else SHOWN, atol=1e-6)


def test_no_remedy_asks_for_what_is_there(tmp_path: Path) -> None:
    ds = image_object(VALUES, **TWELVE, **WINDOW)
    ds.PixelData = ds.PixelData[:100]
    from pneumoscope.errors import ImageError

    with pytest.raises(ImageError) as caught:
        read_image(written(tmp_path, ds))
    assert "uncompressed" not in str(caught.value)


# --- padding ----------------------------------------------------------------------------------------------

INSIDE = (X > 8) & (Y > 8)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, WINDOW], ids=["percentiles", "window"])
@pytest.mark.parametrize(
    ("signed", "value", "limit"),
    [(False, 4095, None), (False, 0, None), (False, 60000, None), (True, -2000, None), (True, -2048, None),
     (False, 3900, 4095), (False, 4095, 3900), (True, -32768, None)],
)  # fmt: skip
def test_padding_is_black_and_counts_for_nothing(
    tmp_path: Path, signed: bool, value: int, limit: int | None, window: dict[str, str], photometric: str
) -> None:
    anatomy = (VALUES // 4 + 1000).astype(np.int64) - (2048 if signed else 0)
    values = np.where(INSIDE, anatomy, value)
    if limit is not None:
        values[0] = (value + limit) // 2
    ds = image_object(values.astype(np.int16 if signed else np.uint16), photometric, **TWELVE, **window)
    ds.add_new(0x00280120, "SS" if signed else "US", value)
    if limit is not None:
        ds.add_new(0x00280121, "US", limit)
    if signed and window:
        ds.WindowCenter = "0"
    if not -2048 <= value <= 4095:
        ds.BitsStored, ds.HighBit = 16, 15
    path = written(tmp_path, ds)
    image = read_image(path)
    plain = np.clip((anatomy + (2048 if signed else 0)) / 4095, 0, 1) if window else stretched(anatomy[INSIDE])
    expected = 1 - plain if photometric == "MONOCHROME1" else plain
    assert not image.pixels[~INSIDE].any()
    np.testing.assert_allclose(image.pixels[INSIDE], expected[INSIDE] if window else expected, atol=2e-3)
    shown = rendition(path)
    assert not shown.values[~INSIDE].any()
    inside = shown.values[INSIDE].astype(float)
    assert inside.min() <= 1
    assert inside.max() >= 65534, "the anatomy has all of the viewer's range"


def test_a_padding_value_in_implicit_vr(tmp_path: Path) -> None:
    values = np.where(INSIDE, VALUES // 4 + 1000, 4095).astype(np.uint16)
    ds = image_object(values, **TWELVE, PixelPaddingValue=4095)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    image = read_image(written(tmp_path, ds))
    assert not image.pixels[~INSIDE].any()
    np.testing.assert_allclose(image.pixels[INSIDE], stretched(values[INSIDE]), atol=1e-6)


@pytest.mark.parametrize("value", [7, b""])
def test_padding_that_is_everything_or_nothing(tmp_path: Path, value: Any) -> None:
    ds = image_object(np.where(X > 20, 7, 7).astype(np.uint16) if value == 7 else VALUES, **TWELVE, **WINDOW)
    ds.add_new(0x00280120, "US", value if value == 7 else None)
    image = read_image(written(tmp_path, ds))
    assert any("padding" in note.lower() for note in image.notes)
    np.testing.assert_allclose(image.pixels, (7 if value == 7 else VALUES) / 4095, atol=1e-4)


# --- tables narrower or wider than they say ---------------------------------------------------------------


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
@pytest.mark.parametrize(("said", "used"), [(16, 8), (16, 12), (16, 10), (12, 8), (8, 16), (10, 12), (12, 12)])
def test_a_voi_table_is_scaled_by_what_it_uses(tmp_path: Path, said: int, used: int, implicit: bool) -> None:
    entries = np.arange(4096) * (2**used - 1) // 4095
    ds = image_object(VALUES, **TWELVE, VOILUTSequence=[lut([4096, 0, said], entries.astype("<u2").tobytes(), "OW")])
    if implicit:
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    image = read_image(written(tmp_path, ds))
    np.testing.assert_allclose(image.pixels, entries[VALUES] / (2**used - 1), atol=1e-6)
    assert any(f"says {said} bits" in note for note in image.notes) == (said != used)


def test_a_voi_table_of_signed_values(tmp_path: Path) -> None:
    values = (VALUES.astype(np.int32) - 2048).astype(np.int16)
    ds = image_object(values, VOILUTSequence=[lut([4096, 65536 - 2048, 12], list(range(4096)))])
    np.testing.assert_allclose(read_image(written(tmp_path, ds)).pixels, SHOWN, atol=1e-6)


@pytest.mark.parametrize(
    ("said", "used", "packed"), [(16, 16, False), (16, 8, False), (16, 8, True), (8, 8, True), (8, 16, False)]
)
def test_a_palette_is_scaled_by_what_it_uses(tmp_path: Path, said: int, used: int, packed: bool) -> None:
    index = (VALUES >> 4).astype(np.uint8)
    ramp = np.arange(256) * (2**used - 1) // 255
    elements: dict[str, Any] = {}
    for name, column in (("Red", ramp), ("Green", ramp // 2), ("Blue", ramp // 4)):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, said]
        elements[f"{name}PaletteColorLookupTableData"] = column.astype("u1" if packed else "<u2").tobytes()
    image = read_image(written(tmp_path, image_object(index, "PALETTE COLOR", **elements)))
    colours = np.stack([ramp, ramp // 2, ramp // 4], axis=-1) / (2**used - 1)
    np.testing.assert_allclose(image.pixels, (colours @ [0.299, 0.587, 0.114])[index], atol=1e-5)


# --- pixels that are not square ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({"PixelAspectRatio": ["2", "1"]}, (80, 40)),
        ({"PixelAspectRatio": ["1", "2"]}, (40, 80)),
        ({"PixelSpacing": ["0.3", "0.2"]}, (60, 40)),
        ({"ImagerPixelSpacing": ["0.1", "0.15"]}, (40, 60)),
        ({"ImagerPixelSpacing": ["0.1", "0.1"], "PixelAspectRatio": ["2", "1"]}, (40, 40)),
        ({"PixelSpacing": ["0.143", "0.143"]}, (40, 40)),
        ({"PixelAspectRatio": ["100", "1"]}, (40, 40)),
    ],
)
def test_pixels_become_square_for_reader_and_viewer(
    tmp_path: Path, elements: dict[str, list[str]], shape: tuple[int, int]
) -> None:
    path = written(tmp_path, image_object(VALUES, **TWELVE, **WINDOW, **elements))
    image = read_image(path)
    assert image.pixels.shape == rendition(path).values.shape == shape
    assert (image.width, image.height) == (SIDE, SIDE), "the size is that of the stored image"
    if {*shape} != {40, 60}:
        middle = image.pixels.reshape(40, shape[0] // 40, 40, shape[1] // 40).mean(axis=(1, 3))
        assert np.abs(middle - SHOWN)[1:-1, 1:-1].max() < 0.01
