"""What makes an item red."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pneumoscope.shortcuts.conditions import ADDED
from pneumoscope.shortcuts.items import CLEAN, Answer, change_items, taken_share
from pneumoscope.shortcuts.verdict import AMBER, GREEN, RED

ILL = np.arange(300) % 2 == 1
NOISE = np.repeat(np.random.default_rng(0).normal(size=150), 2)  # the same in both classes


@pytest.mark.parametrize(
    ("distance", "noise", "light", "taken"), [(3.0, 1.0, GREEN, 0.0), (3.0, 6.0, AMBER, 0.0), (0.6, 1.0, RED, 0.8)]
)
def test_a_hidden_part_is_red_only_where_it_sets_the_classes_apart(
    distance: float, noise: float, light: str, taken: float
) -> None:
    def answered(distance: float, noise: float) -> Answer:
        return Answer(distance * ILL + noise * NOISE, np.zeros(300, np.bool_))

    found = dict.fromkeys((CLEAN, *ADDED, "border_masked"), answered(3.0, 1.0))
    found["corners_masked"] = answered(distance, noise)
    material: Any = SimpleNamespace(
        labels=ILL, codes=np.arange(300), patients=[str(n) for n in range(300)], auroc_fault=lambda: None
    )
    item = next(item for item in change_items(material, found, 0) if item.key == "corners_masked")
    assert item.light == light
    assert ("void" in item.facts) == (light == AMBER)
    assert item.facts["taken"]["value"] == pytest.approx(taken, abs=0.01)


def test_the_share_that_is_taken() -> None:
    clean = np.where(ILL, 2.0, -2.0)
    for share in (0.0, 0.25, 1.0):
        found = taken_share(ILL, clean, (1 - share) * clean + 5, np.arange(300), 0)
        assert (found.value, found.low, found.high) == pytest.approx((share, share, share))
