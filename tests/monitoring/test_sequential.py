"""Bets: p values are uniform whatever the reference, and the sums reach a threshold no oftener than promised."""

from __future__ import annotations

import numpy as np
from scipy import stats
from tests.support import monitored

from pneumoscope.monitoring import sequential
from pneumoscope.monitoring.detector import Budget


def p_values(streams: int, reference: int, images: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    bag = np.stack(
        [np.bincount(sequential.binned(rng.normal(size=reference)), minlength=sequential.BINS) for _ in range(streams)]
    )
    values = rng.normal(shift, 1, (images, streams))
    uniform = rng.random((images, streams))
    pieces = [
        sequential.ranked(bag, sequential.binned(values[i : i + 100]), uniform[i : i + 100])
        for i in range(0, images, 100)
    ]
    return np.concatenate(pieces)


def test_p_values_are_uniform_and_independent_with_a_tiny_reference() -> None:
    p = p_values(200, 10, 300, 1)
    assert stats.kstest(p.ravel(), "uniform").pvalue > 0.001
    assert abs(np.corrcoef(p[:-1].ravel(), p[1:].ravel())[0, 1]) < 0.02


def test_a_p_value_is_a_rank_with_ties_broken_at_random() -> None:
    bag = np.zeros((1, sequential.BINS), np.int64)
    bag[0, [100, 200, 200, 300]] = [1, 1, 1, 1]
    bag[0, 200] = 2
    p = sequential.ranked(bag, np.array([[200], [200]]), np.array([[0.5], [0.5]]))
    assert p[0, 0] == (1 + 0.5 * 3) / 5
    assert p[1, 0] == (1 + 0.5 * 4) / 6, "the image before is in the bag"


def test_runs_are_at_least_as_long_as_the_threshold() -> None:
    threshold, streams, images = 500, 100, 1_000
    capital, alarms = np.zeros((streams, sequential.BETS.size)), 0
    for row in p_values(streams, 50, images, 2):
        capital = sequential.grown(capital, 1 + sequential.BETS * (row[:, None] - 0.5), np.ones(streams, bool))
        passed = capital.sum(axis=1) >= threshold
        alarms += int(passed.sum())
        capital[passed] = 0
    assert alarms <= streams * images / threshold


def test_only_the_first_image_of_a_patient_is_bet_on() -> None:
    usual = monitored.reference()
    once, thrice = (sequential.Sequential(usual, Budget()) for _ in range(2))
    rows = monitored.rows(300, 3, each=3, bright=3.0)
    first = np.unique(rows.text["patient"], return_index=True)[1]
    assert len(first) == 100
    thrice.step(rows)
    once.step(rows.take(np.sort(first)))
    assert np.array_equal(once.capital, thrice.capital)
