"""What is removed is gone, what is left is untouched, and the fill says nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pneumoscope.images.burned import text_in
from pneumoscope.predict import Classifier
from pneumoscope.shortcuts.conditions import (
    ADDED,
    REMOVED,
    Chest,
    border_added,
    border_masked,
    chest_of,
    corners_masked,
    everything_removed,
    letter_pasted,
    logits,
    lung_region_removed,
    lungs_box_removed,
    lungs_only,
    lungs_removed,
    mean_fill,
    mirrored,
    noise_fill,
    outline,
    untouched,
    with_region,
)


@pytest.fixture(scope="module")
def chests(make_toys: Callable[..., Any]) -> list[Chest]:
    toys = make_toys(24)
    return with_region([chest_of(image, mask) for image, mask in zip(toys.canvases, toys.lungs, strict=True)])


FILL = np.full((64, 64), 99, np.uint8)


@pytest.mark.parametrize("condition", [*REMOVED.values(), *ADDED.values()], ids=[*REMOVED, *ADDED])
def test_a_condition_makes_another_image_and_leaves_the_given_one(chests: list[Chest], condition: Any) -> None:
    before = chests[0].image.copy()
    changed = condition(chests[0], FILL)
    np.testing.assert_array_equal(chests[0].image, before)
    assert (changed.shape, changed.dtype) == (before.shape, np.uint8)
    assert (changed != before).any()


def test_nothing_of_the_lungs_is_left_where_they_are_removed(chests: list[Chest]) -> None:
    for condition in (lungs_removed, lungs_box_removed):
        changed = condition(chests[3], FILL)
        assert (changed[chests[3].lungs] == 99).all()
    outside = ~chests[3].hole
    np.testing.assert_array_equal(lungs_removed(chests[3], FILL)[outside], chests[3].image[outside])


def test_lungs_alone_are_all_that_is_left(chests: list[Chest]) -> None:
    changed = lungs_only(chests[3], FILL)
    np.testing.assert_array_equal(changed[chests[3].lungs], chests[3].image[chests[3].lungs])
    assert (changed[~chests[3].lungs] == 99).all()


def test_the_hole_is_wider_than_the_lungs_and_fills_their_bays() -> None:
    mask = np.zeros((100, 100), np.float32)
    mask[20:80, 10:40] = mask[20:80, 60:90] = 1
    mask[40:60, 25:40] = 0  # an opacity that was not taken for lung
    chest = chest_of(np.zeros((100, 100), np.uint8), mask)
    assert chest.hole[50, 35]
    assert chest.hole[50, 7]
    assert not chest.hole[50, 50]
    assert not chest.hole[5, 20]


def test_the_region_is_the_same_for_all_and_holds_nearly_all_lungs(chests: list[Chest]) -> None:
    assert all(chest.region is chests[0].region for chest in chests)
    assert np.mean([(chest.lungs & ~chest.region).sum() / chest.lungs.sum() for chest in chests]) < 0.01
    hidden = lung_region_removed(chests[0], FILL) == lung_region_removed(chests[1], FILL)
    assert hidden[chests[0].region].all()


def test_borders_and_corners_leave_the_lungs(chests: list[Chest]) -> None:
    for condition in (border_masked, corners_masked):
        changed = condition(chests[0], FILL)
        assert changed[0, 0] == 99
        np.testing.assert_array_equal(changed[chests[0].lungs], chests[0].image[chests[0].lungs])
    assert border_masked(chests[0], FILL)[0, 32] == 99
    assert corners_masked(chests[0], FILL)[0, 32] != 99


def test_letters_are_text_and_bones_are_not() -> None:
    image = Image.new("L", (224, 224), 60)
    pen = ImageDraw.Draw(image)
    pen.text((150, 100), "L", fill=255, font=ImageFont.load_default(20))
    pen.rectangle((20, 20, 120, 30), fill=210)  # longer than any letter
    found = text_in(np.asarray(image))
    letter = np.asarray(image) == 255
    assert found[letter].mean() > 0.95
    assert not found[20:31, 20:100].any()
    assert found.mean() < 0.05


def test_what_is_added_lies_where_it_should(chests: list[Chest]) -> None:
    chest = chests[0]
    rows, columns = np.nonzero(letter_pasted(chest, FILL) != chest.image)
    assert rows.max() < 20
    assert columns.max() < 20
    framed = border_added(chest, FILL)
    assert (framed[:3] == 0).all()
    assert framed[32, 32] > 0
    np.testing.assert_array_equal(mirrored(chest, FILL)[:, ::-1], chest.image)


def test_both_classes_weigh_alike_in_the_fill() -> None:
    images = np.concatenate([np.full((30, 4, 4), 10, np.uint8), np.full((2, 4, 4), 110, np.uint8)])
    ill = np.arange(32) >= 30
    assert (mean_fill(images, ill) == 60).all()
    assert mean_fill(images)[0, 0] == round((30 * 10 + 2 * 110) / 32)
    noise = noise_fill(np.repeat(np.repeat(images, 20, 1), 20, 2), ill)
    assert abs((noise == 110).mean() - 0.5) < 0.05
    assert set(np.unique(noise)) == {10, 110}


def test_with_everything_removed_all_answers_are_equal(chests: list[Chest], lung_reader: Classifier) -> None:
    assert np.ptp(logits(lung_reader, chests, everything_removed, FILL)[:, 1]) == 0
    assert np.ptp(logits(lung_reader, chests, untouched, FILL)[:, 1]) > 0


def test_the_outline_tells_the_size_of_the_lungs() -> None:
    small, large = np.zeros((2, 100, 100), np.float32)
    small[30:60, 15:35] = small[30:60, 65:85] = 1
    large[15:85, 8:42] = large[15:85, 58:92] = 1
    image = np.zeros((100, 100), np.uint8)
    rows = outline([chest_of(image, small), chest_of(image, large)])
    assert rows.shape == (2, 8)
    assert (rows[1, :2] > rows[0, :2]).all()
