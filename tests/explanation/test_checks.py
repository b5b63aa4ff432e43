"""The checks of a map, on maps and scores that are known to be good or bad."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from pneumoscope.bundle.runtime import Runtime
from pneumoscope.explanation import METHODS, Options
from pneumoscope.explanation import faithfulness as faithful
from pneumoscope.explanation.method import finish
from pneumoscope.explanation.perturbation import FILLS
from pneumoscope.explanation.stability import agreement, pooled, rank_correlation, with_stability
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import Heatmap
from pneumoscope.statistics.bootstrap import mean_of

RNG = np.random.default_rng


# --- stability --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_spearmans(seed: int) -> None:
    a, b = RNG(seed).integers(0, 6, (2, 40))
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a, np.zeros(40)) == 0
    c = RNG(seed + 50).random(40)
    assert agreement([a, b, c]) == pytest.approx(np.mean([rank_correlation(x, y) for x, y in ((a, b), (a, c), (b, c))]))


def test_a_map_is_compared_by_the_means_of_its_fields() -> None:
    values = RNG(0).random((64, 64), dtype=np.float32)
    np.testing.assert_allclose(pooled(values), values.reshape(16, 4, 16, 4).mean(axis=(1, 3)), rtol=1e-5)


def pretended(noise: float) -> Callable[..., Heatmap]:
    """A method whose contributions are known, with an error that falls with the number of samples."""
    asked = []

    def method(classifier: Classifier, canvas: Pixels, options: Options) -> Heatmap:
        started, samples = time.perf_counter(), options.samples or 100
        asked.append((options.seed, samples))
        contributions = np.arange(30.0) + RNG(options.seed).normal(0, noise / samples, 30)
        return finish(
            np.ones((30, 30), np.float32), started, method="pretended", layer="input", seed=options.seed,
            samples=samples, evaluations=samples, contributions=contributions,
        )  # fmt: skip

    method.asked = asked  # type: ignore[attr-defined]
    return method


@pytest.mark.parametrize(
    ("noise", "verdict", "numbers"),
    [(10, "stable", [100]), (1200, "stable", [100, 200, 400]), (1e6, "unstable", [100, 200, 400, 800])],
)
def test_samples_are_raised_until_seeds_agree_or_there_are_too_many(
    planted: Classifier, bright_place: Pixels, noise: float, verdict: str, numbers: list[int]
) -> None:
    method = pretended(noise)
    heatmap = with_stability(method, planted, bright_place, Options(seed=7))
    assert heatmap.verdict == verdict
    assert (heatmap.stability or 0) >= 0.8 or verdict == "unstable"
    asked = method.asked  # type: ignore[attr-defined]
    assert sorted(asked) == sorted((seed, samples) for seed in (7, 8, 9) for samples in numbers)
    assert (heatmap.seed, heatmap.samples) == (7, numbers[-1])
    assert heatmap.evaluations == 3 * sum(numbers)
    assert f"{numbers[-1]} samples each" in (heatmap.reason or "")


def test_a_map_without_chance_is_tested_by_noise(planted: Classifier, bright_place: Pixels) -> None:
    heatmap = with_stability(METHODS["gradcam"], planted, bright_place, Options())
    assert heatmap.verdict == "stable"
    assert heatmap.stability == pytest.approx(1, abs=0.01)
    assert heatmap.evaluations == 3

    def nervous(classifier: Classifier, canvas: Pixels, options: Options) -> Heatmap:
        fresh = RNG(int(canvas.sum())).normal(size=(60, 60)).astype(np.float32)
        return finish(fresh, time.perf_counter(), method="nervous", layer="input")

    assert with_stability(nervous, planted, bright_place, Options()).verdict == "unstable"


def test_a_blank_map_stays_blank(planted: Classifier, bright_place: Pixels) -> None:
    black = np.zeros_like(bright_place)
    assert with_stability(METHODS["gradcam"], planted, black, Options()).verdict == "blank"


# --- faithfulness -----------------------------------------------------------------------------------------


def mean_grey(images: Pixels) -> np.ndarray:
    return images.mean(axis=(1, 2)) / 255


def test_the_curves_are_those_of_changing_place_after_place() -> None:
    rng = RNG(0)
    image, fill = rng.integers(0, 256, (2, 12, 12), dtype=np.uint8)
    heat = rng.random((12, 12), dtype=np.float32)
    found = faithful.curves(mean_grey, image, fill, heat, steps=9)
    order = np.argsort(-heat.ravel())
    for step in range(10):
        first = order[: 144 * step // 9]
        deleted, inserted = image.ravel().copy(), fill.ravel().copy()
        deleted[first], inserted[first] = fill.ravel()[first], image.ravel()[first]
        assert found.deletion[step] == pytest.approx(deleted.mean() / 255)
        assert found.insertion[step] == pytest.approx(inserted.mean() / 255)
    trapezoids = sum((found.insertion[i] + found.insertion[i + 1]) / 2 / 9 for i in range(9))
    assert faithful.area(found.insertion) == pytest.approx(trapezoids)
    # Of a sum of pixels the gain is known without curves: both areas mirror each other.
    assert found.gain == pytest.approx(
        2 * faithful.area(found.insertion) - mean_grey(image[None])[0] - mean_grey(fill[None])[0]
    )


def cases(place: np.ndarray, count: int = 6) -> Pixels:
    images = RNG(1).integers(0, 160, (count, 60, 60), dtype=np.uint8)
    images[:, place] = 240
    return images


def planted_score(classifier: Classifier) -> faithful.Score:
    """1 with the place bright, 0 where it is dark."""
    raw = faithful.probability(classifier)
    return lambda images: 2 * raw(images) - 1


@pytest.mark.parametrize("method", ["gradcam", "integrated-gradients", "occlusion", "lime", "shap", "shap-partition"])
def test_true_maps_are_better_than_random_ones(planted: Classifier, place: np.ndarray, method: str) -> None:
    images = cases(place)
    maps = [METHODS[method](planted, image, Options(segments="grid", samples=60)).values for image in images]
    found = faithful.faithfulness(planted_score(planted), images, maps, fill="mean", steps=10)
    assert found.reason is None
    assert found.kept < 0.5
    assert found.above is not None
    assert found.above.low > 0
    assert found.gain is not None
    assert found.chance is not None
    assert found.above.value == pytest.approx(found.gain.value - found.chance.value)


def test_random_maps_are_not_better_than_random_ones(planted: Classifier, place: np.ndarray) -> None:
    maps = [faithful.random_map(60, RNG(seed)) for seed in range(100, 112)]
    found = faithful.faithfulness(planted_score(planted), cases(place, 12), maps, fill="mean", steps=10)
    assert found.above is not None
    assert found.above.low < 0 < found.above.high


def test_a_fill_that_keeps_the_score_decides_nothing(planted: Classifier, place: np.ndarray) -> None:
    images = cases(place)
    images[:] = 240  # the mean grey of such an image is as bright as the place
    score = planted_score(planted)
    found = faithful.faithfulness(score, images, [place.astype(np.float32)] * 6, fill="mean")
    assert found.kept == pytest.approx(1)
    assert (found.gain, found.chance, found.above) == (None, None, None)
    assert "100%" in (found.reason or "")
    shares = faithful.validated(score, images)
    assert set(shares) == set(FILLS)
    assert faithful.kept(lambda images: np.zeros(len(images)), images, images) == np.inf, "nothing can be lost"
    assert shares["mean"] == pytest.approx(1)
    assert shares["black"] == pytest.approx(0, abs=1e-6)


def test_a_map_of_one_image_is_doubted_where_it_misses(
    planted: Classifier, bright_place: Pixels, place: np.ndarray
) -> None:
    def judge(values: np.ndarray) -> Heatmap:
        heatmap = finish(values.astype(np.float32), 0.0, method="given", layer="input")
        return faithful.with_faithfulness(heatmap, planted, bright_place, fill="mean")

    score = faithful.probability(planted)
    assert faithful.kept(score, bright_place[None], FILLS["mean"](bright_place)[None]) < 0.55
    undecided = judge(place)
    assert undecided.verdict == "not tested"
    assert "faithfulness undecided" in (undecided.reason or "")
    shifted = Runtime("shifted", lambda pixels: planted_logits(planted, pixels))
    found = replace_runtime(planted, shifted, lambda: (judge(place), judge(~place)))
    assert [heatmap.verdict for heatmap in found] == ["not tested", "not faithful"]
    assert "of random maps" in (found[1].reason or "")
    assert found[0].evaluations == 1 + 2 + 22 * 6


def planted_logits(classifier: Classifier, pixels: Pixels) -> np.ndarray:
    """The same network, sure of normal where the place is dark."""
    light = classifier.bundle.network(torch.from_numpy(pixels[:, None] / np.float32(255)).repeat(1, 3, 1, 1)).numpy()
    return np.asarray(light - np.array([0, 400], np.float32))


def replace_runtime(classifier: Classifier, runtime: Runtime, act):  # type: ignore[no-untyped-def]
    own = classifier.runtime
    classifier.runtime = runtime
    try:
        return act()
    finally:
        classifier.runtime = own


def test_the_interval_of_a_mean_counts_patients() -> None:
    values = np.repeat(RNG(0).normal(size=20), 5)
    each = mean_of(values, seed=0)
    grouped = mean_of(values, seed=0, groups=[f"p{i // 5}" for i in range(100)])
    assert each.value == grouped.value == pytest.approx(values.mean())
    assert grouped.high - grouped.low > 1.7 * (each.high - each.low)
    error = values[::5].std() / np.sqrt(20)
    assert grouped.high - grouped.low == pytest.approx(3.92 * error, rel=0.15)


def test_a_heat_map_can_be_replaced_in_part(planted: Classifier, bright_place: Pixels) -> None:
    heatmap = METHODS["gradcam"](planted, bright_place)
    assert replace(heatmap, verdict="stable").facts()["verdict"] == "stable"
