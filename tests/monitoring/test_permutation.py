"""The permutation test: exact for correlated images of a patient, blind within its margin, not fooled by few."""

from __future__ import annotations

import numpy as np
from scipy import stats

from pneumoscope.monitoring.permutation import permuted, sums_of


def drawn(patients: int, each: int, rng: np.random.Generator, columns: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return values whose correlation among images of a patient is .8."""
    own = np.repeat(rng.normal(0, np.sqrt(0.8), (patients, columns)), each, axis=0)
    return own + rng.normal(0, np.sqrt(0.2), own.shape), np.repeat(np.arange(patients), each)


def test_false_alarms_are_as_allowed_where_a_test_by_image_errs() -> None:
    rng, none = np.random.default_rng(1), np.zeros(5)
    ours, naive = 0, 0
    for _ in range(400):
        a, b = drawn(60, 3, rng), drawn(30, 3, rng)
        ours += permuted(sums_of(*a), sums_of(*b), none, 0.05, rng).p <= 0.05
        naive += min(stats.ttest_ind(a[0], b[0]).pvalue) * 5 <= 0.05
    assert ours <= stats.binom.ppf(0.999, 400, 0.05)
    assert naive > stats.binom.ppf(0.999, 400, 0.05), "else this would show nothing"


def test_p_is_the_share_of_divisions_that_are_as_far_apart() -> None:
    rng = np.random.default_rng(2)
    values = np.array([[0.0], [0.1], [0.2], [0.3], [5.0], [5.1]])
    test = permuted(sums_of(values[:4], np.arange(4)), sums_of(values[4:], np.arange(2)), np.zeros(1), 0.01, rng)
    assert 0.03 < test.p < 0.11, "one of fifteen divisions of six patients"
    assert np.allclose([test.reference[0], test.window[0]], [0.15, 5.05])


def test_a_difference_within_the_margin_is_none_however_many_images() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, (20_000, 2)), rng.normal([0.15, 0.3], 1, (20_000, 2))
    test = permuted(sums_of(a, np.arange(20_000)), sums_of(b, np.arange(20_000)), np.array([0.2, 0.2]), 0.01, rng)
    assert test.adjusted[0] == 1
    assert test.adjusted[1] <= 0.01


def test_a_few_wild_images_do_not_hide_behind_their_own_spread() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 1, (800, 20)), rng.normal(0, 1, (250, 20))
    a[:, 0], b[:, 0] = rng.random(800) < 0.002, 0
    b[:12, 0] = 1
    margins = np.array([0.01, *[0.1] * 19])
    test = permuted(sums_of(a, np.arange(800)), sums_of(b, np.arange(250)), margins, 0.0086, rng)
    assert test.p <= 0.0086
    assert int(np.argmax(test.t)) == 0


def test_what_a_side_lacks_is_not_tested() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0, 1, (100, 3)), rng.normal(0, 1, (60, 3))
    b[:, 1] = np.nan
    a[::2, 2] = np.nan
    test = permuted(sums_of(a, np.arange(100)), sums_of(b, np.arange(60)), np.zeros(3), 0.01, rng)
    assert np.isnan(test.window[1])
    assert test.t[1] == 0
    assert abs(test.reference[2] - np.nanmean(a[:, 2])) < 1e-5
