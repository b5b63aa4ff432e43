"""Sharpness, noise and collimation, each against pictures in which it is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, laplace

from pneumoscope.images.picture import collimated, noise, sharpness
from pneumoscope.images.preparation import Pixels


def smooth(seed: int = 0, shape: tuple[int, int] = (300, 256)) -> Pixels:
    base = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 18)
    return np.asarray(np.clip(128 + 35 * base / base.std(), 20, 235), np.uint8)


def test_sharpness_is_scipys_laplacian_by_the_spread() -> None:
    grainy = np.random.default_rng(1).integers(0, 256, (40, 30), np.uint8)
    for image in (grainy, smooth()):
        grey = image.astype(float)
        assert sharpness(image) == pytest.approx(np.abs(laplace(grey, mode="nearest")).mean() / grey.std())
    assert sharpness(np.full((8, 8), 7, np.uint8)) == 0


@pytest.mark.parametrize("sd", [2.0, 5.0, 10.0])
def test_noise_is_measured_in_grey_levels(sd: float) -> None:
    rng = np.random.default_rng(2)
    image = smooth() + rng.normal(0, sd, smooth().shape)
    assert noise(np.clip(np.rint(image), 0, 255).astype(np.uint8)) == pytest.approx(sd, rel=0.1)


@pytest.mark.parametrize(("value", "letter"), [(0, 255), (255, 0)])
@pytest.mark.parametrize("large", [1, 5])
def test_the_collimated_share_is_that_of_the_border(value: int, letter: int, large: int) -> None:
    image = smooth(shape=(300 * large, 256 * large))
    assert collimated(image) == 0
    image[: 30 * large], image[:, -16 * large :] = value, value
    image[4:9, 4:8] = letter
    expected = 1 - (270 * 240) / (300 * 256)
    assert collimated(image) == pytest.approx(expected, abs=0.02)
    assert collimated((image / 255).astype(np.float32)) == pytest.approx(expected, abs=0.02)


def test_an_empty_frame_is_all_border() -> None:
    assert collimated(np.zeros((20, 20), np.uint8)) == 1


def test_dark_lungs_are_no_border() -> None:
    image = smooth()
    image[100:200, 60:120] = 0
    assert collimated(image) == 0
