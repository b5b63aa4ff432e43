"""Styles exchanged: the other image's spectrum and greys arrive, structures stay where they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pneumoscope.images.preparation import Pixels
from pneumoscope.images.style import donors, restyled, style_of

SIDE = 64


def textured(sigma: float, seed: int, low: float = 40, high: float = 200) -> Pixels:
    """Return uint8 [64, 64]: noise, smoothed, scaled to a range of grey."""
    values = gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), sigma)
    values = (values - values.min()) / np.ptp(values)
    return np.rint(low + values * (high - low)).astype(np.uint8)


def test_the_other_images_spectrum_arrives() -> None:
    smooth, sharp = textured(2, 0), textured(1, 1)
    before = style_of(smooth).spectrum[4:40] - style_of(sharp).spectrum[4:40]
    after = style_of(restyled(smooth, style_of(sharp), greys=0)).spectrum[4:40] - style_of(sharp).spectrum[4:40]
    assert np.abs(after).mean() < 0.25 * np.abs(before).mean()


def test_the_other_images_greys_arrive() -> None:
    dark, bright = textured(3, 0, 10, 90), textured(3, 1, 120, 250)
    changed = restyled(dark, style_of(bright), spectrum=0)
    assert np.percentile(changed, [5, 50, 95]) == pytest.approx(np.percentile(bright, [5, 50, 95]), abs=3)


def test_structures_stay_where_they_are() -> None:
    image = textured(4, 0)
    changed = restyled(image, style_of(textured(3, 1, 90, 240)))
    assert np.corrcoef(gaussian_filter(changed.astype(float), 3).ravel(), image.ravel())[0, 1] > 0.9


def test_half_the_strength_is_between() -> None:
    dark, bright = textured(3, 0, 10, 90), style_of(textured(3, 1, 120, 250))
    means = [restyled(dark, bright, spectrum=0, greys=share).mean() for share in (0.0, 0.5, 1.0)]
    assert means[1] == pytest.approx((means[0] + means[2]) / 2, abs=1)


def test_its_own_style_changes_next_to_nothing() -> None:
    image = textured(2, 0)
    assert np.abs(restyled(image, style_of(image)).astype(int) - image).mean() < 0.5


def test_a_donor_is_of_the_other_class() -> None:
    positive = np.array([True, False] * 20)
    among = np.arange(30) < 11
    drawn = donors(positive, among, np.random.default_rng(0))
    assert (among[drawn] != positive).all()
    assert len(set(drawn)) > 10
