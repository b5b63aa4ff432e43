"""Temperature and thresholds: recovery of what was planted, independent optimisers, hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.metrics import roc_curve

from pneumoscope.bundle.calibration import (
    at_prevalence,
    calibrate,
    estimate_prevalence,
    fit_calibration,
    fit_to,
    operating_points,
    pneumonia_logit,
    points_at,
    probabilities,
)
from pneumoscope.errors import DataError
from pneumoscope.statistics.proportions import proportion


def overconfident(classes=3, temperature=2.5, n=20_000, seed=0):
    """Logits that are `temperature` times too large for the labels drawn from them."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (n, classes))
    labels = (rng.random(n)[:, None] > softmax(honest, axis=1).cumsum(axis=1)).sum(axis=1)
    return honest * temperature, (labels > 0).astype(int)


def scored(n=2000, seed=0, per_patient=1, effect=2.0):
    rng = np.random.default_rng(seed)
    y = np.repeat(rng.integers(0, 2, n // per_patient), per_patient)
    shared = np.repeat(rng.normal(size=n // per_patient), per_patient)
    p = expit(effect * (y - 0.5) + 0.8 * shared + 0.6 * rng.normal(size=n))
    return y, p, [f"p{i // per_patient}" for i in range(n)]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_planted_temperature_is_found(classes):
    logits, y = overconfident(classes)
    found = fit_calibration(logits, y)
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    assert found.nll_after < found.nll_before
    assert (found.n, found.note) == (20_000, "")


def test_the_minimum_agrees_with_gradient_descent_on_softmax():
    logits, y = overconfident(n=400, seed=3)
    x, target = torch.tensor(logits), torch.tensor(y, dtype=torch.float64)
    log_t, bias = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimiser = torch.optim.LBFGS([log_t, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        scaled = x / log_t.exp()
        odds = torch.logsumexp(scaled[:, 1:], dim=1) - scaled[:, 0] + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, target)
        loss.backward()
        return loss

    optimiser.step(closure)
    found = fit_calibration(logits, y)
    assert found.temperature == pytest.approx(float(log_t.detach().exp()), rel=1e-4)
    assert found.bias == pytest.approx(float(bias.detach()), abs=1e-4)
    assert found.nll_after == pytest.approx(float(closure().detach()), abs=1e-9)


def test_a_prior_that_training_took_away_comes_back():
    """Class weights move the log-odds by a constant; the bias puts the mean probability back to the share."""
    logits, y = overconfident(n=3000, temperature=1.0)
    keep = (y == 1) | (np.random.default_rng(1).random(y.size) < 0.3)
    logits, y = logits[keep], y[keep]
    found = fit_calibration(logits, y)
    assert found.bias == pytest.approx(-np.log(0.3), abs=0.15)
    probability, viral = probabilities(logits, found.temperature, found.bias)
    assert probability.mean() == pytest.approx(y.mean(), abs=1e-9)
    assert viral == pytest.approx(probabilities(logits, found.temperature)[1])


def test_even_classes_have_a_mean_of_one_half_whatever_their_share():
    logits, y = overconfident(n=3000, temperature=1.0)
    keep = (y == 1) | (np.random.default_rng(1).random(y.size) < 0.3)
    found = fit_calibration(logits[keep], y[keep], even=True)
    probability, _ = probabilities(logits[keep], found.temperature, found.bias)
    assert np.mean([probability[y[keep] == label].mean() for label in (0, 1)]) == pytest.approx(0.5, abs=1e-9)
    # As many of each class, drawn at random, are calibrated alike.
    few = np.flatnonzero(keep & (y == 1))[: (keep & (y == 0)).sum()]
    some = np.concatenate([np.flatnonzero(keep & (y == 0)), few])
    assert found.bias == pytest.approx(fit_calibration(logits[some], y[some]).bias, abs=0.2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=8),
    st.sampled_from([2, 3]),
    st.floats(0.2, 5),
)
def test_probabilities_are_those_of_the_softmax(rows, classes, temperature):
    logits = np.array(rows)[:, :classes]
    expected = softmax(logits / temperature, axis=1)
    pneumonia, viral = probabilities(logits, temperature)
    assert pneumonia == pytest.approx(expected[:, 1:].sum(axis=1), abs=1e-12)
    assert expit(pneumonia_logit(logits / temperature)) == pytest.approx(pneumonia)
    if classes == 2:
        assert viral is None
        assert pneumonia_logit(logits) == pytest.approx(logits[:, 1] - logits[:, 0])
    else:
        given_pneumonia = softmax(logits[:, 1:] / temperature, axis=1)[:, 1]
        assert viral == pytest.approx(given_pneumonia, abs=1e-12)


def test_extreme_logits_stay_finite():
    pneumonia, viral = probabilities([[5000.0, 0.0, -5000.0], [-5000.0, 0.0, 5000.0]], 1.0)
    assert pneumonia.tolist() == [0, 1]
    assert viral.tolist() == [0, 1]


def test_where_temperature_is_not_determined_it_says_so():
    separated = fit_calibration([[2.0, -1.0], [-1.0, 3.0], [0.5, 0.6]], [0, 1, 1])
    assert separated.temperature == 1
    assert "separates" in separated.note
    assert probabilities([[2.0, -1.0], [-1.0, 3.0], [0.5, 0.6]], 1.0, separated.bias)[0].mean() == pytest.approx(2 / 3)
    reversed_labels = fit_calibration([[2.0, -1.0], [-1.0, 3.0]], [1, 0])
    assert reversed_labels.temperature == pytest.approx(20, rel=0.01)
    assert "edge" in reversed_labels.note
    with pytest.raises(DataError, match="normal and pneumonia"):
        fit_calibration([[0.0, 1.0], [1.0, 0.0]], [1, 1])


@pytest.mark.parametrize("logits", [[0.1, 0.2], [[0.1]], [[1.0, 2.0, 3.0, 4.0]], [[np.inf, 0.0]]])
def test_logits_of_another_shape_are_refused(logits):
    with pytest.raises(DataError):
        pneumonia_logit(logits)


@pytest.mark.parametrize("temperature", [0, -1, np.nan])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(DataError):
        probabilities([[0.0, 1.0]], temperature)


def test_operating_points_reach_their_targets_and_no_more():
    y, p, patients = scored(4000)
    points = operating_points(y, p, patients, resamples=200)
    assert set(points) == {"balanced", "triage", "rule-in"}
    triage, rule_in = points["triage"], points["rule-in"]
    assert triage.sensitivity.low >= 0.95
    assert rule_in.specificity.low >= 0.95
    assert triage.note == rule_in.note == ""
    codes = np.arange(len(y))
    stricter = np.sort(p[(y == 1) & (p >= triage.threshold)])[1]  # lose one more image of pneumonia
    assert proportion(p[y == 1] >= stricter, codes[y == 1]).low < 0.95
    laxer = np.sort(p[(y == 0) & (p < rule_in.threshold)])[-1]
    assert proportion(p[y == 0] < laxer, codes[y == 0]).low < 0.95
    for point in points.values():
        assert point.sensitivity.value == pytest.approx(np.mean(p[y == 1] >= point.threshold))
        assert point.specificity.value == pytest.approx(np.mean(p[y == 0] < point.threshold))
        assert point.n == 4000
    assert triage.threshold < points["balanced"].threshold < rule_in.threshold


def test_the_bound_holds_for_clustered_patients():
    y, p, patients = scored(3000, per_patient=3)
    clustered = operating_points(y, p, patients, resamples=50)["triage"]
    naive = operating_points(y, p, [str(i) for i in range(3000)], resamples=50)["triage"]
    assert clustered.threshold < naive.threshold
    assert clustered.sensitivity.method == "Wilson, design effect by patient"


def test_too_few_patients_are_told():
    y, p, patients = scored(60)
    triage = operating_points(y, p, patients, resamples=50)["triage"]
    assert triage.sensitivity.low < 0.95 <= triage.sensitivity.value
    assert f"{y.sum()} patients are too few" in triage.note
    positive = np.sort(p[y == 1])
    one_more = positive[positive >= triage.threshold][1]
    assert np.mean(positive >= one_more) < 0.95


def test_balanced_is_the_middle_of_a_gap_and_near_youden():
    y = np.repeat([0, 1], 50)
    p = np.where(y == 1, 0.8, 0.2)
    assert operating_points(y, p, [str(i) for i in range(100)])["balanced"].threshold == pytest.approx(0.5)
    y, p, patients = scored(5000)
    point = operating_points(y, p, patients, resamples=300)["balanced"]
    fpr, tpr, _ = roc_curve(y, p)
    reached = point.sensitivity.value + point.specificity.value - 1
    assert reached == pytest.approx((tpr - fpr).max(), abs=0.01)
    assert point.threshold == pytest.approx(0.5, abs=0.04)  # the optimum of this symmetric distribution


def test_one_image_does_not_decide_the_balanced_threshold():
    def plain_youden(y, p):
        fpr, tpr, thresholds = roc_curve(y, p, drop_intermediate=False)
        return thresholds[np.argmax(tpr - fpr)]

    smooth, plain = [], []
    for seed in range(40):
        y, p, patients = scored(300, seed=seed)
        smooth.append(operating_points(y, p, patients, seed=seed, resamples=200)["balanced"].threshold)
        plain.append(plain_youden(y, p))
    assert np.std(smooth) < 0.85 * np.std(plain)


@pytest.mark.parametrize("flip", [False, True])
def test_rule_in_is_never_laxer_than_balanced_nor_triage_stricter(flip):
    """One class is far apart from the other and easily reaches its target, which an even loss passes by."""
    rng = np.random.default_rng(2)
    y = np.repeat([0, 1], [100, 400])
    p = expit(np.where(y == 1, rng.normal(5, 1.5, 500), rng.normal(-2, 0.8, 500)))
    if flip:
        y, p = 1 - y, 1 - p
    points = operating_points(y, p, [str(i) for i in range(500)], resamples=50)
    triage, balanced, rule_in = (points[name].threshold for name in ("triage", "balanced", "rule-in"))
    assert triage <= balanced <= rule_in
    assert (rule_in if not flip else triage) == balanced, "where the target alone would have crossed it"


def test_points_are_reproducible_and_blind_to_order():
    y, p, patients = scored(400, per_patient=2)
    order = np.random.default_rng(1).permutation(400)
    one = operating_points(y, p, patients, seed=5, resamples=80)
    two = operating_points(y[order], p[order], np.array(patients)[order], seed=5, resamples=80)
    for name, point in one.items():
        assert two[name].threshold == point.threshold
        assert two[name].sensitivity.low == pytest.approx(point.sensitivity.low)
    assert one["triage"].as_json()["sensitivity"]["ci95"][0] == one["triage"].sensitivity.low


def test_saturated_and_constant_probabilities_keep_thresholds_in_range():
    y = np.repeat([0, 1], 20)
    patients = [str(i) for i in range(40)]
    p = np.concatenate([[0.0] * 15, [1.0] * 5, [1.0] * 20])
    points = operating_points(y, p, patients, resamples=50)
    assert points["balanced"].threshold == 0.5
    assert "no threshold reaches a specificity" in points["rule-in"].note
    neighbours = np.where(y == 1, np.nextafter(0.3, 1), 0.3)
    tight = operating_points(y, neighbours, patients, resamples=50)["balanced"]
    assert (tight.sensitivity.value, tight.specificity.value) == (1, 1)
    constant = operating_points(y, np.full(40, 0.4), patients, resamples=50)
    for point in (*points.values(), *constant.values()):
        assert 0 <= point.threshold <= 1


def test_points_need_both_classes_and_probabilities():
    with pytest.raises(DataError, match="normal and pneumonia"):
        operating_points([1, 1], [0.1, 0.2], ["a", "b"])
    with pytest.raises(DataError, match=r"outside 0\.\.1"):
        operating_points([0, 1], [0.1, 2.0], ["a", "b"])


def drawn_at(prevalence, n=40_000, seed=0):
    """Labels at a prevalence, and the true posterior for whoever believes in .74: two normal densities."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prevalence
    x = rng.normal(np.where(y, 1.0, -1.0), 1.0)
    return y, expit(2 * x + np.log(0.74 / 0.26))


@pytest.mark.parametrize("prevalence", [0.1, 0.4, 0.625, 0.74, 0.95])
def test_the_planted_prevalence_is_estimated(prevalence):
    y, p = drawn_at(prevalence)
    assert estimate_prevalence(p, 0.74) == pytest.approx(y.mean(), abs=0.01)


def test_at_another_prevalence_the_probabilities_are_calibrated_again():
    y, p = drawn_at(0.2)
    moved = at_prevalence(p, 0.74, 0.2)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (moved >= low) & (moved < low + 0.2)
        assert y[inside].mean() == pytest.approx(moved[inside].mean(), abs=0.03)
    assert at_prevalence(p, 0.3, 0.3) == pytest.approx(p, abs=1e-12)
    assert at_prevalence([0.0, 1.0], 0.74, 0.2).tolist() == [0.0, 1.0]


def test_one_class_alone_is_estimated_near_the_end_and_not_at_it():
    assert estimate_prevalence([0.0] * 10, 0.74) == pytest.approx(0.05)
    assert estimate_prevalence([1.0] * 10, 0.74) == pytest.approx(0.95)


@pytest.mark.parametrize(("p", "taught"), [([], 0.5), ([0.5, 1.2], 0.5), ([float("nan")], 0.5), ([0.5], 1.0)])
def test_prevalence_of_nonsense_is_refused(p, taught):
    with pytest.raises(DataError):
        estimate_prevalence(p, taught)


@pytest.mark.parametrize("classes", [2, 3])
def test_another_networks_probabilities_are_repeated(classes):
    logits, _ = overconfident(classes, n=2000)
    wanted = probabilities(logits, 1.7, -0.6)[0]
    found = fit_to(logits, wanted)
    assert (found.temperature, found.bias) == pytest.approx((1.7, -0.6), abs=1e-3)
    assert found.nll_after < found.nll_before


@pytest.mark.parametrize("wanted", [[0.5], [0.5, 1.5], [0.5, float("nan")]])
def test_probabilities_of_other_images_are_refused(wanted):
    with pytest.raises(DataError, match="one probability"):
        fit_to([[0.0, 1.0], [1.0, 0.0]], wanted)


def test_a_threshold_that_is_carried_over_is_measured_here():
    y, p, patients = scored()
    point = points_at({"own": {"threshold": 0.3, "target": 0.9}}, y, p, patients)["own"]
    assert (point.threshold, point.target, point.n, point.carried) == (0.3, 0.9, len(y), True)
    assert not any(own.carried for own in operating_points(y, p, patients, resamples=10).values())
    assert point.sensitivity.value == pytest.approx((p[y == 1] >= 0.3).mean())
    assert point.specificity.value == pytest.approx((p[y == 0] < 0.3).mean())


def test_calibrated_at_equal_shares_balanced_is_a_half_near_youdens_point():
    rng = np.random.default_rng(3)
    y = rng.random(4000) < 0.8
    odds = rng.normal(np.where(y, 2.5, -1.5), 1.6)
    logits = np.stack([-odds / 2, odds / 2], axis=1) * 1.7 + [0.4, -0.4]
    patients = [str(index) for index in range(len(y))]
    fitted, points = calibrate(logits, y, patients, seed=0, even=True)
    assert points["balanced"].threshold == 0.5
    probability = probabilities(logits, fitted.temperature, fitted.bias)[0]
    best = operating_points(y, probability, patients)["balanced"]
    gained = [point.sensitivity.value + point.specificity.value for point in (best, points["balanced"])]
    assert 0 <= gained[0] - gained[1] < 0.02
