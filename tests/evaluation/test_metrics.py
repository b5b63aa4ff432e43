"""Every figure against scikit-learn, by hand, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from pneumoscope.errors import DataError
from pneumoscope.evaluation.metrics import METRICS, evaluate_predictions, subtype_metrics
from pneumoscope.statistics.auc import auroc_estimate
from pneumoscope.statistics.cohort import cohort
from pneumoscope.statistics.proportions import proportion
from pneumoscope.statistics.rates import COUNTED, confusion
from pneumoscope.statistics.reliability import equal_mass_bins

ONE_CLASS = "undefined: only one class present"


def sample(n=300, seed=0, slope=1.0, per_patient=1):
    rng = np.random.default_rng(seed)
    logit = rng.normal(0.3, 1.5, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-slope * logit))).astype(int)
    patients = [f"p{i // per_patient}" for i in range(n)]
    return y, 1 / (1 + np.exp(-logit)), patients


def values(found):
    return {name: estimate.value for name, estimate in found.items()}


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_scikit_learn(seed):
    y, p, patients = sample(seed=seed)
    threshold = 0.35 + 0.1 * seed
    called = p >= threshold
    found = evaluate_predictions(y, p, patients, threshold, resamples=20)
    assert tuple(found) == METRICS
    assert values(found) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(y, called),
            "balanced_accuracy": sk.balanced_accuracy_score(y, called),
            "precision": sk.precision_score(y, called),
            "recall": sk.recall_score(y, called),
            "specificity": sk.recall_score(y, called, pos_label=0),
            "f1": sk.f1_score(y, called),
            "auroc": sk.roc_auc_score(y, p),
            "auprc": sk.average_precision_score(y, p),
            "brier": sk.brier_score_loss(y, p),
            "ece": ece_from_calibration_curve(y, p),
            "npv": sk.precision_score(y, called, pos_label=0),
            "mcc": sk.matthews_corrcoef(y, called),
        },
        abs=1e-12,
    )


def ece_from_calibration_curve(y, p):
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy="quantile")
    edges = np.percentile(p, np.linspace(0, 100, 11))
    sizes = np.bincount(np.searchsorted(edges[1:-1], p), minlength=10)
    return float(np.sum(sizes[sizes > 0] * np.abs(observed - predicted)) / len(y))


def test_by_hand():
    y, p = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1], [0.1, 0.2, 0.5, 0.9, 0.5, 0.6, 0.7, 0.8, 0.9, 0.4]
    found = values(evaluate_predictions(y, p, list("abcdefghij"), 0.5, resamples=10))
    assert confusion(y, np.array(p) >= 0.5) == {"tn": 2, "fp": 2, "fn": 1, "tp": 5}  # 0.5 is called positive
    assert found["accuracy"] == pytest.approx(7 / 10)
    assert found["balanced_accuracy"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert found["precision"] == pytest.approx(5 / 7)
    assert found["npv"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(10 / 13)
    assert found["mcc"] == pytest.approx((5 * 2 - 2 * 1) / math.sqrt(7 * 6 * 4 * 3))
    assert found["auroc"] == pytest.approx((4 * 6 - (0.5 + 1) - (1 + 1 + 1 + 1 + 0.5 + 1)) / 24)


def test_confusion_follows_scikit_learn_and_refuses_probabilities():
    y, p, _ = sample()
    tn, fp, fn, tp = sk.confusion_matrix(y, p > 0.4).ravel()
    assert confusion(y, p > 0.4) == {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    assert confusion([1], [1]) == {"tn": 0, "fp": 0, "fn": 0, "tp": 1}
    with pytest.raises(DataError):
        confusion(y, p)


def test_the_auroc_interval_follows_the_patients():
    y, p, patients = sample(per_patient=1)
    single = evaluate_predictions(y, p, patients, 0.5, resamples=10)["auroc"]
    reference = auroc_estimate(cohort(y, p))
    assert (single.low, single.high) == pytest.approx((reference.low, reference.high))
    y, p, patients = sample(per_patient=3)
    several = evaluate_predictions(y, p, patients, 0.5, resamples=10)["auroc"]
    assert several == auroc_estimate(cohort(y, p, patients))
    assert several.method.startswith("Obuchowski")


def test_intervals_are_those_of_a_plain_loop_over_patients():
    y, p, patients = sample(n=120, per_patient=3)
    found = evaluate_predictions(y, p, patients, 0.5, resamples=3000, seed=1)
    rng = np.random.default_rng(9)
    groups = np.arange(120).reshape(40, 3)
    loop = []
    for _ in range(500):
        rows = groups[rng.integers(0, 40, 40)].ravel()
        called = p[rows] >= 0.5
        loop.append(
            [
                sk.f1_score(y[rows], called),
                sk.matthews_corrcoef(y[rows], called),
                sk.average_precision_score(y[rows], p[rows]),
                sk.brier_score_loss(y[rows], p[rows]),
            ]
        )
    expected = np.quantile(loop, [0.025, 0.975], axis=0).T
    for name, (low, high) in zip(("f1", "mcc", "auprc", "brier"), expected, strict=True):
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=0.2 * (high - low))


@pytest.mark.slow
@pytest.mark.parametrize(("slope", "truth"), [(1.0, 0.0), (0.5, None)])
def test_the_ece_interval_covers_also_a_perfectly_calibrated_classifier(slope, truth):
    if truth is None:
        logit = np.random.default_rng(0).normal(0.3, 1.5, 400_000)
        gap = 1 / (1 + np.exp(-slope * logit)) - 1 / (1 + np.exp(-logit))
        truth = np.mean(np.abs(gap.copy()[np.argsort(logit)].reshape(10, -1).mean(axis=1)))
    covered = 0
    for seed in range(200):
        y, p, patients = sample(n=400, seed=seed, slope=slope)
        found = evaluate_predictions(y, p, patients, 0.5, resamples=400, seed=seed)["ece"]
        covered += found.low <= truth <= found.high
    assert covered >= 182  # 95 % less three standard errors


def test_no_error_is_not_taken_for_certainty():
    y = np.repeat([0, 1], [12, 8])
    found = evaluate_predictions(y, 0.1 + 0.8 * y, [f"p{i}" for i in range(20)], 0.5, resamples=200)
    assert found["recall"].value == 1
    assert found["recall"].low == pytest.approx(8 / (8 + 1.959963984540054**2))
    assert found["specificity"].low == pytest.approx(12 / (12 + 1.959963984540054**2))
    for name in ("accuracy", "balanced_accuracy", "precision", "f1", "npv", "mcc", "auroc"):
        assert found[name].low < 0.9 < found[name].high == 1, name
    assert "Wilson" in found["mcc"].method
    assert math.isnan(found["auprc"].low)
    assert "do not vary" in found["auprc"].method


def test_one_perfect_rate_widens_what_depends_on_it():
    y = np.repeat([0, 1], [40, 10])
    p = np.concatenate([np.full(30, 0.1), np.full(10, 0.7), np.full(10, 0.8)])
    found = evaluate_predictions(y, p, [f"p{i}" for i in range(50)], 0.5, resamples=500)
    low = 10 / (10 + 1.959963984540054**2)
    assert found["recall"].low == pytest.approx(low)
    wilson = proportion(y[p < 0.5] == 0, np.arange(30)).low
    assert found["npv"].low == pytest.approx(min(wilson, 30 / (30 + 10 * (1 - low))))
    assert found["balanced_accuracy"].low <= (low + 0.75) / 2


@pytest.mark.parametrize(("label", "rate"), [(0, "specificity"), (1, "recall")])
def test_one_class_leaves_only_what_it_can_show(label, rate):
    p = np.linspace(0.05, 0.95, 30)
    found = evaluate_predictions(np.full(30, label), p, [str(i) for i in range(30)], 0.4, resamples=50)
    defined = {"accuracy", "brier", "ece", rate}
    for name, estimate in found.items():
        if name in defined:
            assert estimate.low <= estimate.value <= estimate.high
        else:
            assert math.isnan(estimate.value)
            assert estimate.method == ONE_CLASS
    assert found[rate].value == found["accuracy"].value


def test_what_is_undefined_says_why():
    y, _, patients = sample(n=40)
    found = evaluate_predictions(y, np.full(40, 0.2), patients, 0.5, resamples=50)
    assert (found["recall"].value, found["f1"].value, found["specificity"].value) == (0, 0, 1)
    assert found["auroc"].value == 0.5
    assert found["precision"].method == "undefined: no image is called positive"
    assert found["mcc"].method == "undefined: all images are called alike"
    assert math.isnan(found["precision"].value)
    every = evaluate_predictions(y, np.full(40, 0.8), patients, 0.5, resamples=50)
    assert every["npv"].method == "undefined: no image is called negative"


def test_a_single_patient_gives_no_false_interval():
    found = evaluate_predictions([0, 1, 1, 0], [0.2, 0.7, 0.4, 0.6], ["a"] * 4, 0.5, resamples=50)
    assert found["accuracy"].value == 0.5
    assert math.isnan(found["accuracy"].low)
    assert found["auroc"].low < 0.1


@pytest.mark.parametrize("p", [[0.1, 1.2], [-0.1, 0.3], [0.1, math.nan], [0.1]])
def test_bad_probabilities_are_refused(p):
    with pytest.raises(DataError):
        evaluate_predictions([0, 1], p, ["a", "b"], 0.5)


def test_subtypes_are_the_same_figures_at_one_half():
    y, p, patients = sample(per_patient=2)
    found = subtype_metrics(y, p, patients, seed=4, resamples=60)
    reference = evaluate_predictions(y, p, patients, 0.5, seed=4, resamples=60)
    assert found == {name: reference[name] for name in ("auroc", "accuracy", "balanced_accuracy")}
    alone = subtype_metrics([1, 1], [0.3, 0.8], ["a", "b"], resamples=20)
    assert alone["auroc"].method == ONE_CLASS


rows = st.lists(st.tuples(st.booleans(), st.integers(0, 10), st.integers(0, 5)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(0, 10), st.randoms(use_true_random=False))
def test_any_input_gives_ordered_estimates_whatever_the_order_of_images(table, cut, random):
    y, p, patients = (np.array(column) for column in zip(*table, strict=True))
    found = evaluate_predictions(y, p / 10, patients, cut / 10, resamples=40)
    order = random.sample(range(y.size), y.size)
    again = evaluate_predictions(y[order], p[order] / 10, patients[order], cut / 10, resamples=40)
    for name, estimate in found.items():
        lowest = -1 if name == "mcc" else 0
        if not math.isnan(estimate.low):
            assert lowest - 1e-9 <= estimate.low <= estimate.high <= 1 + 1e-9
        if math.isnan(estimate.value):
            assert math.isnan(estimate.low)
            assert estimate.method.startswith("undefined")
        other = again[name]
        assert (other.value, other.low, other.high) == pytest.approx(
            (estimate.value, estimate.low, estimate.high), abs=1e-9, nan_ok=True
        )


def test_bins_hold_equal_shares_and_keep_ties_together():
    p = np.random.default_rng(0).random(1000)
    assert np.bincount(equal_mass_bins(p)).tolist() == pytest.approx([100] * 10, abs=1)
    assert len(set(equal_mass_bins(np.full(50, 0.3)))) == 1


def test_intervals_of_proportions_are_as_wide_as_wilsons():
    """One error among 116: resampling alone would say .972 to 1.0 and cover too seldom."""
    y = np.repeat([0, 1], [116, 300])
    p = np.concatenate([np.full(115, 0.1), [0.9], np.full(280, 0.9), np.full(20, 0.1)])
    found = evaluate_predictions(y, p, [f"p{i}" for i in range(y.size)], 0.5, resamples=500)
    expected = proportion(p[:116] < 0.5, np.arange(116))
    assert found["specificity"].low <= expected.low + 1e-12
    assert found["specificity"].low < 0.96
    assert "Wilson" in found["specificity"].method
    assert all(found[name].low <= found[name].value <= found[name].high for name in COUNTED)
