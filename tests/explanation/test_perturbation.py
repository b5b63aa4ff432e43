"""Segments, fills, and the methods that remove segments, against games whose answer is known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from math import factorial

import numpy as np
import pytest

from pneumoscope.bundle.runtime import Runtime
from pneumoscope.errors import ConfigError
from pneumoscope.explanation import METHODS, Options
from pneumoscope.explanation import segments as cutting
from pneumoscope.explanation.gradients import integrated_gradients
from pneumoscope.explanation.occlusion import occlusion, spread, windows
from pneumoscope.explanation.partition import owen, tree
from pneumoscope.explanation.perturbation import BATCH, FILLS, Masks, answers, log_odds, remove
from pneumoscope.explanation.surrogate import fit_lime, fit_shap, least_squares, lime, lime_masks, shap_masks
from pneumoscope.images.preparation import Pixels
from pneumoscope.phantom.synthetic import render
from pneumoscope.predict import Classifier

RNG = np.random.default_rng


def radiograph(size: int = 64) -> Pixels:
    return render(RNG(1), kind="viral", size=size).pixels


# --- parts and fills --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cutting.SEGMENTS)
@pytest.mark.parametrize("size", [60, 128])
def test_a_radiograph_is_cut_into_2_to_50_parts_without_gaps_in_their_numbers(name: str, size: int) -> None:
    image = radiograph(size)
    labels = cutting.cut(image, name)
    assert (labels.shape, labels.dtype) == (image.shape, np.int32)
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert 2 <= labels.max() + 1 <= cutting.MOST
    assert np.array_equal(labels, cutting.cut(image, name))


def test_labels_with_gaps_are_numbered_anew_and_too_many_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As anatomical zones come: 0 is outside, and a zone may be missing."""
    zones = np.zeros((8, 8), int)
    zones[2:5, 1:4], zones[5:, 5:] = 2, 6
    ways = {"zones": lambda image: zones, "pixels": lambda image: np.arange(64).reshape(8, 8)}
    monkeypatch.setattr(cutting, "SEGMENTS", ways)
    found = cutting.cut(radiograph(), "zones")
    assert np.array_equal(found, np.select([zones == 2, zones == 6], [1, 2]))
    with pytest.raises(ConfigError, match="into 64 segments"):
        cutting.cut(radiograph(), "pixels")


def test_zones_follow_the_lungs_and_need_some() -> None:
    drawn = render(RNG(1), kind="normal", size=128)
    labels = cutting.cut(drawn.pixels, "zones")
    assert labels.max() == 6, "six zones and what surrounds them"
    assert (labels[drawn.lungs > 0] > 0).mean() > 0.85
    assert (labels[:, :20] == 0).mean() > 0.9
    with pytest.raises(ConfigError, match=r"lungs not found.*slic or grid"):
        cutting.cut(np.full((64, 64), 90, np.uint8), "zones")


def test_each_fill_depends_on_the_image_alone() -> None:
    image = radiograph()
    filled = {name: fill(image) for name, fill in FILLS.items()}
    for name, fill in filled.items():
        assert (fill.shape, fill.dtype) == (image.shape, np.uint8)
        assert np.array_equal(fill, FILLS[name](image.copy()))
    chest = FILLS["normal"](radiograph(200)).astype(int)
    assert chest[100, 60] < chest[100, 100] > chest[100, 140], "lungs darker than the spine"
    assert (filled["normal"].mean(), filled["normal"].std()) == pytest.approx((image.mean(), image.std()), abs=4)
    assert np.array_equal(np.sort(filled["shuffle"].ravel()), np.sort(image.ravel())), "the same greys"
    assert abs(np.corrcoef(filled["shuffle"].ravel(), image.ravel())[0, 1]) < 0.1
    assert np.ptp(filled["mean"]) == 0
    assert filled["mean"][0, 0] == round(image.mean())
    assert 0 < filled["blur"].std() < image.std()
    assert not filled["black"].any()


def test_absent_segments_show_the_fill() -> None:
    segments = np.array([[0, 0], [1, 2]], np.int32)
    image, fill = np.array([[1, 2], [3, 4]], np.uint8), np.array([[9, 8], [7, 6]], np.uint8)
    found = remove(image, fill, segments, np.array([[True, True, False], [False, True, True]]))
    assert found.tolist() == [[[1, 2], [3, 6]], [[9, 8], [3, 4]]]


def test_the_runtime_is_asked_in_batches(planted: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def logits(pixels: Pixels) -> np.ndarray:
        sizes.append(len(pixels))
        return np.stack([np.zeros(len(pixels)), pixels.mean(axis=(1, 2))], axis=1)

    monkeypatch.setattr(planted, "runtime", Runtime("counted", logits))
    image = radiograph(60)
    segments = cutting.grid(image)
    masks = lime_masks(36, 3 * BATCH + 5, RNG(0))
    scores = answers(planted, image, FILLS["black"](image), segments, masks)
    assert sizes == [BATCH] * 3 + [5]
    direct = log_odds(planted, remove(image, FILLS["black"](image), segments, masks))
    assert np.array_equal(scores, direct)


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"samples": 0}, {"segments": "lobes"}, {"fill": "white"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_option_cannot_be_built(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Options(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["lime", "shap"])
def test_too_few_samples_for_the_segments_are_an_error(linear: Classifier, bright_place: Pixels, method: str) -> None:
    with pytest.raises(ConfigError, match="30 samples are too few for 36 segments"):
        METHODS[method](linear, bright_place, Options(samples=30, segments="grid"))


# --- what is linear is found exactly ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [3, 10, 41])
def test_the_coefficients_of_a_linear_function_are_exact(count: int, seed: int) -> None:
    true = RNG(seed).normal(0, 2, count)
    masks = lime_masks(count, 150, RNG(seed))
    fitted = fit_lime(masks, masks @ true - 1.5)
    np.testing.assert_allclose(fitted.contributions, true, atol=1e-9)
    assert fitted.r2 == pytest.approx(1)
    present, weights = shap_masks(count, 150, RNG(seed))
    fitted = fit_shap(present, present @ true - 1.5, weights)
    np.testing.assert_allclose(fitted.contributions, true, atol=1e-9)
    assert fitted.r2 == pytest.approx(1)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("method", ["lime", "shap", "shap-partition"])
def test_a_network_that_is_linear_in_the_segments_is_explained_exactly(
    linear: Classifier, bright_place: Pixels, coefficients: np.ndarray, method: str, fill: str
) -> None:
    heatmap = METHODS[method](linear, bright_place, Options(samples=2000, segments="grid", fill=fill))
    gone = bright_place.astype(float) - FILLS[fill](bright_place)
    means = gone.reshape(6, 10, 6, 10).mean(axis=(1, 3)) / 255
    expected = (coefficients * means).ravel()
    assert heatmap.contributions is not None
    assert heatmap.segments is not None
    assert heatmap.signed is not None
    np.testing.assert_allclose(heatmap.contributions, expected, atol=1e-5)
    np.testing.assert_allclose(heatmap.signed, expected[heatmap.segments], atol=1e-5)
    np.testing.assert_allclose(heatmap.values, np.clip(heatmap.signed, 0, None) / expected.max(), atol=1e-4)
    assert heatmap.r2 is None or heatmap.r2 > 0.9999


def test_integrated_gradients_add_up_to_the_difference(planted: Classifier, bright_place: Pixels) -> None:
    heatmap = integrated_gradients(planted, bright_place, Options(samples=64))
    both = np.stack([bright_place, FILLS[Options().fill](bright_place)])
    image, start = log_odds(planted, both)
    assert heatmap.signed is not None
    assert heatmap.signed.sum() == pytest.approx(image - start, rel=0.02)


def test_occlusion_is_the_mean_loss_of_the_windows(linear: Classifier, bright_place: Pixels) -> None:
    heatmap = occlusion(linear, bright_place, Options(samples=9, fill="black"))
    corners, side = windows(60, 9)
    assert side == 30
    assert corners == [(top, left) for top in (0, 15, 30) for left in (0, 15, 30)]
    total, covered = np.zeros((60, 60)), np.zeros((60, 60))
    whole = log_odds(linear, bright_place[None])[0]
    for top, left in corners:
        hidden = bright_place.copy()
        hidden[top : top + side, left : left + side] = 0
        total[top : top + side, left : left + side] += whole - log_odds(linear, hidden[None])[0]
        covered[top : top + side, left : left + side] += 1
    np.testing.assert_allclose(heatmap.signed, total / covered, atol=1e-5)  # type: ignore[arg-type]
    assert (heatmap.samples, heatmap.evaluations) == (9, 10)


@pytest.mark.parametrize(("size", "count"), [(60, 225), (64, 4), (33, 100), (8, 400), (7, 1)])
def test_the_windows_cover_every_pixel(size: int, count: int) -> None:
    corners, side = windows(size, count)
    assert spread(np.ones(len(corners)), corners, side, size).min() == 1
    assert max(top for top, _ in corners) + side == size


# --- games with interactions ------------------------------------------------------------------------------


def game(seed: int, count: int):  # type: ignore[no-untyped-def]
    pull, pairs = RNG(seed).normal(size=count), RNG(seed + 100).normal(size=(count, count))

    def score(masks: Masks) -> np.ndarray:
        present = masks.astype(float)
        return np.tanh(present @ pull) + np.einsum("ni,ij,nj->n", present, pairs, present) + 0.3

    return score


def over_orders(score, count: int, allowed=lambda order: True) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The mean gain of each player over all orders of arrival: the definition of Shapley (1953)."""
    total, orders = np.zeros(count), 0
    for order in permutations(range(count)):
        if not allowed(order):
            continue
        present = np.tril(np.ones((count + 1, count), bool), -1)[:, np.argsort(order)]
        total[list(order)] += np.diff(score(present))
        orders += 1
    assert orders in (factorial(count), 2 ** (count - 1))
    return total / orders


@pytest.mark.parametrize("seed", range(3))
def test_with_all_coalitions_the_values_are_those_of_shapley(seed: int) -> None:
    score = game(seed, 6)
    masks, weights = shap_masks(6, 64, RNG(0))
    assert len(np.unique(masks, axis=0)) == 64
    found = fit_shap(masks, score(masks), weights).contributions
    np.testing.assert_allclose(found, over_orders(score, 6), atol=1e-9)


def test_drawn_coalitions_come_close_and_closer() -> None:
    score = game(4, 8)
    true = over_orders(score, 8)

    def error(samples: int) -> float:
        found = []
        for seed in range(20):
            masks, weights = shap_masks(8, samples, RNG(seed))
            assert len(masks) <= samples
            assert weights.sum() == pytest.approx(1)
            found.append(fit_shap(masks, score(masks), weights).contributions)
            assert found[-1].sum() == pytest.approx(np.diff(score(np.array([[False] * 8, [True] * 8])))[0])
        assert np.abs(np.mean(found, axis=0) - true).max() < 0.1
        return float(np.sqrt(np.mean((np.array(found) - true) ** 2)))

    assert error(100) < 0.6 * error(30)


@pytest.mark.parametrize("seed", range(3))
def test_the_values_of_a_tree_are_those_of_owen(seed: int) -> None:
    """The mean over the orders in which each group of the tree arrives together (Owen 1977)."""
    score, joins = game(seed, 6), np.array([[0, 1], [3, 4], [6, 2], [7, 5], [8, 9]])
    groups = [{0, 1}, {3, 4}, {0, 1, 2}, {3, 4, 5}]

    def together(order: tuple[int, ...]) -> bool:
        places = [sorted(order.index(player) for player in group) for group in groups]
        return all(place[-1] - place[0] == len(place) - 1 for place in places)

    values, asked = owen(score, joins, 1000)
    np.testing.assert_allclose(values, over_orders(score, 6, together), atol=1e-9)
    few, less = owen(score, joins, 4)
    assert (less, asked > 4) == (4, True)
    thirds = np.repeat([values[:3].sum() / 3, values[3:].sum() / 3], 3)
    np.testing.assert_allclose(few, thirds, err_msg="what is not divided is shared")


def test_the_tree_joins_neighbours() -> None:
    segments = np.repeat(np.arange(4, dtype=np.int32), 4)[None].repeat(16, axis=0)
    segments = np.repeat(segments, 1, axis=0)
    joins = tree(segments)
    assert {frozenset(row) for row in joins[:2].tolist()} <= {frozenset({0, 1}), frozenset({2, 3}), frozenset({1, 2})}
    assert len(joins) == 3


# --- the surrogate's R² -----------------------------------------------------------------------------------


def test_r2_is_that_of_leaving_each_row_out() -> None:
    rng = RNG(2)
    design, weights = rng.normal(size=(30, 4)), rng.uniform(0.2, 2, 30)
    target = design @ [1, -2, 0, 3] + rng.normal(size=30)
    fitted, r2 = least_squares(design, target, weights)
    left_out = np.empty(30)
    for row in range(30):
        rest = np.arange(30) != row
        root = np.sqrt(weights[rest])
        other = np.linalg.lstsq(design[rest] * root[:, None], target[rest] * root, rcond=None)[0]
        left_out[row] = target[row] - design[row] @ other
    mean = weights @ target / weights.sum()
    assert r2 == pytest.approx(1 - weights @ left_out**2 / (weights @ (target - mean) ** 2))
    root = np.sqrt(weights)
    np.testing.assert_allclose(fitted, np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[0])


def test_noise_is_not_explained_and_its_map_is_hidden(
    planted: Classifier, bright_place: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = RNG(3)
    noise = Runtime("noise", lambda pixels: rng.normal(size=(len(pixels), 2)).astype(np.float32))
    monkeypatch.setattr(planted, "runtime", noise)
    heatmap = lime(planted, bright_place, Options(segments="grid"))
    assert heatmap.r2 is not None
    assert heatmap.r2 < 0.1
    assert heatmap.verdict == "blank"
    assert "a linear model of the segments explains" in (heatmap.reason or "")
    assert not heatmap.values.any()
    assert heatmap.contributions is not None
    assert heatmap.contributions.any(), "kept for who wants to look"


@pytest.fixture
def mute(linear: Classifier) -> Iterator[Classifier]:
    """A network that always says the same."""
    weight = linear.bundle.network.encoder.model.weight
    kept = weight.clone()
    weight.zero_()
    yield linear
    weight.copy_(kept)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_always_says_the_same_gets_a_blank_map(
    mute: Classifier, bright_place: Pixels, method: str
) -> None:
    heatmap = METHODS[method](mute, bright_place, Options(samples=50, segments="grid"))
    assert heatmap.verdict == "blank"
    assert heatmap.reason
