"""What training images lend each other: drawn from (seed, epoch, index) alone, as often as asked."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.config import AugmentConfig
from pneumoscope.images.style import style_of
from pneumoscope.training.exchange import Exchange, by_lungs, framed_as

SIDE = 64
POSITIVE = np.array([False, False, True, True])


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Four images: the first two, of the well, dark; the others bright."""
    rng = np.random.default_rng(0)
    base = np.where(POSITIVE, 180, 60)[:, None, None]
    return (base + rng.normal(0, 12, (4, SIDE, SIDE))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def lungs() -> np.ndarray:
    masks = np.zeros((4, SIDE, SIDE), np.uint8)
    for index, mask in enumerate(masks):
        mask[20 : 44 + 3 * index, 12:26] = mask[20 : 44 + 3 * index, 36:50] = 255
    return masks


def exchange(pixels: np.ndarray, masks: np.ndarray | None = None, **augment: float) -> Exchange:
    return Exchange(AugmentConfig(**augment), 3, pixels, range(4), POSITIVE, masks)  # type: ignore[arg-type]


def test_a_style_is_that_of_the_other_class(pixels: np.ndarray) -> None:
    always = exchange(pixels, style=1.0)
    for index, ill in enumerate(POSITIVE):
        means = [always.canvas(epoch, index).mean() for epoch in range(20)]
        assert all(mean < pixels[index].mean() - 20 if ill else mean > pixels[index].mean() + 20 for mean in means)


def test_styles_are_exchanged_as_often_as_asked_and_repeat(pixels: np.ndarray) -> None:
    half = exchange(pixels, style=0.5)
    draws = [(epoch, index) for epoch in range(60) for index in range(4)]
    first, again = ([half.canvas(*key) for key in draws] for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    unchanged = np.mean([np.array_equal(image, pixels[key[1]]) for image, key in zip(first, draws, strict=True)])
    assert abs(unchanged - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(draws))  # neither spectrum nor greys


def test_without_style_the_image_is_untouched(pixels: np.ndarray) -> None:
    assert np.array_equal(exchange(pixels).canvas(0, 1), pixels[1])


def test_crops_are_drawn_as_often_as_asked(pixels: np.ndarray, lungs: np.ndarray) -> None:
    some = exchange(pixels, lungs, lungs=0.4, framing=0.3)
    crops = [some.crop(epoch, index) for epoch in range(80) for index in range(4)]
    assert abs(np.mean([crop is not None for crop in crops]) - 0.7) < 4 * np.sqrt(0.7 * 0.3 / len(crops))
    assert exchange(pixels, lungs).crop(0, 0) is None


def test_a_crop_by_the_lungs_shows_most_of_them() -> None:
    box = np.array([0.3, 0.8, 0.2, 0.7])
    rng = np.random.default_rng(0)
    crops = np.array([by_lungs(box, rng) for _ in range(500)])
    for moved in (crops[:, 0] - 0.3, 0.8 - crops[:, 0] - crops[:, 2]):  # inward
        assert moved.min() >= -0.08 * 0.5 - 1e-9
        assert moved.max() <= 0.25 * 0.5 + 1e-9
    assert 0.4 < (crops[:, 0] > 0.3).mean() < 0.6


def test_framed_as_another_the_lungs_lie_as_its_lungs_do() -> None:
    own, other = np.array([0.3, 0.7, 0.3, 0.7]), np.array([0.2, 0.8, 0.1, 0.9])
    top, left, height, width = framed_as(own, other)
    lies = [(0.3 - top) / height, (0.7 - top) / height, (0.3 - left) / width, (0.7 - left) / width]
    assert lies == pytest.approx(other)


def test_a_frame_ends_where_the_image_ends() -> None:
    top, left, height, width = framed_as(np.array([0.1, 0.9, 0.1, 0.9]), np.array([0.4, 0.6, 0.4, 0.6]))
    assert (top, left, height, width) == (0.0, 0.0, 1.0, 1.0)


def test_the_style_given_away_is_the_training_images_own(pixels: np.ndarray) -> None:
    assert np.array_equal(exchange(pixels, style=1.0).styles[2].greys, style_of(pixels[2]).greys)
