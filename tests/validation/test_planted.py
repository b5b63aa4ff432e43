"""Planted faults are found and named; clean data are left alone. Scores are simulated, calibrated where clean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import special, stats
from tests.support.studies import clean, degraded, marked, shifted

from pneumoscope.data.checks import shortcuts
from pneumoscope.validation.flags import flags
from pneumoscope.validation.flow import UNANSWERED
from pneumoscope.validation.metadata import metadata
from pneumoscope.validation.recalibration import recalibration
from pneumoscope.validation.study import AGE, SITE, Study, figures
from pneumoscope.validation.subgroups import LEAST, subgroups
from pneumoscope.validation.transfer import left_out_sites, transfer, youden

NAMES = (SITE, "sex")


def found_in(study: Study, seed: int = 0, resamples: int = 150) -> list[dict[str, str]]:
    found: dict[str, Any] = {
        "headline": figures(study, seed=seed, resamples=resamples),
        "expected": {},
        "subgroups": subgroups(study, NAMES, seed=seed, resamples=resamples),
        "metadata": metadata(study, seed=seed, resamples=resamples),
    }
    return flags(found)


def changed(study: Study, p: np.ndarray, raw: dict[str, np.ndarray] | None = None) -> Study:
    return Study(study.y, p, study.patients, study.threshold, study.columns, raw or study.raw)


@pytest.mark.parametrize("seed", range(2))
def test_one_group_s_degraded_images_are_found_and_named(seed: int) -> None:
    found = found_in(degraded(seed, 900))
    assert "sex = F" in {flag["where"] for flag in found if flag["kind"] == "gap"}
    assert all("sex" in flag["where"] for flag in found if flag["kind"] == "gap"), "nobody else is accused"
    assert not [flag for flag in found if flag["kind"] == "prevalence"]


@pytest.mark.parametrize("seed", range(2))
def test_one_site_s_other_prevalence_is_found_named_and_matched_away(seed: int) -> None:
    study = shifted(seed, 900)
    found = found_in(study)
    assert "site = C" in {flag["where"] for flag in found if flag["kind"] == "prevalence"}
    gaps = subgroups(study, (SITE,), seed=0, resamples=300)["gaps"]
    here = {gap["figure"]: gap for gap in gaps if gap["group"] == {SITE: "C"}}
    assert here["mean_error"]["gap"]["value"] < -0.05, "probabilities made for one half are too low at 85 %"
    assert abs(here["mean_error"]["matched"]["value"]) < 0.5 * abs(here["mean_error"]["gap"]["value"])
    assert not here["auroc"]["flagged"]
    alone = {one["column"]: one for one in metadata(study, seed=0, resamples=300)["alone"]}
    assert alone[SITE]["auroc"]["value"] > 0.56 > alone["sex"]["auroc"]["value"]


@pytest.mark.parametrize("seed", range(2))
def test_a_marker_in_one_class_of_one_site_is_found_and_named(seed: int) -> None:
    found = found_in(marked(seed, 1500))
    named = {(flag["kind"], flag["where"]) for flag in found}
    assert ("gap", "site = B") in named, "the network does better where the marker is"
    assert ("metadata tells the label", "marker at site B") in named
    assert not any(where == "marker at site A" for _, where in named)


def test_patients_are_divided_once_for_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    study, divided = clean(0, 300), []
    one_site = study.take(study.columns[SITE] == "A")
    one_site = replace(one_site, raw={**one_site.raw, "ward": np.array(list("abc") * one_site.n)[: one_site.n]})
    patient_folds = shortcuts.patient_folds
    monkeypatch.setattr(
        "pneumoscope.validation.metadata.patient_folds", lambda *of: divided.append(of) or patient_folds(*of)
    )
    columns = {entry["column"] for entry in metadata(one_site, seed=0, resamples=20)["alone"]}
    assert {"ward", "all together"} <= columns, "two fits"
    assert len(divided) == 1


def test_clean_data_are_left_alone() -> None:
    runs = 40
    raised = sum(bool(found_in(clean(1000 + seed, 400), seed, resamples=100)) for seed in range(runs))
    assert raised <= stats.binom.ppf(0.999, runs, 0.05)
    assert raised <= 4


@pytest.mark.parametrize(("unanswered", "flagged"), [(40, False), (60, True)])
def test_many_images_without_an_answer_are_flagged(unanswered: int, flagged: bool) -> None:
    found: dict[str, Any] = {
        "flow": {
            "left_out": [
                {"key": "unread", "step": "not analysed by the software", "images": 500},
                {"key": UNANSWERED, "step": "any words", "images": unanswered},
            ]
        },
        "headline": figures(clean(3, 500), seed=0, resamples=50),
        "subgroups": {"gaps": []},
        "metadata": {"within": [], "alone": [], "by_site": []},
    }
    told = [flag for flag in flags(found) if flag["kind"] == "not analysed"]
    assert bool(told) == flagged
    if told:
        assert "60 of 1060 images were any words (6 %)" in told[0]["text"]
        assert told[0]["pointer"] == "/flow/left_out/1/images"


def test_small_cells_are_suppressed_with_the_reason() -> None:
    study = clean(0, 150)
    found = subgroups(study, (SITE, "sex", AGE), seed=0, resamples=50)
    assert found["suppressed"]
    for cell in found["suppressed"]:
        assert "metrics" not in cell
        assert str(LEAST) in cell["suppressed"]
    for cell in found["cells"]:
        assert cell["positives"] >= LEAST
    shown = [cell["group"] for cell in found["cells"] + found["suppressed"]]
    assert {SITE: "A"} in shown
    assert {"sex": "F", AGE: "40 to 64"} in shown


def test_gaps_are_the_differences_of_the_cells() -> None:
    study = clean(2, 900)
    found = subgroups(study, ("sex",), seed=0, resamples=100)
    inside = study.columns["sex"] == "F"
    called = study.p >= 0.5
    gaps = {gap["figure"]: gap for gap in found["gaps"]}
    assert {tuple(gap["group"].items()) for gap in found["gaps"]} == {(("sex", "F"),)}, "the mirror is not tested twice"
    assert gaps["recall"]["gap"]["value"] == pytest.approx(
        called[inside & study.y].mean() - called[~inside & study.y].mean()
    )
    assert gaps["prevalence"]["gap"]["value"] == pytest.approx(study.y[inside].mean() - study.y[~inside].mean())
    cell = next(c for c in found["cells"] if c["group"] == {"sex": "F"})
    assert gaps["auroc"]["here"] == pytest.approx(cell["metrics"]["auroc"]["value"])
    for gap in found["gaps"]:
        low, high = gap["gap"]["ci95"]
        assert low <= gap["gap"]["value"] <= high


def test_the_within_stratum_auroc_counts_pairs_of_one_stratum() -> None:
    study = clean(3, 900, {"C": 0.9, "A": 0.2})
    blurred = 0.5 * special.logit(study.p) + np.random.default_rng(0).normal(size=study.n) * 2
    cued = special.expit(blurred + 2 * (study.columns[SITE] == "C") - 2 * (study.columns[SITE] == "A"))
    found = next(o for o in metadata(changed(study, cued), seed=0, resamples=100)["within"] if o["column"] == SITE)
    wins = pairs = 0.0
    for site in "ABC":
        mask = study.columns[SITE] == site
        a, b = cued[mask & study.y], cued[mask & ~study.y]
        wins += (a[:, None] > b).sum()
        pairs += a.size * b.size
    assert found["auroc"]["value"] == pytest.approx(wins / pairs)
    assert found["flagged"]
    assert found["drop"]["ci95"][0] > 0


def test_recalibration_mends_what_was_broken_and_is_cross_fitted() -> None:
    study = clean(4, 900)
    broken = changed(study, special.expit(3 * special.logit(study.p) + 2))
    found = {m["name"]: m for m in recalibration(broken, 0.5, seed=0, resamples=200)["methods"]}
    for name in ("Platt", "isotonic"):
        assert found[name]["against_shipped"]["log_loss"]["ci95"][1] < 0
        assert found[name]["metrics"]["slope"]["value"] == pytest.approx(1, abs=0.15)
    assert found["temperature"]["metrics"]["log_loss"]["value"] < found["as shipped"]["metrics"]["log_loss"]["value"]
    random = changed(study, np.random.default_rng(0).random(study.n))
    useless = {m["name"]: m for m in recalibration(random, 0.5, seed=0, resamples=100)["methods"]}
    assert useless["isotonic"]["metrics"]["log_loss"]["value"] > 0.69, "a fit that saw its own labels would be lower"


def test_prior_shift_needs_no_labels_and_finds_the_share() -> None:
    study = clean(5, 900, {"A": 0.2, "B": 0.2, "C": 0.2})
    found = recalibration(study, 0.5, seed=0, resamples=200)
    assert found["estimated_prevalence"] == pytest.approx(study.y.mean(), abs=0.03)
    shift = next(m for m in found["methods"] if m["name"] == "prior shift")
    assert shift["against_shipped"]["log_loss"]["ci95"][1] < 0
    assert not shift["labels"]
    assert "prior shift" not in {m["name"] for m in recalibration(study, None, seed=0, resamples=20)["methods"]}


def test_a_local_threshold_is_measured_on_other_patients_and_settles_with_more_labels() -> None:
    study = clean(6, 900)
    shifted = changed(study, special.expit(special.logit(study.p) + 3))
    found = transfer(shifted, seed=0, sizes=(25, 100, 400), draws=60)
    spreads = [step["rules"]["balanced"]["sensitivity"] for step in found["curve"]]
    assert spreads[0]["high"] - spreads[0]["low"] > 1.5 * (spreads[2]["high"] - spreads[2]["low"])
    assert found["labels_needed"]["better_than_frozen"] in (25, 100)
    assert found["frozen"]["specificity"]["value"] < 0.5
    flat = transfer(changed(study, np.random.default_rng(1).random(study.n)), seed=0, sizes=(50,), draws=20)
    assert flat["labels_needed"] == {"better_than_frozen": None, "target_met": None}
    assert flat["why_none"]
    noise = flat["curve"][0]["rules"]["balanced"]
    assert noise["sensitivity"]["median"] + noise["specificity"]["median"] == pytest.approx(1, abs=0.12), "no peeking"


def test_youden_is_the_best_cut() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.random(80) < 0.4, rng.random(80)
    best = max((p[y] >= t).mean() + (p[~y] < t).mean() for t in np.linspace(0, 1, 2001))
    t = youden(y, p)
    assert (p[y] >= t).mean() + (p[~y] < t).mean() == pytest.approx(best)


def test_a_left_out_site_chooses_nothing_for_itself() -> None:
    study = clean(7, 900)
    here = study.columns[SITE] == "C"
    p = np.where(here, special.expit(special.logit(study.p) + 2), study.p)
    found = {s["site"]: s for s in left_out_sites(changed(study, p), seed=0, resamples=100)}
    again = np.where(here, 1 - p, p)  # the site's own scores, turned round, must not move its threshold
    turned = {s["site"]: s for s in left_out_sites(changed(study, again), seed=0, resamples=100)}
    assert found["C"]["from_others"]["threshold"] == turned["C"]["from_others"]["threshold"]
    assert found["C"]["from_others"]["specificity"]["value"] < found["A"]["from_others"]["specificity"]["value"] - 0.1
    assert left_out_sites(study.take(here), seed=0, resamples=20) == []
