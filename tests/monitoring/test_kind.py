"""The kind of shift, where it is known: none, another share of pneumonia, other images, both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support import monitored

from pneumoscope.monitoring.kind import COVARIATE, MIXED, NONE, PREVALENCE, UNDECIDED, changed_at, diagnose, pulling
from pneumoscope.monitoring.reference import fit
from pneumoscope.monitoring.stream import as_rows


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("moved", "kind"),
    [
        ({}, NONE),
        ({"ill": 0.65}, PREVALENCE),
        ({"axis": 0.8}, COVARIATE),
        ({"bright": 0.8}, COVARIATE),
        ({"ill": 0.65, "axis": 0.8}, MIXED),
        ({"abstain": 0.15}, COVARIATE),
    ],
    ids=str,
)
def test_the_kind_is_right(moved: dict[str, Any], kind: str, labelled: bool) -> None:
    usual = monitored.reference(600, 1, labelled=labelled)
    found = [diagnose(usual, monitored.rows(500, seed, **moved)).kind for seed in range(2, 5)]
    assert found == [kind] * 3


def test_the_share_is_estimated_with_its_error() -> None:
    found = diagnose(monitored.reference(600, 1), monitored.rows(500, 2, ill=0.65)).prevalence
    low, high = found["ci95"]
    assert low < 0.25 < high
    assert 0.1 < high - low < 0.25
    assert abs(found["bbse"] - found["now"]) < 0.06


def test_what_moved_is_named_and_the_others_too() -> None:
    found = diagnose(monitored.reference(600, 1), monitored.rows(500, 2, bright=0.8))
    assert [item["stream"] for item in found.unexplained] == ["mean"]
    assert "contrast" in found.unmoved
    assert "mean" not in found.unmoved


def test_scores_alone_cannot_tell_why_they_moved() -> None:
    names = ("probability", "logit", "threshold", "abstained", "patient", "bundle", "name", "row", "at")
    few = {name: monitored.facts(600, 1)[name] for name in names}
    usual = fit(as_rows(few), facts={"source": "test"})
    moved = {name: monitored.facts(500, 2, ill=0.65)[name] for name in names}
    found = diagnose(usual, as_rows(moved))
    assert found.kind == UNDECIDED
    assert "cannot be told" in found.note


def test_a_handful_of_images_is_not_judged() -> None:
    found = diagnose(monitored.reference(), monitored.rows(30, 2, bright=3.0))
    assert found.kind == UNDECIDED
    assert "too few" in found.note


def test_the_images_that_pull_most_are_those_that_changed() -> None:
    rows = monitored.facts(200, 1)
    rows["mean"][150:170] += 0.4
    assert set(pulling(monitored.reference(), as_rows(rows), ["mean"])) <= set(range(150, 170))


def test_the_beginning_of_a_change_is_seen() -> None:
    values = np.random.default_rng(0).normal(0, 1, 300)
    values[120:] += 1.5
    assert abs(changed_at(values, 0.0) - 120) <= 5
