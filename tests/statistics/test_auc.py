"""AUROC and its intervals: pROC's published reference output, brute force, simulation, properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from pneumoscope.errors import DataError
from pneumoscope.statistics.auc import (
    auroc,
    auroc_estimate,
    auroc_interval,
    newcombe_interval,
    paired_auroc,
    ranking,
    weighted_areas,
)
from pneumoscope.statistics.cohort import cohort

Z = 1.959963984540054

# 113 patients with subarachnoid haemorrhage (Turck et al., Intensive Care Med 2010), 41 with a poor outcome:
# the ranks of three markers, derived from the placement values in pROC's own test suite.
POOR = {
    "ndka": "37 24 28 35 3 9 18 43 47 43 43 14 32 39 5 7 30 1 51 39 16 18 22 30 41 26 39 7 49 34 3 12 "
    "39 3 11 43 20 32 45 18 35",
    "wfns": "2 1 3 4 4 4 4 1 4 1 0 1 4 3 3 1 4 4 4 1 4 1 4 1 3 4 3 3 0 3 3 1 1 4 4 1 1 4 4 4 4",
    "s100b": "8 5 11 7 25 30 28 2 19 4 2 23 21 27 30 15 30 30 30 2 30 17 0 4 13 30 15 30 3 15 8 5 6 13 "
    "30 9 30 18 30 30 25",
}
GOOD = {
    "ndka": "0 8 6 17 4 34 4 38 29 38 36 46 10 4 23 4 4 50 25 13 13 38 2 6 4 12 27 6 33 44 6 4 23 10 6 "
    "27 42 40 15 21 48 4 36 13 17 17 33 2 36 23 10 17 38 17 21 6 13 17 42 8 23 26 44 19 23 10 "
    "42 15 31 40 4 29",
    "wfns": "0 0 0 0 4 0 1 1 0 1 1 0 0 0 1 0 1 0 0 2 3 0 3 0 4 4 0 0 1 3 0 0 1 1 0 1 0 1 1 0 0 0 0 1 0 "
    "1 0 0 2 1 3 1 0 3 0 0 4 3 1 1 0 0 0 2 0 1 1 3 3 0 0 0",
    "s100b": "8 9 5 1 26 12 5 5 1 3 1 4 6 2 12 2 6 8 12 1 11 9 20 4 29 26 11 2 24 26 6 3 4 3 1 8 5 9 10 "
    "1 1 4 1 4 3 11 4 3 19 6 16 2 5 18 2 1 14 22 5 10 3 9 5 2 1 12 10 26 12 10 29 27",
}
OUTCOME = np.repeat([1, 0], [41, 72])
MARKER = {name: np.array(f"{POOR[name]} {GOOD[name]}".split(), dtype=float) for name in POOR}


def estimate(*columns):
    """The AUROC of truth, score and, it may be, patients."""
    return auroc_estimate(cohort(*columns))


def compared(y, a, b, *patients):
    return paired_auroc(cohort(y, a, *patients), cohort(y, b, *patients))


def brute_components(y, score):
    """Structural components of DeLong by comparing every pair."""
    positive, negative = score[y == 1], score[y == 0]
    pairs = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return pairs.mean(), pairs.mean(axis=1), pairs.mean(axis=0)


def brute_clustered_variance(y, scores, clusters):
    """Obuchowski 1997 written as sums over clusters, one classifier or the difference of two."""
    parts = [brute_components(y, score) for score in scores]
    sign = [1.0, -1.0]
    keys = np.array(clusters)
    m, n = (y == 1).sum(), (y == 0).sum()
    names = np.unique(keys)
    i10 = len(set(keys[y == 1]))
    i01 = len(set(keys[y == 0]))
    s10 = s01 = s11 = 0.0
    for name in names:
        u = v = 0.0
        for weight, (value, v10, v01) in zip(sign, parts, strict=False):
            mine_p, mine_n = v10[keys[y == 1] == name], v01[keys[y == 0] == name]
            u += weight * (mine_p.sum() - len(mine_p) * value)
            v += weight * (mine_n.sum() - len(mine_n) * value)
        s10 += u * u
        s01 += v * v
        s11 += u * v
    s10 *= i10 / ((i10 - 1) * m)
    s01 *= i01 / ((i01 - 1) * n)
    s11 *= len(names) / (len(names) - 1)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def variance_of(estimate):
    """Recover the variance from an interval on the logit scale."""
    low, high = (np.log(p / (1 - p)) for p in (estimate.low, estimate.high))
    return ((high - low) / (2 * Z) * estimate.value * (1 - estimate.value)) ** 2


def clustered_sample(rng, patients=40, size=3, correlation=0.8, mixed=False):
    cluster = np.repeat(np.arange(patients), size)
    y = rng.integers(0, 2, cluster.size) if mixed else np.repeat(rng.integers(0, 2, patients), size)
    shared, own = rng.normal(size=patients), rng.normal(size=cluster.size)
    score = np.sqrt(correlation) * shared[cluster] + np.sqrt(1 - correlation) * own + 1.5 * y
    return y, score, cluster


@pytest.mark.parametrize(
    ("marker", "value", "variance"),
    [
        ("wfns", 0.823678861788618, 0.00146991470882363),
        ("ndka", 0.611957994579946, 0.0031908105493913),
        ("s100b", 0.731368563685637, 0.00266868245717244),
    ],
)
def test_delong_gives_the_published_variance_of_proc(marker, value, variance):
    found = estimate(OUTCOME, MARKER[marker])
    assert found.value == pytest.approx(value, abs=1e-13)
    assert variance_of(found) == pytest.approx(variance, rel=1e-9)
    assert found.method == "DeLong, logit scale"


@pytest.mark.parametrize(
    ("a", "b", "z", "p", "interval"),
    [
        ("wfns", "s100b", 2.20898359144091, 0.0271757822291882, (0.0104061769564846, 0.174214419249478)),
        ("wfns", "ndka", 2.79777591868904, 0.00514557970691098, (0.0634011709339876, 0.3600405634833566)),
        ("ndka", "s100b", -1.39077002573558, 0.164295175223054, (-0.2876917446341914, 0.0488706064228094)),
    ],
)
def test_delong_paired_gives_the_published_test_of_proc(a, b, z, p, interval):
    found = compared(OUTCOME, MARKER[a], MARKER[b])
    assert found.z == pytest.approx(z, rel=1e-10)
    assert found.p == pytest.approx(p, rel=1e-10)
    assert (found.difference.low, found.difference.high) == pytest.approx(interval, rel=1e-9)
    assert found.auc_a == estimate(OUTCOME, MARKER[a])
    reverse = compared(OUTCOME, MARKER[b], MARKER[a])
    assert (reverse.z, reverse.p) == pytest.approx((-z, p), rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_delong_agrees_with_comparing_every_pair(seed):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat([0, 1], [31, 17]))
    score = rng.integers(0, 9, y.size) + y
    value, v10, v01 = brute_components(y, score)
    found = estimate(y, score)
    assert found.value == pytest.approx(value, abs=1e-13)
    assert variance_of(found) == pytest.approx(v10.var(ddof=1) / 17 + v01.var(ddof=1) / 31, rel=1e-9)


@pytest.mark.parametrize("mixed", [False, True])
def test_obuchowski_agrees_with_sums_over_clusters(mixed):
    rng = np.random.default_rng(3)
    y, score, cluster = clustered_sample(rng, mixed=mixed)
    other = score + rng.normal(size=y.size)
    found = estimate(y, score, cluster)
    assert variance_of(found) == pytest.approx(brute_clustered_variance(y, [score], cluster), rel=1e-9)
    paired = compared(y, score, other, cluster)
    expected = brute_clustered_variance(y, [score, other], cluster)
    assert (paired.difference.value / paired.z) ** 2 == pytest.approx(expected, rel=1e-9)
    assert paired.difference.method == "Obuchowski, paired"


def test_obuchowski_is_delong_where_every_patient_has_one_image():
    rng = np.random.default_rng(4)
    y, score = rng.integers(0, 2, 80), rng.normal(size=80)
    cluster = [f"p{i}" for i in rng.permutation(80)]
    a, b = estimate(y, score), estimate(y, score, cluster)
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12)
    paired = compared(y, score, -score), compared(y, score, -score, cluster)
    assert paired[0].z == pytest.approx(paired[1].z)


def test_images_copied_within_a_patient_add_no_certainty():
    rng = np.random.default_rng(5)
    y, score = rng.integers(0, 2, 60), rng.normal(size=60)
    once = estimate(y, score)
    thrice = estimate(np.tile(y, 3), np.tile(score, 3), np.tile(np.arange(60), 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-12)
    naive = estimate(np.tile(y, 3), np.tile(score, 3))
    assert naive.high - naive.low < 0.65 * (once.high - once.low)


@pytest.mark.slow
def test_the_clustered_interval_covers_and_the_plain_one_does_not():
    rng = np.random.default_rng(6)
    truth = 0.8555778168  # P(N(1.5, 1) > N(0, 1)) = Phi(1.5 / sqrt 2)
    clustered = plain = 0
    for _ in range(1000):
        y, score, cluster = clustered_sample(rng, patients=300)
        a, b = estimate(y, score, cluster), estimate(y, score)
        clustered += a.low <= truth <= a.high
        plain += b.low <= truth <= b.high
    assert 930 <= clustered <= 970
    assert plain < 800


def test_complete_separation_is_bounded_by_independent_pairs():
    y = np.repeat([0, 1], [10, 6])
    found = estimate(y, y * 1.0)
    assert found.value == found.high == 1
    assert found.low == pytest.approx(0.025 ** (1 / 6))
    assert "6 independent pairs" in found.method
    worst = estimate(y, -y)
    assert (worst.value, worst.low) == (0, 0)
    assert worst.high == pytest.approx(1 - 0.025 ** (1 / 6))
    patients = np.repeat([0, 1, 2, 3], 4)  # two patients of normals, one of both, one of pneumonia
    assert estimate(y, y, patients).low == pytest.approx(0.025 ** (1 / 2))


def test_a_constant_score_or_a_single_positive_still_has_an_honest_interval():
    constant = estimate([0, 1, 0, 1, 1, 0], np.full(6, 0.3))
    assert constant.value == 0.5
    assert constant.low < 0.12
    assert constant.high > 0.88
    single = estimate([1, 0, 0, 0], [0.5, 0.1, 0.9, 0.2])
    assert single.value == pytest.approx(2 / 3)
    assert 0 <= single.low < 0.1
    assert 0.9 < single.high <= 1


def test_one_class_is_undefined_not_an_error():
    found = estimate([1, 1, 1], [0.1, 0.2, 0.3])
    assert np.isnan([found.value, found.low, found.high]).all()
    assert found.method == "undefined: only one class present"
    paired = compared([0, 0], [0.1, 0.2], [0.3, 0.1])
    assert np.isnan([paired.z, paired.p, paired.difference.value]).all()
    assert np.isnan(auroc([0, 0], [1, 2]))


def test_identical_rankings_do_not_differ():
    y, score = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8, 0.2])
    found = compared(y, score, score**3)
    assert (found.z, found.p, found.difference.value) == (0, 1, 0)
    opposite = compared(np.repeat([0, 1], 4), np.repeat([0, 1], 4), np.repeat([1, 0], 4))
    assert opposite.difference.value == 1
    assert np.isnan([opposite.z, opposite.p, opposite.difference.low]).all()


@pytest.mark.parametrize(
    ("y", "score"),
    [([], []), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1]), ([0, 1], [0.1, np.nan]), ([[0, 1]], [[0.1, 0.2]])],
)
def test_bad_input_is_refused(y, score):
    with pytest.raises(DataError):
        estimate(y, score)


samples = st.lists(st.tuples(st.booleans(), st.integers(-20, 20), st.integers(0, 4)), min_size=4, max_size=60).filter(
    lambda rows: len({row[0] for row in rows}) == 2
)


@settings(max_examples=150, deadline=None)
@given(samples, st.randoms(use_true_random=False))
def test_what_must_not_change_the_areas(rows, random):
    y, score, cluster = (np.array(column) for column in zip(*rows, strict=True))
    reference = estimate(y, score, cluster)
    assert reference.value == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert auroc(y, score) == reference.value
    assert auroc(y, -score) == pytest.approx(1 - reference.value, abs=1e-12)
    assert auroc(1 - y, -score) == pytest.approx(reference.value, abs=1e-12)
    assert 0 <= reference.low <= reference.value + 1e-12
    assert reference.value - 1e-12 <= reference.high <= 1
    monotone = estimate(y, np.exp(score / 7.0), cluster)
    order = random.sample(range(y.size), y.size)
    shuffled = estimate(y[order], score[order], [f"name {c}" for c in cluster[order]])
    mirrored = estimate(y, -score, cluster)
    for other in (monotone, shuffled):
        assert (other.low, other.high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((reference.low, reference.high), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(samples, st.integers(0, 2**32 - 1))
def test_weights_mean_copies_of_images(rows, seed):
    y, score, _ = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.random.default_rng(seed).integers(0, 4, (3, y.size))
    kept = weights.copy()
    areas = weighted_areas(ranking(score.astype(float)), y, weights)
    assert (weights == kept).all()
    for row, area, average_precision in zip(weights, *areas, strict=True):
        copies_y, copies_score = np.repeat(y, row), np.repeat(score, row)
        if len(set(copies_y)) == 2:
            assert area == pytest.approx(roc_auc_score(copies_y, copies_score), abs=1e-12)
            expected = average_precision_score(copies_y, copies_score)
            assert average_precision == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(area)
            assert np.isnan(average_precision)


def test_newcombe_interval_solves_its_equation_and_never_collapses() -> None:
    for area, m, n in ((0.95, 8, 8), (0.5, 100, 30), (0.83, 134, 388)):
        for end in newcombe_interval(area, m, n):
            size = (m + n) / 2
            variance = end * (1 - end) * (1 + (size - 1) * ((1 - end) / (2 - end) + end / (1 + end))) / (m * n)
            assert abs(end - area) == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)
    low, high = newcombe_interval(1.0, 20, 20)
    assert (0.8 < low < 0.95, high) == (True, 1.0)
    assert newcombe_interval(0.0, 20, 20) == pytest.approx((1 - high, 1 - low))


def test_newcombe_interval_takes_no_level_that_it_would_ignore() -> None:
    with pytest.raises(TypeError):
        newcombe_interval(0.9, 20, 20, 1.645)  # type: ignore[call-arg]


@pytest.mark.slow
def test_auroc_interval_covers_the_truth_with_several_images_per_patient() -> None:
    """Of 200 samples of 100 patients with three alike images each, about 95 % cover AUROC = Phi(1/sqrt 2)."""
    truth, hits = 0.7602499, 0
    groups = np.repeat(np.arange(100), 3)
    y = groups < 50
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=100)[groups] * np.sqrt(0.9) + rng.normal(size=300) * np.sqrt(0.1) + y
        estimate = auroc_interval(y, scores, groups, seed=seed, resamples=200)
        hits += estimate.low <= truth <= estimate.high
    assert 182 <= hits <= 199
