"""Copies of an image are recognised, images of others are not."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.data.manifest import Manifest
from pneumoscope.images.alike import SAME, Projection, content_of, signs_of, square_of

SALT = b"0123456789abcdef"


def _encoded(image: Image.Image) -> Image.Image:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=30)
    return Image.open(stream)


def _cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    box = (round(width * left), round(height * top), round(width * (1 - right)), round(height * (1 - bottom)))
    return image.crop(box)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded anew": _encoded,
    "half as large": lambda image: image.resize((image.width // 2, image.height // 2)),
    "another shape": lambda image: image.resize((300, 200)),
    "3 % cut from each side": lambda image: _cropped(image, 0.03, 0.03, 0.03, 0.03),
    "5 % cut from each side": lambda image: _cropped(image, 0.05, 0.05, 0.05, 0.05),
    "4 % cut from the top": lambda image: _cropped(image, 0, 0.04, 0, 0),
    "cut unevenly, smaller, encoded": lambda image: _encoded(_cropped(image, 0.02, 0.03, 0, 0.01).resize((150, 150))),
    "brighter": lambda image: image.point(lambda grey: min(255, grey + 25)),
    "negative": lambda image: image.point(lambda grey: 255 - grey),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_the_same_image(change: str, chest_manifest: Manifest, tmp_path: Path) -> None:
    projection = Projection(SALT)
    alike = []
    for number, sample in enumerate(chest_manifest.samples[:12]):
        with Image.open(sample.path) as image:
            COPIES[change](image.convert("L").resize((224, 224))).save(tmp_path / f"{number}.png")
        bits = projection.bits(square_of(sample.path))
        alike += projection.similarity(square_of(str(tmp_path / f"{number}.png")), signs_of(bits[None])).tolist()
    assert min(alike) >= SAME


def test_images_of_other_patients_are_not_the_same(chest_manifest: Manifest) -> None:
    projection = Projection(SALT)
    samples = chest_manifest.samples
    squares = [square_of(sample.path) for sample in samples]
    signs = signs_of(np.array([projection.bits(square) for square in squares]))
    patients = np.array([sample.patient_id for sample in samples])
    for patient, square in zip(patients, squares, strict=True):
        assert projection.similarity(square, signs)[patients != patient].max() < SAME


def test_another_salt_gives_unrelated_bits(chest_manifest: Manifest) -> None:
    square = square_of(chest_manifest.samples[0].path)
    bits = [Projection(salt).bits(square) for salt in (SALT, SALT[::-1])]
    assert 0.3 < np.unpackbits(bits[0] ^ bits[1]).mean() < 0.7


def test_an_image_that_shows_nothing_is_like_none(tmp_path: Path) -> None:
    Image.new("L", (64, 64), 7).save(tmp_path / "flat.png")
    square = square_of(str(tmp_path / "flat.png"))
    projection = Projection(SALT)
    bits = projection.bits(square)
    assert square is None
    assert not bits.any()
    noise = np.random.default_rng(0).integers(0, 256, (96, 96)).astype(np.uint8)
    assert projection.similarity(square, signs_of(projection.bits(noise)[None])).tolist() == [0]
    assert projection.similarity(noise, signs_of(bits[None])).tolist() == [0]


def test_the_content_of_a_row_is_that_of_its_pixels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    images[2] = images[0]
    np.savez(tmp_path / "a.npz", val_images=images)
    first, second, third = (content_of(f"{tmp_path / 'a.npz'}#val/{row}") for row in range(3))
    assert first == third != second
