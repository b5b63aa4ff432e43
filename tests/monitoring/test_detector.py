"""One contract for all detectors: quiet where nothing moved, loud where it did, the same however often stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.support import monitored

from pneumoscope.errors import ConfigError
from pneumoscope.monitoring.detector import SHARES, Budget
from pneumoscope.monitoring.errors import Errors
from pneumoscope.monitoring.labels import Judged
from pneumoscope.monitoring.sequential import Sequential
from pneumoscope.monitoring.windows import Windows

MAKES: dict[str, Callable[..., Any]] = {"windows": Windows, "sequential": Sequential, "errors": Errors}
BUDGET = Budget(images_a_year=14_600, labels_a_year=2_000)


@pytest.fixture(scope="module")
def usual() -> Any:
    return monitored.reference()


def judged(n: int, seed: int, wrong: float) -> Judged:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.5
    called = positive ^ (rng.random(n) < wrong)
    at = np.datetime64("2026-01-01", "ms") + np.arange(n) * np.timedelta64(36, "m")
    names = np.arange(n).astype(str)
    nothing = np.full(n, np.nan)
    return Judged(
        np.arange(1, n + 1), at, at, called, positive, nothing, nothing, names, names, np.ones(n, bool), names, {}
    )


def feed(name: str, n: int, seed: int, *, moved: bool) -> Any:
    if name == "errors":
        return judged(n, seed, 0.25 if moved else 0.03)
    return monitored.rows(n, seed, bright=1.0 if moved else 0.0)


@pytest.mark.parametrize("name", MAKES)
def test_where_nothing_moved_there_is_no_alarm(name: str, usual: Any) -> None:
    found = [MAKES[name](usual, BUDGET).step(feed(name, 2_000, seed, moved=False)) for seed in range(1, 4)]
    assert found == [[], [], []]


@pytest.mark.parametrize("name", MAKES)
def test_where_something_moved_it_is_named(name: str, usual: Any) -> None:
    found = MAKES[name](usual, BUDGET).step(feed(name, 500, 4, moved=True))
    assert found
    assert found[0].family == ("truth" if name == "errors" else "acquisition")
    assert found[0].streams[0] in ("missed", "false") if name == "errors" else found[0].streams[0] == "mean"


@pytest.mark.parametrize("name", MAKES)
def test_stopping_and_going_on_changes_nothing(name: str, usual: Any) -> None:
    rows = feed(name, 900, 5, moved=True)
    whole = MAKES[name](usual, BUDGET)
    expected = whole.step(rows)
    assert expected
    for seed in range(4):
        cuts = np.sort(np.random.default_rng(seed).choice(np.arange(1, 900), 6, replace=False))
        detector, found = MAKES[name](usual, BUDGET), []
        for first, last in zip([0, *cuts], [*cuts, 900], strict=True):
            kept = json.loads(json.dumps(detector.state()))
            detector = MAKES[name](usual, BUDGET, kept)  # as after kill -9
            start = int(np.searchsorted(rows.row, detector.after, side="right"))
            assert start <= first, "rows behind its `after` are read again, none is missed"
            found += detector.step(rows.take(slice(start, int(last))))
        assert found == expected
        assert detector.state() == whole.state()


@pytest.mark.parametrize("name", MAKES)
def test_pieces_of_any_size_are_one_stream(name: str, usual: Any) -> None:
    rows = feed(name, 700, 6, moved=True)
    detector, found = MAKES[name](usual, BUDGET), []
    for first in range(0, 700, 37):
        found += detector.step(rows.take(slice(first, first + 37)))
        assert detector.step(rows.take(slice(first, first + 37))) == [], "the same rows again are ignored"
    assert found == MAKES[name](usual, BUDGET).step(rows)


def test_one_budget_is_divided_among_all() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)
    budget = Budget(alarms_per_year=2, images_a_year=14_600, labels_a_year=1_000)
    windows = 14_600 / budget.window
    assert windows * budget.alpha(0) == pytest.approx(2 * SHARES["windows"])
    assert 12 * 14_600 / budget.sequential(12) == pytest.approx(2 * SHARES["sequential"])
    assert 1_000 / budget.errors == pytest.approx(2 * SHARES["errors"])
    assert budget.alpha(200) < budget.alpha(0), "more windows than planned share the same budget"


def test_a_busy_site_has_larger_windows_not_more_than_days() -> None:
    budget = Budget(images_a_year=10_000_000)
    assert 10_000_000 / budget.window <= 366


@pytest.mark.parametrize("wrong", [{"alarms_per_year": 0}, {"size": 10}, {"images_a_year": 0}])
def test_a_budget_that_cannot_be_spent_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Budget(**wrong)
