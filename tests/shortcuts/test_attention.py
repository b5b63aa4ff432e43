"""Maps of which it is known where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.shortcuts.attention import attainable, attention, explained_by_mean

RNG = np.random.default_rng(0)


def lungs_of(count: int) -> np.ndarray:
    masks = np.zeros((count, 40, 40), bool)
    for index in range(count):
        shift = int(RNG.integers(-4, 5))
        masks[index, 10:30, 8 + shift : 16 + shift] = True
    return masks


def measured(maps: np.ndarray, lungs: np.ndarray) -> object:
    found = attention(maps.astype(np.float32), lungs, [str(i) for i in range(len(maps))], "gradcam")
    assert found is not None
    return found


def test_maps_in_the_lungs_go_with_them() -> None:
    lungs = lungs_of(40)
    found = measured(lungs * 1.0, lungs)
    assert found.inside.value == pytest.approx(1)
    assert found.follows.low > 0.1
    assert found.even.value == pytest.approx(0.1)


def test_an_even_map_has_the_share_of_the_lungs() -> None:
    lungs = lungs_of(30)
    found = measured(np.ones(lungs.shape), lungs)
    assert found.inside.value == pytest.approx(found.even.value)
    assert found.follows.low <= 1e-6


def test_a_constant_hotspot_is_seen() -> None:
    lungs = lungs_of(40)
    maps = np.zeros(lungs.shape)
    maps[:, :9, :9] = 1
    maps += RNG.random(maps.shape) * 0.01
    found = measured(maps, lungs)
    assert found.constant > 0.95
    assert found.hotspot == 0
    assert found.follows.low <= 0
    assert found.inside.value < 0.2


def test_blank_maps_are_left_out_and_counted() -> None:
    lungs = lungs_of(10)
    maps = lungs * 1.0
    maps[:4] = 0
    found = measured(maps, lungs)
    assert (found.n, found.blank) == (6, 4)
    assert attention(np.zeros((5, 40, 40), np.float32), lungs[:5], list("abcde"), "gradcam") is None


def test_the_sum_of_a_map_does_not_count() -> None:
    lungs = lungs_of(20)
    maps = np.where(np.arange(20)[:, None, None] < 10, lungs, ~lungs) * 1.0
    loud = maps * np.where(np.arange(20) < 10, 100, 1)[:, None, None]
    assert measured(loud, lungs).inside.value == pytest.approx(measured(maps, lungs).inside.value) == 0.5


def test_the_variance_that_the_mean_explains() -> None:
    same = np.repeat(RNG.random((1, 16, 16)), 12, axis=0).astype(np.float32)
    assert explained_by_mean(same) == pytest.approx(1)
    assert explained_by_mean(RNG.random((40, 16, 16)).astype(np.float32)) < 0.1


def test_a_coarse_map_cannot_follow_the_lungs() -> None:
    lungs = lungs_of(20)
    found = [attainable(lungs, places) for places in (1, 4, 10, 40)]
    assert found[0] == pytest.approx(lungs.mean(), abs=1e-6)
    assert found == sorted(found)
    assert found[-1] == pytest.approx(1)
