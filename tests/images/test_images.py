"""The reader: every file becomes grey values in 0..1 or an error that names it."""

from __future__ import annotations

import errno
import io
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_voi_lut
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)
from tests.support.dicom_files import encoded as file_bytes
from tests.support.dicom_files import image_object as make
from tests.support.raster_files import png_of

from pneumoscope.errors import ImageError, ImageUnavailableError
from pneumoscope.images import MAX_PIXELS, check_size, image_errors, in_archive, is_dicom, read_header, read_image

SIDE = 32
GREY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)
RGB = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


# --- raster files: what is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.tiff", "a.jp2"])
def test_eight_bits(tmp_path: Path, name: str) -> None:
    options = {"irreversible": False} if name.endswith("jp2") else {}
    Image.fromarray(GREY).save(tmp_path / name, **options)
    image = read_image(tmp_path / name)
    assert image.pixels.dtype == np.float32
    np.testing.assert_allclose(image.pixels * 255, GREY, atol=1e-4)
    assert (image.width, image.height, image.mode, image.notes) == (SIDE, SIDE, "L", ())


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_depth(tmp_path: Path, name: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert (np.round(image.pixels.astype(np.float64) * 65535) == DEEP).all()
    assert image.notes == ("16 bits per pixel, read at full depth",)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("bits", [8, 9, 10, 11, 12, 13, 14, 15])
def test_few_bits_in_a_deep_file_are_spread(tmp_path: Path, name: str, bits: int) -> None:
    values = (DEEP >> (16 - bits)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    image = read_image(tmp_path / name)
    np.testing.assert_allclose(image.pixels, values / (2**bits - 1), atol=1e-6)
    assert f"{2**bits - 1} is taken as white ({bits} bits)" in image.notes[-1]


def test_a_deep_tiff_in_which_zero_is_white(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    Image.fromarray(DEEP).save(tmp_path / "a.tif", tiffinfo=tags)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(image.pixels, 1 - DEEP / 65535, atol=1e-6)
    assert "inverted (0 is white in this TIFF)" in image.notes


def test_floating_point_is_scaled_by_its_range(tmp_path: Path) -> None:
    values = np.linspace(-3, 5, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    Image.fromarray(values).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_allclose(image.pixels, (values + 3) / 8, atol=1e-6)
    assert image.notes == ("how deep the pixels are is not stated: scaled by their own range, -3 to 5",)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="not finite"):
        read_image(tmp_path / "a.tif")


def test_a_constant_floating_point_image_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE), 700, np.float32)).save(tmp_path / "a.tif")
    assert not read_image(tmp_path / "a.tif").pixels.any()


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_colour_becomes_luma(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(RGB)
    if mode == "P":
        picture = picture.quantize(64)
    expected = np.asarray(picture.convert("RGB")) @ LUMA
    picture.convert(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert np.abs(image.pixels * 255 - expected).max() < 1
    assert image.notes == (), "an opaque alpha channel changes nothing"


def test_transparent_pixels_are_put_on_black(tmp_path: Path) -> None:
    alpha = np.tri(SIDE, dtype=np.uint8) * 255
    alpha[:, 0] = 128
    for mode, opaque in (("RGBA", Image.fromarray(RGB)), ("LA", Image.fromarray(GREY))):
        base = np.asarray(opaque.convert("RGB")) @ LUMA
        picture = opaque.convert(mode)
        picture.putalpha(Image.fromarray(alpha))
        picture.save(tmp_path / "a.png")
        image = read_image(tmp_path / "a.png")
        assert np.abs(image.pixels * 255 - base * (alpha / 255)).max() < 2, mode
        assert image.notes == ("transparent pixels were put on black",)


def test_a_transparent_palette(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY).convert("P")
    picture.save(tmp_path / "a.png", transparency=bytes([0]) + bytes([255]) * 255)
    assert read_image(tmp_path / "a.png").notes == ("transparent pixels were put on black",)


def test_cmyk(tmp_path: Path) -> None:
    Image.fromarray(GREY).resize((256, 256)).convert("CMYK").save(tmp_path / "a.jpeg", quality=95)
    image = read_image(tmp_path / "a.jpeg")
    expected = np.asarray(Image.fromarray(GREY).resize((256, 256)))
    assert np.abs(image.pixels * 255 - expected).mean() < 2
    assert image.notes == ("CMYK colours were turned into grey",)


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = GREY[:, :20]
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert (np.round(image.pixels * 255) == TURNS[orientation](stored)).all()
    assert (image.width, image.height) == (20, SIDE), "the size is that of the stored image"
    assert image.notes == (() if orientation == 1 else ("turned as the EXIF orientation says",))


def test_a_large_jpeg_may_be_decoded_smaller(tmp_path: Path) -> None:
    smooth = Image.fromarray(GREY).resize((800, 640), Image.Resampling.BICUBIC)
    smooth.convert("RGB").save(tmp_path / "a.jpeg", quality=95)
    whole, part = read_image(tmp_path / "a.jpeg"), read_image(tmp_path / "a.jpeg", at_least=150)
    assert whole.pixels.shape == (640, 800)
    assert part.pixels.shape == (160, 200)
    assert (part.width, part.height) == (800, 640)
    assert np.abs(part.pixels - whole.pixels.reshape(160, 4, 200, 4).mean((1, 3))).mean() < 0.01


# --- raster files: what is refused ------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    error = caught.value
    assert error.path == str(path)
    assert error.remedy
    assert all(word in str(error) for word in words), str(error)
    assert "\n" not in str(error)


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.png", "no such file", "check the path")
    refused(tmp_path, "is a folder, not an image")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "the file is empty (0 bytes)")
    refused(tmp_path / ("x" * 300 + ".png"), "cannot be read", "too long")


@pytest.mark.parametrize("name", ["a.jpeg", "a.png", "a.tif", "a.txt", "no-suffix"])
def test_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not an image, whatever its name")
    refused(tmp_path / name, "is not an image", "export it again")


@pytest.mark.parametrize(("name", "kind"), [("a.jpeg", "JPEG"), ("a.png", "PNG"), ("a.tif", "TIFF")])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_truncated(tmp_path: Path, name: str, kind: str, keep: float) -> None:
    data = encoded(Image.fromarray(GREY).resize((256, 256), Image.Resampling.NEAREST), kind)
    (tmp_path / name).write_bytes(data[: int(len(data) * keep)])
    refused(tmp_path / name)


@pytest.mark.parametrize(("name", "frames"), [("a.gif", 3), ("a.png", 3), ("a.tif", 3)])
def test_several_frames(tmp_path: Path, name: str, frames: int) -> None:
    pages = [Image.fromarray(np.roll(GREY, shift)) for shift in range(frames)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    refused(tmp_path / name, "holds 3 frames, one is expected", "save the frame you mean")


@pytest.mark.parametrize("size", [(1, 1), (15, 100), (100, 15)])
def test_too_small(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", f"is {size[0]}x{size[1]} pixels, at least 16x16 are needed")


@pytest.mark.parametrize("side", [9_000, 10_000, 30_000, 2**31 - 1])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_not_decoded(tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png_of(side, side))

    def never(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    refused(tmp_path / "a.png", "80 megapixels", "scale it down")


def test_strict_warnings_do_not_let_a_bomb_through(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of(10_000, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(tmp_path / "a.png", "is larger than 80 megapixels", "scale it down")


def test_the_limit_itself() -> None:
    check_size("x", 16, MAX_PIXELS // 16)
    with pytest.raises(ImageError, match="over the limit of 80 megapixels"):
        check_size("x", 16, MAX_PIXELS // 16 + 1)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_text(text)
    assert Image.open(tmp_path / "a.png").format == "EPS", "Pillow alone would take it"
    refused(tmp_path / "a.png", "is not an image")


# --- damage at random -------------------------------------------------------------------------------------


def lut_item(descriptor: list[int], data: list[int]) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", descriptor)
    item.add_new(0x00283006, "US", data)
    return item


def written(folder: Path, ds: Dataset, name: str = "a.dcm") -> Path:
    pydicom.dcmwrite(folder / name, ds, enforce_file_format=True)
    return folder / name


def compressed(ds: Dataset, syntax: UID) -> Dataset:
    ds.compress(syntax, generate_instance_uid=False)
    return ds


TAGGED = Image.Exif()
TAGGED[0x0112] = 6
SEEDS = {
    "jpeg": encoded(Image.fromarray(GREY), "JPEG", exif=TAGGED),
    "png": encoded(Image.fromarray(GREY), "PNG"),
    "tif": encoded(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"),
    "bmp": encoded(Image.fromarray(GREY), "BMP"),
    "gif": encoded(Image.fromarray(GREY), "GIF"),
    "dcm": file_bytes(make(DEEP, WindowCenter=["100", "50"], WindowWidth=["100", "60"], RescaleSlope="2")),
    "lut.dcm": file_bytes(make(GREY, VOILUTSequence=[lut_item([256, 0, 8], list(range(256)))])),
    "rgb.dcm": file_bytes(make(RGB, "RGB")),
    "rle.dcm": file_bytes(compressed(make(GREY), RLELossless)),
    "j2k.dcm": file_bytes(compressed(make(GREY), JPEG2000Lossless)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SEEDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_ends_in_an_image_or_an_image_error(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(SEEDS[kind])
    for _ in range(data.draw(st.integers(1, 5), label="changes")):
        # Headers stand first: most changes go there.
        place = data.draw(st.integers(0, 700) | st.integers(0, len(content) - 1), label="place")
        content[place % len(content)] = data.draw(st.integers(0, 255), label="byte")
    keep = data.draw(st.sampled_from([1.0, 1.0, 0.7, 0.3]), label="keep")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content[: max(1, int(len(content) * keep))])
    try:
        image = read_image(path, at_least=data.draw(st.sampled_from([None, 16]), label="at least"))
    except ImageError:
        return  # what it says is asked elsewhere, of the named kinds of damage
    assert image.pixels.dtype == np.float32
    assert image.pixels.ndim == 2
    assert np.isfinite(image.pixels).all()
    assert image.pixels.min() >= 0
    assert image.pixels.max() <= 1


def test_threads_read_alike_and_leave_the_warnings_alone(tmp_path: Path) -> None:
    for number in range(6):
        Image.fromarray(np.roll(GREY, number)).save(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    names = [tmp_path / f"{number % 6}.png" for number in range(60)]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(read_image, names))
    for number, image in enumerate(images):
        assert (np.round(image.pixels * 255) == np.roll(GREY, number % 6)).all()
    assert list(warnings.filters) == before


# --- archives ---------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    images = np.stack([GREY, 255 - GREY])
    colour = np.stack([RGB, RGB])
    wide = np.stack([DEEP])
    np.savez_compressed(tmp_path / "a.npz", val_images=images, test_images=colour, deep_images=wide, val_labels=[0, 1])
    return tmp_path / "a.npz"


def test_rows_of_an_archive(archive: Path) -> None:
    image = read_image(f"{archive}#val/1")
    assert (np.round(image.pixels * 255) == 255 - GREY).all()
    assert (image.format, image.width, image.height) == ("NPZ", SIDE, SIDE)
    assert np.abs(read_image(f"{archive}#test/0").pixels * 255 - RGB @ LUMA).max() < 1


@pytest.mark.parametrize("row", ["val/2", "val/x", "val", "", "train/0"])
def test_rows_that_are_not_there(archive: Path, row: str) -> None:
    with pytest.raises(ImageError, match="no such row in the archive") as caught:
        read_image(f"{archive}#{row}")
    assert caught.value.path == f"{archive}#{row}"


def test_archives_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "objects.npz", val_images=np.array([{"a": 1}], dtype=object))
    for name in ("text.npz", "objects.npz", "absent.npz"):
        with pytest.raises(ImageError, match="no such row in the archive"):
            read_image(tmp_path / f"{name}#val/0")


def test_a_sharp_in_a_name_is_no_archive(tmp_path: Path) -> None:
    assert in_archive("a/b.npz#val/3") == (Path("a/b.npz"), "val/3")
    assert in_archive("a/scan#1.png") is None
    Image.fromarray(GREY).save(tmp_path / "scan#1.png")
    assert read_image(tmp_path / "scan#1.png").width == SIDE


# --- DICOM: grey values -----------------------------------------------------------------------------------

TWELVE = (DEEP // 16).astype(np.uint16)
SIGNED = (DEEP.astype(np.int32) - 32768).astype(np.int16)
WINDOW = {"WindowCenter": "1800", "WindowWidth": "1200"}


def by_pydicom(ds: Dataset) -> np.ndarray:
    """The oracle: pydicom's own rendering, scaled by the range of its output."""
    rescaled = ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    slope, bits = float(ds.get("RescaleSlope", 1)), int(ds.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ds.PixelRepresentation else (0, 2**bits - 1)
    intercept = float(ds.get("RescaleIntercept", 0))
    bottom, top = low * slope + intercept, high * slope + intercept
    out = apply_voi_lut(rescaled, ds, index=0)
    return (out - bottom) / (top - bottom)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(
    ("pixels", "elements"),
    [
        (TWELVE, {"BitsStored": 12, "HighBit": 11}),
        (DEEP, {"WindowCenter": "30000", "WindowWidth": "40000"}),
        (SIGNED, {"WindowCenter": "-500", "WindowWidth": "30000"}),
        (TWELVE, {"BitsStored": 12, "HighBit": 11, "RescaleSlope": "1.5", "RescaleIntercept": "-100"}),
    ],
    ids=["12-bit", "16-bit", "signed", "rescaled"],
)
def test_windows_agree_with_pydicom(
    tmp_path: Path, function: str | None, pixels: np.ndarray, elements: dict[str, Any]
) -> None:
    ds = make(pixels, **{**WINDOW, **elements, **({"VOILUTFunction": function} if function else {})})
    image = read_image(written(tmp_path, ds))
    np.testing.assert_allclose(image.pixels, by_pydicom(ds), atol=2e-5)
    assert 0.05 < image.pixels.mean() < 0.95
    assert image.notes == ()
    assert (image.format, image.mode) == ("DICOM", "MONOCHROME2")


def test_the_linear_window_by_hand(tmp_path: Path) -> None:
    # PS3.3, C.11.2.1.2.1: centre 100, width 11 runs from 94.5 to 104.5
    pixels = np.full((SIDE, SIDE), 90, np.uint16)
    pixels[0, :4] = [95, 100, 104, 105]
    image = read_image(written(tmp_path, make(pixels, WindowCenter="100", WindowWidth="11")))
    np.testing.assert_allclose(image.pixels[0, :5], [0.05, 0.55, 0.95, 1.0, 0.0], atol=1e-6)


def test_a_window_of_width_one_is_a_threshold(tmp_path: Path) -> None:
    pixels = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
    image = read_image(written(tmp_path, make(pixels, WindowCenter="500", WindowWidth="1")))
    assert (image.pixels == (pixels > 499.5)).all()


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_exact_windows_may_be_narrower_than_one(tmp_path: Path, function: str) -> None:
    rescale = {"RescaleSlope": "0.0001", "RescaleIntercept": "0"}
    elements = {**rescale, "WindowCenter": "2", "WindowWidth": "0.5", "VOILUTFunction": function}
    image = read_image(written(tmp_path, make(DEEP, **elements)))
    values = DEEP * 0.0001
    expected = (
        np.clip((values - 1.75) / 0.5, 0, 1) if function == "LINEAR_EXACT" else 1 / (1 + np.exp(-8 * (values - 2)))
    )
    np.testing.assert_allclose(image.pixels, expected, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_a_steep_sigmoid_does_not_overflow(tmp_path: Path) -> None:
    elements = {"WindowCenter": "32768", "WindowWidth": "2", "VOILUTFunction": "SIGMOID"}
    image = read_image(written(tmp_path, make(DEEP, **elements)))
    assert np.isfinite(image.pixels).all()


def test_of_several_windows_the_first_counts(tmp_path: Path) -> None:
    several = make(DEEP, WindowCenter=["30000", "9000"], WindowWidth=["20000", "100"])
    single = make(DEEP, WindowCenter="30000", WindowWidth="20000")
    first = read_image(written(tmp_path, several))
    assert (first.pixels == read_image(written(tmp_path, single, "b.dcm")).pixels).all()


@pytest.mark.parametrize(
    ("bits", "vr"), [(8, "OW, packed"), *((bits, vr) for bits in (8, 10, 12, 16) for vr in ("US", "OW"))]
)
def test_voi_luts(tmp_path: Path, bits: int, vr: str) -> None:
    entries = (np.linspace(0, 1, 1000) ** 2 * (2**bits - 1)).astype(np.uint16)
    item = lut_item([1000, 1500, bits], entries.tolist())
    if vr != "US":
        item.add_new(0x00283006, "OW", entries.astype("u1" if "packed" in vr else "<u2").tobytes())
    ds = make(TWELVE, BitsStored=12, HighBit=11, VOILUTSequence=[item])
    image = read_image(written(tmp_path, ds))
    # PS3.3, C.11.2.1.1: values below the first mapped one take the first entry, those beyond the last the last.
    expected = entries[np.clip(TWELVE.astype(int) - 1500, 0, 999)] / (2**bits - 1)
    np.testing.assert_allclose(image.pixels, expected, atol=1e-6)
    if bits > 8:  # pydicom's index wraps around at 256 with 8-bit entries
        np.testing.assert_allclose(image.pixels, apply_voi_lut(ds.pixel_array, ds) / (2**bits - 1), atol=1e-6)


def test_a_voi_lut_goes_before_a_window(tmp_path: Path) -> None:
    lut = lut_item([4096, 0, 12], list(range(4095, -1, -1)))
    ds = make(TWELVE, BitsStored=12, HighBit=11, VOILUTSequence=[lut], **WINDOW)
    np.testing.assert_allclose(read_image(written(tmp_path, ds)).pixels, 1 - TWELVE / 4095, atol=1e-6)


def test_a_modality_lut_comes_first(tmp_path: Path) -> None:
    item = lut_item([4096, 0, 16], (np.arange(4096) * 16).tolist())
    item.ModalityLUTType = "US"
    ds = make(TWELVE, BitsStored=12, HighBit=11, ModalityLUTSequence=[item], WindowCenter="32768", WindowWidth="65536")
    np.testing.assert_allclose(read_image(written(tmp_path, ds)).pixels, TWELVE * 16 / 65535, atol=1e-5)


@pytest.mark.parametrize(
    ("elements", "inverted"),
    [
        ({}, False),
        ({"photometric": "MONOCHROME1"}, True),
        ({"PresentationLUTShape": "INVERSE"}, True),
        ({"photometric": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True),
        ({"PresentationLUTShape": "IDENTITY"}, False),
    ],
)
def test_air_is_dark(tmp_path: Path, elements: dict[str, str], inverted: bool) -> None:
    image = read_image(written(tmp_path, make(DEEP, WindowCenter="32768", WindowWidth="65536", **elements)))
    plain = DEEP / 65535
    np.testing.assert_allclose(image.pixels, 1 - plain if inverted else plain, atol=1e-5)
    reason = "MONOCHROME1" if "photometric" in elements else "Presentation LUT"
    assert image.notes == ((f"inverted for display ({reason})",) if inverted else ())


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"WindowCenter": "100"},
        {"WindowCenter": "100", "WindowWidth": "0"},
        {"WindowCenter": "100", "WindowWidth": "0.5"},
        {"WindowCenter": "100", "WindowWidth": "-5", "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": [], "WindowWidth": []},
    ],
)
def test_without_a_window_percentiles_do(tmp_path: Path, elements: dict[str, Any]) -> None:
    image = read_image(written(tmp_path, make(DEEP, **elements)))
    low, high = np.percentile(DEEP, (0.5, 99.5))
    np.testing.assert_allclose(image.pixels, np.clip((DEEP - low) / (high - low), 0, 1), atol=1e-6)
    assert image.notes == ("no window in the header: scaled by the 0.5 and 99.5 percentiles",)


def test_a_constant_image_without_a_window_is_black(tmp_path: Path) -> None:
    assert not read_image(written(tmp_path, make(np.full((SIDE, SIDE), 700, np.uint16)))).pixels.any()


# --- DICOM: colour and compression ------------------------------------------------------------------------


def test_colour_dicom_becomes_luma(tmp_path: Path) -> None:
    assert np.abs(read_image(written(tmp_path, make(RGB, "RGB"))).pixels * 255 - RGB @ LUMA).max() < 0.01
    planar = make(RGB, "RGB", PlanarConfiguration=1, PixelData=RGB.transpose(2, 0, 1).tobytes())
    assert np.abs(read_image(written(tmp_path, planar)).pixels * 255 - RGB @ LUMA).max() < 0.01


def test_the_grey_of_ybr_is_its_y(tmp_path: Path) -> None:
    ybr = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    image = read_image(written(tmp_path, make(ybr, "YBR_FULL")))
    assert np.abs(image.pixels * 255 - ybr[..., 0]).max() < 2
    assert image.mode == "YBR_FULL"


def test_a_colour_jpeg_within_dicom(tmp_path: Path) -> None:
    smooth = Image.fromarray(RGB).resize((128, 128), Image.Resampling.BICUBIC)
    ds = make(np.asarray(smooth), "YBR_FULL_422")
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = pydicom.encaps.encapsulate([encoded(smooth, "JPEG", quality=95)])
    ds["PixelData"].VR = "OB"
    image = read_image(written(tmp_path, ds))
    assert np.abs(image.pixels * 255 - np.asarray(smooth) @ LUMA).mean() < 2


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 65536, (3, 256)).astype(np.uint16)
    elements: dict[str, Any] = {}
    for name, column in zip(("Red", "Green", "Blue"), colours, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = column.tobytes()
    image = read_image(written(tmp_path, make(GREY, "PALETTE COLOR", **elements)))
    np.testing.assert_allclose(image.pixels, colours.T[GREY] @ LUMA / 65535, atol=1e-5)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_lossless_compression_changes_nothing(tmp_path: Path, syntax: UID) -> None:
    ds = make(TWELVE, BitsStored=12, HighBit=11, **WINDOW)
    plain = read_image(written(tmp_path, ds)).pixels
    assert (read_image(written(tmp_path, compressed(ds, syntax), "b.dcm")).pixels == plain).all()


def test_one_decoder_is_used_whatever_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = pydicom.pixels.get_decoder(JPEG2000Lossless)
    path, used = written(tmp_path, compressed(make(GREY), JPEG2000Lossless)), []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            used.append(name)
            return function(*arguments)

        return call

    for name, function in list(decoder._available.items()):
        monkeypatch.setitem(decoder._available, name, watched(name, function))
    read_image(path)
    assert used == ["pylibjpeg"]


# --- DICOM: what is refused -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ds", "words"),
    [
        (make(None), "the DICOM object has no pixels; send the image object, not a report"),
        (make(GREY, PixelData=bytes(100)), "pixels cannot be decoded"),
        (make(GREY, Rows=0), "is 32x0 pixels, at least 16x16 are needed"),
        (make(GREY[:8]), "is 32x8 pixels"),
        (make(GREY, Rows=20_000, Columns=20_000), "over the limit of 80 megapixels; not decoded"),
        (make(np.stack([GREY] * 3)), "is a multi-frame object, one frame is expected; send single images"),
        (make(DEEP, RescaleSlope="1e308", RescaleIntercept="0"), "rescaled values are not finite"),
    ],
    ids=["no-pixels", "truncated", "no-rows", "small", "huge", "frames", "infinite"],
)
def test_dicom_that_is_refused(tmp_path: Path, ds: Dataset, words: str) -> None:
    refused(written(tmp_path, ds), words)


def test_a_damaged_compressed_image_says_why(tmp_path: Path) -> None:
    content = bytearray(SEEDS["j2k.dcm"])
    start = content.index(b"\xff\x4f\xff\x51")
    content[start + 4 : start + 20] = bytes(16)
    (tmp_path / "a.dcm").write_bytes(content)
    refused(tmp_path / "a.dcm", "pixels cannot be decoded", "export it uncompressed")


def lossless_jpeg(folder: Path, ds: Dataset, kind: str) -> bytearray:
    """The same as JPEG lossless, by GDCM."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(written(folder, ds, "plain.dcm")))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetFileName(str(folder / "lossless.dcm"))
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return bytearray((folder / "lossless.dcm").read_bytes())


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_lossless(tmp_path: Path, kind: str, bits: int) -> None:
    pixels = GREY if bits == 8 else DEEP >> (16 - bits)
    ds = make(pixels, BitsStored=bits, HighBit=bits - 1, **WINDOW)
    plain = read_image(written(tmp_path, ds)).pixels
    lossless_jpeg(tmp_path, ds, kind)
    assert (read_image(tmp_path / "lossless.dcm").pixels == plain).all()


def chest_like() -> Dataset:
    """Smooth with a little noise: in pure noise every string of bits is as good as another."""
    y, x = np.mgrid[:128, :128]
    noise = np.random.default_rng(4).integers(0, 30, (128, 128))
    shades = ((np.sin(x / 20) + np.cos(y / 15) + 2) * 900 + noise).astype(np.uint16)
    return make(shades, BitsStored=12, HighBit=11, **WINDOW)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_garbled_jpeg_lossless_is_no_image(tmp_path: Path, share: float) -> None:
    content = lossless_jpeg(tmp_path, chest_like(), "JPEGLosslessProcess14_1")
    scan = content.index(b"\xff\xda") + 10
    place = scan + int(share * (len(content) - scan - 108))
    content[place : place + 100] = bytes(100)
    (tmp_path / "a.dcm").write_bytes(content)
    refused(tmp_path / "a.dcm", "pixels cannot be decoded", "export it uncompressed")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["open", "closed"])
def test_truncated_jpeg_lossless_is_no_image(tmp_path: Path, keep: float, end: bytes) -> None:
    lossless_jpeg(tmp_path, chest_like(), "JPEGLosslessProcess14_1")
    ds = pydicom.dcmread(tmp_path / "lossless.dcm")
    stream = pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = pydicom.encaps.encapsulate([stream[: int(keep * len(stream))] + end])
    refused(written(tmp_path, ds), "pixels cannot be decoded", "export it uncompressed")


def test_what_dicom_is(tmp_path: Path) -> None:
    path = written(tmp_path, make(GREY), "no-suffix")
    assert is_dicom(path)
    assert read_image(path).format == "DICOM"
    assert is_dicom(Path("absent.DCM"))
    (tmp_path / "short").write_bytes(b"DICM")
    assert not is_dicom(tmp_path / "short")
    assert not is_dicom(tmp_path / "absent")
    (tmp_path / "text.dcm").write_text("no DICOM" * 50)
    refused(tmp_path / "text.dcm", "is not a readable DICOM file", "export it again")
    with pytest.raises(ImageError, match="is not a readable DICOM file"):
        read_header(tmp_path / "text.dcm")


def test_a_header_comes_without_pixels(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, make(GREY, PatientID="made-up")))
    assert header.PatientID == "made-up"
    assert "PixelData" not in header


@pytest.mark.parametrize(("code", "refused"), [(errno.EMFILE, True), (errno.EIO, True), (errno.EINVAL, False)])
def test_what_the_system_refuses_is_told_from_damage(code: int, refused: bool) -> None:
    with pytest.raises(ImageError) as caught, image_errors("a.png", "cannot be read", "try again"):
        raise OSError(code, "refused")
    assert isinstance(caught.value, ImageUnavailableError) == refused
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), ImageUnavailableError) == refused
