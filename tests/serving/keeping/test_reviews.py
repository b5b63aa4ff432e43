"""The sample that readers are asked about: its probabilities are those with which it is really drawn."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from tests.support.databases import DATABASES
from tests.support.gateway import chest
from tests.support.web import WebApp, answer, asked, bring, opened, yesterdays

from pneumoscope.serving.keeping.erasure import erase_patient
from pneumoscope.serving.keeping.retention import sweep
from pneumoscope.serving.keeping.reviews import AGAIN, STRATA, Unit, allocate, draw, draw_days
from pneumoscope.serving.settings.gateway import Review as Design
from pneumoscope.serving.store.database import now
from pneumoscope.serving.store.tables import Image, Result, Review, Sampled
from pneumoscope.serving.store.tables import Job as JobRow

UNITS = [Unit(n, None if n < 4 else (n - 4) / 60, 0.4) for n in range(64)]


@given(st.dictionaries(st.sampled_from(STRATA), st.integers(1, 30), min_size=1), st.integers(1, 60))
def test_an_allocation_is_alike_and_complete(sizes: dict[str, int], count: int) -> None:
    drawn = allocate(sizes, count)
    assert sum(drawn.values()) == min(count, sum(sizes.values()))
    assert all(drawn[name] <= sizes[name] for name in sizes)
    unfilled = [drawn[name] for name in sizes if drawn[name] < sizes[name]]
    assert not unfilled or max(drawn.values()) - min(unfilled) <= 1


@pytest.mark.parametrize("per_day", [3, 11])
def test_each_study_is_drawn_as_often_as_its_probability_says(per_day: int) -> None:
    """Also with fewer than strata; and totals weighted by 1 / probability are unbiased (Horvitz and Thompson 1952)."""
    design, times, draws = Design(per_day=per_day, repeats=0.25), Counter[int](), 3000
    said: dict[int, float] = {}
    weighted, again = [], 0
    for seed in range(draws):
        drawn = draw(UNITS, design, np.random.default_rng(seed))
        assert len(drawn) == per_day
        for item in drawn:
            times[item.unit.result_id] += 1
            assert said.setdefault(item.unit.result_id, item.inclusion) == item.inclusion
        weighted.append(sum((item.unit.probability is None) / item.inclusion for item in drawn))
        again += sum(item.again for item in drawn)
    assert sorted(said) == list(range(64)), "every study may be drawn"
    for result_id, inclusion in said.items():
        assert times[result_id] / draws == pytest.approx(inclusion, abs=5 * np.sqrt(inclusion / draws))
    assert np.mean(weighted) == pytest.approx(4, abs=5 * np.std(weighted) / np.sqrt(draws) + 1e-9)
    assert again / (draws * per_day) == pytest.approx(0.25, abs=0.03)


def test_strata() -> None:
    scores = (None, 0.1, 0.3, 0.5, 0.8)
    assert tuple(Unit(0, score, 0.4).stratum for score in scores) == STRATA


@pytest.mark.parametrize("web", DATABASES, indirect=True)
def test_a_day_is_drawn_once(web: WebApp) -> None:
    yesterdays(web, 12)
    with_two = bring(web, chest(StudyInstanceUID="1.2.3", PatientID="p3"))
    answer(web, with_two, 0.99, created_at=now() - timedelta(days=1))
    answer(web, bring(web, chest(StudyInstanceUID="1.2.99")), 0.5)  # today: not drawn yet
    design = Design(per_day=20, repeats=1)
    assert draw_days(web.store, design) == 12, "whole studies, of yesterday"
    assert draw_days(web.store, design) == 0
    first, second = asked(web)[:12], asked(web)[12:]
    assert {inclusion for _, _, inclusion in first} == {1.0}
    assert sorted(result for result, _, _ in first) == sorted(result for result, _, _ in second)
    assert all(sample.endswith(AGAIN) for _, sample, _ in second)
    with web.store.read() as session:
        (sampled,) = session.scalars(select(Sampled))
        assert sum(total for total, _ in sampled.strata["studies"].values()) == 12
        best = session.scalar(select(Result.id).join(JobRow).where(JobRow.image_id == with_two))
    assert best in [result for result, _, _ in first], "a study stands by its highest score"


def test_the_seed_decides(web: WebApp) -> None:
    yesterdays(web, 12)
    found = []
    for seed in (1, 1, 2):
        draw_days(web.store, Design(per_day=5, repeats=0, seed=seed))
        found.append([result for result, _, _ in asked(web)])
        with web.store.write() as session:
            for row in (*session.scalars(select(Review)), *session.scalars(select(Sampled))):
                session.delete(row)
    assert found[0] == found[1] != found[2]


def test_retention_keeps_what_a_review_asks_for_and_erasure_does_not(tmp_path: Path, with_users: Path) -> None:
    with opened(tmp_path, with_users, retention={"images": 1, "jobs": 1}, destination=()) as web:
        yesterdays(web, 2)
        draw_days(web.store, Design(per_day=1, repeats=0))
        with web.store.write() as session:
            for job in session.scalars(select(JobRow)):
                job.ended_at = now() - timedelta(days=9)
        sweep(web.config, web.store)
        with web.store.read() as session:
            (kept,) = session.scalars(select(Image).where(Image.file.is_not(None)))
            assert (
                kept.id
                in session.scalars(
                    select(JobRow.image_id).join(Result).join(Review, Review.result_id == Result.id)
                ).all()
            )
            patient = str(kept.patient_id)
        assert erase_patient(web.config, web.store, patient).images == 1
        assert asked(web) == []
