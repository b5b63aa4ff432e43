"""What makes an item red."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pneumoscope.audit.conditions import ADDED
from pneumoscope.audit.items import CLEAN, Answered, change_items
from pneumoscope.audit.verdict import AMBER, GREEN, RED


@pytest.mark.parametrize(
    ("masked_tells", "alone_tells", "light"),
    [(0.0, 3.0, RED), (0.0, 0.0, AMBER), (3.0, 0.0, GREEN), (3.0, 3.0, GREEN)],
)
def test_a_hidden_part_is_red_only_where_the_part_alone_tells_too(
    masked_tells: float, alone_tells: float, light: str
) -> None:
    rng = np.random.default_rng(0)
    ill = np.arange(300) % 2 == 1

    def answered(strength: float) -> Answered:
        score = strength * ill + rng.normal(size=300)
        return Answered(score, np.zeros(300, np.bool_))

    clean = answered(3.0)
    found = dict.fromkeys((CLEAN, *ADDED, "border_masked", "border_only"), clean)
    found["corners_masked"] = clean if masked_tells else answered(0.0)
    found["corners_only"] = answered(alone_tells)
    material: Any = SimpleNamespace(
        labels=ill, codes=np.arange(300), patients=[str(n) for n in range(300)], why_no_auroc=lambda: None
    )
    item = next(item for item in change_items(material, found, 0) if item.key == "corners_masked")
    assert item.light == light
    assert ("void" in item.facts) == (light == AMBER)
    assert item.facts["alone"]["value"] == pytest.approx(0.98 if alone_tells else 0.5, abs=0.08)
