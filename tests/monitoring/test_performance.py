"""Figures from chosen labels: right where a design chose them, said to be no sample where nobody did."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support import monitored
from tests.support.monitored import entries, facts, fill

from pneumoscope.monitoring.labels import labels_of
from pneumoscope.monitoring.performance import begg_greenes, estimated, figures, weighted_share
from pneumoscope.monitoring.stream import Stream, as_rows
from pneumoscope.statistics.proportions import proportion


def test_equal_weights_give_the_plain_share() -> None:
    rng = np.random.default_rng(0)
    success, patients = rng.random(300) < 0.8, rng.integers(0, 120, 300)
    ours, plain = weighted_share(success, np.full(300, 4.0), patients), proportion(success, patients)
    assert ours.value == pytest.approx(plain.value)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high), abs=0.003)


def test_weights_undo_the_choice() -> None:
    covered, values, naive = 0, [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        called = rng.random(8_000) < 0.9  # of images with pneumonia: sensitivity .9
        chance = np.where(called, 1.0, 0.1)
        asked = rng.random(8_000) < chance
        estimate = weighted_share(called[asked], 1 / chance[asked], np.flatnonzero(asked))
        covered += estimate.low <= 0.9 <= estimate.high
        values.append(estimate.value)
        naive.append(called[asked].mean())
    assert np.mean(values) == pytest.approx(0.9, abs=0.003)
    assert np.mean(naive) > 0.98, "who believes the chosen labels is flattered"
    assert covered >= 183


def test_labels_without_a_design_are_no_sample(tmp_path) -> None:  # type: ignore[no-untyped-def]
    drawn = facts(400, 1, abstain=0.0)
    journal = fill(tmp_path / "j.sqlite", entries(drawn))
    journal.append_labels(monitored.labels(drawn))
    labels = labels_of(Stream(tmp_path / "j.sqlite"), monitored.BUNDLE)
    found = figures(labels)
    assert len(labels) == 400
    assert "not a sample" in found["note"]
    assert found["sensitivity"]["value"] == pytest.approx((drawn["probability"][drawn["truth"]] >= 0.5).mean())
    assert found["sensitivity"]["ci95"][0] < found["sensitivity"]["value"] < found["sensitivity"]["ci95"][1]


def test_begg_and_greenes_correct_for_what_was_called(tmp_path) -> None:  # type: ignore[no-untyped-def]
    drawn = facts(3_000, 2, abstain=0.0)
    called = drawn["probability"] >= 0.5
    fill(tmp_path / "j.sqlite", entries(drawn))
    chosen = [label for i, label in enumerate(monitored.labels(drawn)) if called[i] or i % 5 == 0]
    fill(tmp_path / "j.sqlite").append_labels(chosen)
    judged = labels_of(Stream(tmp_path / "j.sqlite"), monitored.BUNDLE)
    true = called[drawn["truth"]].mean()
    corrected = begg_greenes(judged, float(called.mean()))["sensitivity"]
    assert corrected is not None
    assert abs(corrected - true) < 0.03 < figures(judged)["sensitivity"]["value"] - true + 0.03


def test_scores_estimate_themselves_and_do_not_see_turned_labels() -> None:
    rows = facts(2_000, 3, abstain=0.0)
    found = estimated(as_rows(rows))
    assert "Without labels" in found["blind"]
    assert found == estimated(as_rows(rows | {"truth": ~rows["truth"]}))
