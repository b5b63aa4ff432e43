"""Scores of a map against a mask, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.explanation.localisation import iou, pointing_game, usual_location

from pneumoscope.explanation.method import energy
from pneumoscope.records import Bools


def box_mask(size: int, top: int, left: int, height: int, width: int) -> Bools:
    mask = np.zeros((size, size), np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def test_localisation_by_hand() -> None:
    heat = np.array([[0.0, 0.2, 0.0], [0.0, 1.0, 0.8], [0.0, 0.0, 0.0]], np.float32)
    mask = box_mask(3, 1, 1, 1, 1)
    assert mask.sum() == 1
    assert pointing_game(heat, mask) == 1
    assert pointing_game(heat, ~mask) == 0
    assert energy(heat, mask) == pytest.approx(0.5)
    assert iou(heat, mask) == 1
    assert iou(heat, box_mask(3, 1, 1, 2, 1)) == pytest.approx(1 / 3)
    assert iou(heat, box_mask(3, 0, 0, 3, 3)) == pytest.approx(3 / 9), "places at zero are not chosen"
    blank = np.zeros_like(heat)
    assert (pointing_game(blank, mask), energy(blank, mask), iou(blank, mask)) == (0, 0, 0)
    tied = np.array([[1, 1], [0, 0]], np.float32)
    assert pointing_game(tied, box_mask(2, 0, 0, 1, 1)) == 0.5
    assert iou(heat, np.zeros((3, 3), bool)) == 0


def test_the_usual_location_leaves_the_image_out() -> None:
    masks = np.random.default_rng(0).random((5, 4, 4)) < 0.5
    found = usual_location(masks)
    for index in range(5):
        np.testing.assert_allclose(found[index], np.delete(masks, index, axis=0).mean(axis=0))
    assert found.dtype == np.float32
