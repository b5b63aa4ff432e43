"""Burnt-in text: letters are found wherever they stand, bright anatomy is not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter, median_filter

from pneumoscope.images.burned import _median_around, text_in, widened
from pneumoscope.images.preparation import Pixels


def lettered(grey: int, at: tuple[int, int], side: int = 224) -> tuple[Pixels, Pixels]:
    """Return a grey image with a white R, uint8 [side, side], and where the R is."""
    image, plain = Image.new("L", (side, side), grey), Image.new("L", (side, side), 0)
    for canvas in (image, plain):
        ImageDraw.Draw(canvas).text(at, "R", fill=255, font=ImageFont.load_default(24))
    return np.asarray(image), np.asarray(plain)


@pytest.mark.parametrize("at", [(10, 10), (195, 5), (100, 190)])
def test_a_letter_is_covered_wherever_it_stands(at: tuple[int, int]) -> None:
    image, letter = lettered(90, at)
    assert text_in(image)[letter > 127].all()
    assert text_in(image).mean() < 0.05


def test_bright_areas_and_letters_on_white_are_no_text() -> None:
    heart = np.full((224, 224), 60, np.uint8)
    heart[80:200, 70:170] = 230
    assert not text_in(gaussian_filter(heart, 6)).any()
    assert not text_in(lettered(230, (50, 50))[0]).any()


def test_the_median_is_that_of_the_filter() -> None:
    image = np.random.default_rng(0).integers(0, 256, (112, 112), dtype=np.uint8)
    where = image >= 200
    assert _median_around(image, where).tolist() == median_filter(image, 15, mode="nearest")[where].tolist()
    assert _median_around(image, np.zeros_like(where)).shape == (0,)


def test_a_mask_is_widened_by_a_share_of_the_side() -> None:
    mask = np.zeros((100, 100), np.bool_)
    assert not widened(mask, 0.02).any()
    mask[50, 50] = True
    assert widened(mask, 0.02).sum() == 13, "all pixels within two"
