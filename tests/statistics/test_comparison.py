"""Paired comparisons against statsmodels, the paired AUROC tests, and simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from pneumoscope.errors import DataError
from pneumoscope.files import plain
from pneumoscope.statistics.auc import paired_auroc
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.comparison import compare, holm, mcnemar


def two_classifiers(seed=0, n=240, per_patient=1, second_noise=1.5):
    rng = np.random.default_rng(seed)
    groups = n // per_patient
    y = np.repeat(rng.integers(0, 2, groups), per_patient)
    shared = np.repeat(rng.normal(size=groups), per_patient)
    a = 1.5 * y + shared + 0.6 * rng.normal(size=n) - 0.7
    b = 1.5 * y + shared + second_noise * rng.normal(size=n) - 0.7
    patients = [f"p{i // per_patient}" for i in range(n)]
    return y, 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b)), patients


def pairs(only_a, only_b, both=30):
    correct_a = np.repeat([True, False, True], [only_a, only_b, both])
    correct_b = np.repeat([False, True, True], [only_a, only_b, both])
    return correct_a, correct_b


def test_values_are_plain_differences():
    y, a, b, patients = two_classifiers()
    found = compare(y, a, b, 0.5, 0.4, patients, resamples=50)
    assert (found.n, found.n_patients) == (240, 240)
    difference = {name: d.estimate.value for name, d in found.differences.items()}
    assert difference == pytest.approx(
        {
            "accuracy": np.mean((a >= 0.5) == y) - np.mean((b >= 0.4) == y),
            "balanced_accuracy": balanced_accuracy_score(y, a >= 0.5) - balanced_accuracy_score(y, b >= 0.4),
            "auroc": roc_auc_score(y, a) - roc_auc_score(y, b),
        }
    )
    reference = paired_auroc(cohort(y, a), cohort(y, b))
    assert (found.auroc.z, found.auroc.p) == pytest.approx((reference.z, reference.p))
    assert found.auroc.difference.method == "DeLong, paired"
    assert (found.mcnemar.only_a - found.mcnemar.only_b) / 240 == pytest.approx(difference["accuracy"])


def test_bootstrap_and_delong_tell_the_same_story():
    y, a, b, patients = two_classifiers(n=600)
    found = compare(y, a, b, 0.5, 0.5, patients, seed=1)
    analytic, resampled = found.auroc.difference, found.differences["auroc"].estimate
    width = analytic.high - analytic.low
    assert (resampled.low, resampled.high) == pytest.approx((analytic.low, analytic.high), abs=0.1 * width)
    assert found.differences["auroc"].p < 0.01
    assert found.auroc.p < 0.01


def test_repeated_patients_are_clustered_everywhere():
    y, a, b, patients = two_classifiers(per_patient=4)
    found = compare(y, a, b, 0.5, 0.5, patients, seed=1, resamples=500)
    assert found.auroc == paired_auroc(cohort(y, a, patients), cohort(y, b, patients))
    assert "clustered" in found.mcnemar.method
    thrice = [np.tile(x, 3) for x in (y, a, b)]
    copies = compare(*thrice, 0.5, 0.5, np.tile(patients, 3), seed=1, resamples=500)
    for name, difference in found.differences.items():
        assert copies.differences[name].estimate.value == pytest.approx(difference.estimate.value)
        assert copies.differences[name].estimate.low == pytest.approx(difference.estimate.low)
        assert copies.differences[name].p == pytest.approx(difference.p)
    assert copies.mcnemar.p == pytest.approx(found.mcnemar.p)
    assert copies.auroc.p == pytest.approx(found.auroc.p)


@pytest.mark.parametrize(("only_a", "only_b"), [(3, 9), (9, 3), (0, 6), (1, 1), (40, 61), (0, 1)])
def test_mcnemar_is_the_exact_test_less_half_the_observed_table(only_a, only_b):
    correct_a, correct_b = pairs(only_a, only_b)
    found = mcnemar(correct_a, correct_b, np.arange(correct_a.size))
    exact = reference_mcnemar([[30, only_a], [only_b, 0]], exact=True).pvalue
    point = stats.binom.pmf(only_a, only_a + only_b, 0.5)
    assert found.p == pytest.approx(1.0 if only_a == only_b else exact - point)
    assert (found.only_a, found.only_b, found.method) == (only_a, only_b, "McNemar, exact, mid-p")


def test_mcnemar_of_equal_classifiers_is_one():
    right = np.array([True, False, True])
    assert mcnemar(right, right, np.arange(3)).p == 1
    assert mcnemar(right, right, np.zeros(3, dtype=int)).p == 1


def test_clustered_mcnemar_is_the_chi_square_where_patients_are_equal_copies():
    correct_a, correct_b = pairs(14, 6)
    patients = np.repeat(np.arange(correct_a.size), 2)
    found = mcnemar(np.repeat(correct_a, 2), np.repeat(correct_b, 2), patients)
    expected = reference_mcnemar([[30, 14], [6, 0]], exact=False, correction=False).pvalue
    assert found.p == pytest.approx(expected)


def test_clustered_mcnemar_counts_images_by_hand():
    # Leads of a per patient: 2 of 2 images, 1 of 4, -1 of 1.
    patients = np.repeat([0, 1, 2], [2, 4, 1])
    lead = np.array([1, 1, 1, 0, 0, 0, -1])
    found = mcnemar(lead == 1, lead == -1, patients)
    assert found.p == pytest.approx(stats.chi2.sf((2 + 1 - 1) ** 2 / (4 + 1 + 1), 1))
    assert (found.only_a, found.only_b) == (3, 1)


def test_clustered_mcnemar_keeps_its_level_where_errors_crowd_in_large_patients():
    """Equal accuracy over images, unequal within patients: the test asks about the images."""
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(120), np.tile([1, 6], 60))
    large = np.bincount(patients)[patients] == 6
    rejected = 0
    for _ in range(400):
        # a is right alone mostly in small patients, b in large ones; over all images equally often
        only_a, only_b = rng.random((2, patients.size)) < np.where(large, [[0.05], [0.1]], [[0.35], [0.05]])
        rejected += mcnemar(only_a & ~only_b, only_b & ~only_a, patients).p < 0.05
    assert rejected / 400 < 0.09


def test_holm_is_that_of_statsmodels():
    p = np.random.default_rng(0).random(12) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert holm([]).size == 0
    assert holm([0.9, 0.8]).tolist() == [1, 1]


def test_a_classifier_does_not_differ_from_itself():
    y, a, _, patients = two_classifiers()
    found = compare(y, a, a, 0.5, 0.5, patients, resamples=50)
    assert found.mcnemar.p == found.auroc.p == 1
    for difference in found.differences.values():
        assert (difference.estimate.value, difference.p) == (0, 1)
        assert math.isnan(difference.estimate.low)


def test_one_class_compares_accuracy_alone():
    p = np.random.default_rng(0).random(50)
    found = compare(np.zeros(50), p, p[::-1], 0.5, 0.6, [str(i) for i in range(50)], resamples=100)
    assert not math.isnan(found.differences["accuracy"].estimate.low)
    assert found.differences["auroc"].estimate.method == "undefined: only one class present"
    assert math.isnan(found.auroc.p)
    assert math.isnan(found.differences["balanced_accuracy"].p)


def test_it_becomes_json_and_refuses_logits():
    y, a, b, patients = two_classifiers()
    found = compare(y, a, b, 0.5, 0.5, patients, resamples=20)
    difference = found.differences["auroc"].estimate
    text = json.loads(json.dumps(plain(found.as_json()), allow_nan=False))
    assert text["differences"]["auroc"]["ci95"] == [difference.low, difference.high]
    assert text["auroc"]["p"] == found.auroc.p
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        compare(y, a, 3 * b, 0.5, 0.5, patients)


@pytest.mark.slow
def test_the_clustered_tests_keep_their_level():
    rejected = {"accuracy": 0, "auroc": 0, "mcnemar": 0, "obuchowski": 0}
    for seed in range(300):
        y, a, b, patients = two_classifiers(seed=seed, n=300, per_patient=3, second_noise=0.6)
        found = compare(y, a, b, 0.5, 0.5, patients, seed=seed, resamples=300)
        for name in ("accuracy", "auroc"):
            rejected[name] += found.differences[name].p < 0.05
        rejected["mcnemar"] += found.mcnemar.p < 0.05
        rejected["obuchowski"] += found.auroc.p < 0.05
    for name, count in rejected.items():
        assert 3 <= count <= 27, name  # 15 expected, within three standard errors
