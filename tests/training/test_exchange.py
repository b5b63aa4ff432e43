"""What training images lend each other: drawn from (seed, epoch, index) alone, as often as asked."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.config import AugmentConfig
from pneumoscope.images.style import style_of
from pneumoscope.lungs import framed_as
from pneumoscope.training.exchange import NOBODY, Exchange, by_lungs

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
        means = [always.canvas(epoch, index)[0].mean() for epoch in range(20)]
        assert all(mean < pixels[index].mean() - 20 if ill else mean > pixels[index].mean() + 20 for mean in means)


def test_styles_are_exchanged_as_often_as_asked_and_repeat(pixels: np.ndarray) -> None:
    half = exchange(pixels, style=0.5)
    draws = [(epoch, index) for epoch in range(60) for index in range(4)]
    first, again = ([half.canvas(*key)[0] for key in draws] for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    unchanged = np.mean([np.array_equal(image, pixels[key[1]]) for image, key in zip(first, draws, strict=True)])
    assert abs(unchanged - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(draws))  # neither spectrum nor greys


def test_without_style_the_image_is_untouched(pixels: np.ndarray) -> None:
    assert np.array_equal(exchange(pixels).canvas(0, 1)[0], pixels[1])


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


def test_a_transplant_shows_the_lungs_of_another_within_its_own_outline(pixels: np.ndarray, lungs: np.ndarray) -> None:
    always = exchange(pixels, lungs, transplant=1.0)
    owners = set()
    for epoch in range(40):
        for index in range(4):
            image, owner = always.canvas(epoch, index)
            owners.add((index, owner))
            deep = np.s_[26:40, 16:22]  # within the first lung, clear of the seam
            if POSITIVE[owner] != POSITIVE[index]:
                outside = image[0:10, 0:10].astype(float) - pixels[index][0:10, 0:10]
                assert np.abs(outside).max() == 0
                assert image[deep].std() > 0
    assert len(owners) == 16


def test_donors_are_of_either_class_alike(pixels: np.ndarray, lungs: np.ndarray) -> None:
    drawn = [exchange(pixels, lungs, transplant=1.0).canvas(epoch, 0)[1] for epoch in range(200)]
    assert 0.4 < np.mean(POSITIVE[drawn]) < 0.6


def test_the_greys_of_a_transplant_are_those_of_its_owner_or_moved_to_the_image(
    pixels: np.ndarray, lungs: np.ndarray
) -> None:
    always, means = exchange(pixels, lungs, transplant=1.0), []
    for epoch in range(60):
        image, owner = always.canvas(epoch, 0)
        if POSITIVE[owner]:
            means.append(image[26:40, 16:22].mean())
    assert {round(mean / 60) for mean in means} == {1, 3}  # 60 is the image's grey, 180 the owner's


def test_painted_over_lungs_are_nobodys(pixels: np.ndarray, lungs: np.ndarray) -> None:
    always = exchange(pixels, lungs, blank=1.0)
    image, owner = always.canvas(0, 2)
    assert owner == NOBODY
    assert not np.array_equal(image[26:40, 16:22], pixels[2][26:40, 16:22])
    assert np.array_equal(image[0:10, 0:10], pixels[2][0:10, 0:10])


def test_lungs_are_changed_as_often_as_asked(pixels: np.ndarray, lungs: np.ndarray) -> None:
    some = exchange(pixels, lungs, transplant=0.3, blank=0.2)
    owners = [(some.canvas(epoch, index)[1], index) for epoch in range(150) for index in range(4)]
    error = 4 * np.sqrt(0.25 / len(owners))
    assert abs(np.mean([owner == NOBODY for owner, _ in owners]) - 0.2) < error
    # Of the transplants one in four, as it happens, gets its own lungs back.
    assert abs(np.mean([owner not in (NOBODY, index) for owner, index in owners]) - 0.3 * 0.75) < error


def test_without_lungs_there_is_nothing_to_transplant(pixels: np.ndarray, lungs: np.ndarray) -> None:
    empty = exchange(pixels, np.zeros_like(lungs), transplant=0.5, blank=0.5)
    assert all(np.array_equal(empty.canvas(0, index)[0], pixels[index]) for index in range(4))
