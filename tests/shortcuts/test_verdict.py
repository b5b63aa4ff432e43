"""Lights follow from whole intervals."""

from __future__ import annotations

import math

import pytest

from pneumoscope.records import Estimate
from pneumoscope.shortcuts.verdict import AMBER, GREEN, NOT_TESTED, RED, at_least, at_most, hotspot, never_red, worst


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, "made up")


@pytest.mark.parametrize(
    ("low", "high", "light"),
    [(0.1, 0.4, GREEN), (0.1, 0.5, GREEN), (0.4, 0.6, AMBER), (0.5, 0.7, AMBER), (0.51, 0.9, RED)],
)
def test_at_most(low: float, high: float, light: str) -> None:
    assert at_most(estimate((low + high) / 2, low, high), 0.5) == light


def test_an_unknown_interval_is_no_clean_bill() -> None:
    assert at_most(estimate(0.1, math.nan, math.nan), 0.5) == AMBER


@pytest.mark.parametrize(("value", "light"), [(0.6, GREEN), (0.59, AMBER), (0.5, AMBER), (0.49, RED)])
def test_at_least(value: float, light: str) -> None:
    assert at_least(estimate(value, 0, 1), 0.6, 0.5) == light


@pytest.mark.parametrize(
    ("low", "inside", "light"), [(0.01, 0.9, GREEN), (-0.01, 0.9, AMBER), (0.01, 0.1, AMBER), (-0.01, 0.1, RED)]
)
def test_a_hotspot_is_red_where_maps_neither_go_with_the_lungs_nor_lie_in_them(
    low: float, inside: float, light: str
) -> None:
    assert hotspot(estimate(low + 0.02, low, low + 0.04), inside) == light


def test_the_worst_is_of_what_was_tested() -> None:
    assert worst([GREEN, RED, AMBER, NOT_TESTED]) == RED
    assert worst([GREEN, AMBER, NOT_TESTED]) == AMBER
    assert worst([GREEN, NOT_TESTED]) == GREEN
    assert worst([NOT_TESTED]) == worst([]) == NOT_TESTED


def test_what_is_on_offer_is_never_red() -> None:
    assert [never_red(light) for light in (GREEN, AMBER, RED, NOT_TESTED)] == [GREEN, AMBER, AMBER, NOT_TESTED]
