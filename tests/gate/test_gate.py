"""A gate refuses what is unlike the images it learned from, says why, and cannot be lost unnoticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.bundle.bundle import GATE, load_bundle
from pneumoscope.data.sources import open_source
from pneumoscope.errors import BundleError, DataError
from pneumoscope.gate.fitting import Seen, add_gate, fit_density, fit_gate, limits
from pneumoscope.gate.pixel_rules import by_pixels, by_size
from pneumoscope.gate.refusal import Key
from pneumoscope.gate.scores import CHECKS, Gate, greys, read_gate, thumbnails
from pneumoscope.images import Radiograph
from pneumoscope.images.preparation import Pixels
from pneumoscope.phantom.synthetic import KINDS, render
from pneumoscope.predict import Classifier


def chests(count: int, seed: int, size: int = 64) -> Pixels:
    rng = np.random.default_rng(seed)
    return np.stack([render(rng, kind=str(rng.choice(KINDS)), size=size).pixels for _ in range(count)])


def seen(canvases: Pixels) -> Seen:
    """Instead of a network: coarse thumbnails, whose directions differ as features do."""
    return Seen(canvases, thumbnails(canvases).reshape(len(canvases), -1).astype(np.float32))


@pytest.fixture(scope="module")
def gate() -> Gate:
    return fit_gate(seen(chests(300, 0)), seen(chests(150, 1)), smallest_side=32, ages=(1.0, 5.0))


def scores(gate: Gate, canvases: Pixels) -> np.ndarray:
    found = seen(canvases)
    return gate.scores(found.canvases, found.features)


# --- scores -----------------------------------------------------------------------------------------------


def test_it_refuses_no_more_held_out_images_than_it_was_told(gate: Gate) -> None:
    assert (scores(gate, chests(150, 1)).max(axis=1) > 1).sum() == gate.facts["refused_held_out"] <= 1
    assert (scores(gate, chests(200, 2)).max(axis=1) > 1).mean() < 0.06


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: 255 - x, "inverted"),
        (lambda x: np.rot90(x, 1, (1, 2)), "rotated"),
        (lambda x: np.rot90(x, 2, (1, 2)), "rotated"),
        (lambda x: np.rot90(x, 3, (1, 2)), "rotated"),
        (lambda x: np.random.default_rng(0).integers(0, 256, x.shape).astype(np.uint8), "not a chest"),
    ],
)
def test_what_is_wrong_is_refused_and_named(gate: Gate, change, reason: str) -> None:  # type: ignore[no-untyped-def]
    wrong = np.ascontiguousarray(change(chests(30, 3)))
    found = [
        by_pixels(gate, one, canvas, lambda _: np.zeros((64, 64), np.float32))
        for one, canvas in zip(scores(gate, wrong), wrong, strict=True)
    ]
    assert sum(one is not None for one in found) >= 29
    assert sum(one is not None and one.key == reason for one in found) >= 27


def test_too_dark_and_too_bright_are_told_apart(gate: Gate) -> None:
    lungs = np.zeros((64, 64), np.float32)
    lungs[10:50, 8:26] = lungs[10:50, 38:56] = 1
    for power, word in ((6.0, "darker"), (0.12, "brighter")):
        wrong = np.rint(255 * (chests(10, 4) / 255) ** power).astype(np.uint8)
        found = [by_pixels(gate, np.array([2.0, 0.0, 0.0]), canvas, lambda _: lungs) for canvas in wrong]
        words = [str(one).removeprefix("not analysed, because it is ").split()[0] for one in found]
        assert words.count(word) >= 6  # some count as flatter
        assert not ({"darker", "brighter"} - {word}) & set(words)
        assert (scores(gate, wrong)[:, CHECKS.index("exposure")] > 1).mean() > 0.8


@given(st.integers(0, 10_000), st.floats(0.01, 0.5), st.integers(20, 200))
@settings(max_examples=50)
def test_limits_keep_to_the_rate(seed: int, rate: float, count: int) -> None:
    raw = np.random.default_rng(seed).normal(size=(count, 3))
    limit, how = limits(raw, rate)
    assert (raw > limit).any(axis=1).mean() <= rate
    assert how.startswith("rank" if count * rate >= 1 else "normal tail")


def test_few_images_get_room_beyond_those_seen() -> None:
    raw = np.random.default_rng(0).normal(size=(8, 3))
    limit, _ = limits(raw, 0.01)
    new = np.random.default_rng(1).normal(size=(5000, 3))
    assert (new > limit).any(axis=1).mean() < 0.03


def test_a_density_is_that_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4000, 6)) * [4, 3, 2, 1, 1, 1]
    found = fit_density(points, 5)
    inverse = np.linalg.inv(np.cov(points.T))
    away = points[:50] - points.mean(axis=0)
    exact = np.einsum("ij,jk,ik->i", away, inverse, away)
    np.testing.assert_allclose(np.exp(found.log_distance(points[:50])), exact, rtol=0.01)


def test_grey_quantiles_are_those_of_the_pixels() -> None:
    images = chests(5, 6)
    expected = np.quantile(images.reshape(5, -1), (0.05, 0.25, 0.5, 0.75, 0.95), axis=1, method="inverted_cdf").T / 255
    np.testing.assert_allclose(greys(images), expected)


def test_one_image_is_too_few() -> None:
    with pytest.raises(DataError, match="too few for a gate"):
        fit_gate(seen(chests(1, 0)), seen(chests(5, 1)))


@pytest.mark.parametrize(("width", "refused"), [(31, True), (32, False)])
def test_size(gate: Gate, width: int, refused: bool) -> None:
    image = Radiograph(np.zeros((64, 64), np.float32), width, 64, "PNG", "L")
    refusal = by_size(gate, image)
    assert (refusal is not None) == refused
    assert refusal is None or str(refusal) == "not analysed, because its shorter side has 31 pixels, 32 are needed"


@pytest.mark.parametrize(("lungs", "key"), [(1, "lateral"), (2, "unlike")])
def test_one_lung_is_told_from_two(gate: Gate, lungs: int, key: str) -> None:
    mask = np.zeros((64, 64), np.float32)
    for number in range(lungs):
        mask[10:50, 8 + 30 * number : 26 + 30 * number] = 1
    refusal = by_pixels(gate, np.array([0.0, 0.0, 1.5]), chests(1, 4)[0], lambda _: mask)
    assert refusal is not None
    assert refusal.key == key


# --- in a bundle ------------------------------------------------------------------------------------------


def test_it_comes_back_as_it_was_written(gate: Gate) -> None:
    again = read_gate(gate.to_bytes(), json.loads(json.dumps(gate.section())), Path("b"))
    np.testing.assert_allclose(scores(again, chests(10, 7)), scores(gate, chests(10, 7)), atol=1e-3)


def test_an_embedding_places_an_image_by_the_axes_of_the_gate(gate: Gate) -> None:
    found = seen(chests(4, 7)).features.astype(np.float64)
    of_length_1 = found / np.linalg.norm(found, axis=1, keepdims=True)
    wanted = (of_length_1 - gate.densities["features"].mean) @ gate.densities["features"].axes.T
    placed = gate.embedding(found.astype(np.float32))
    assert (placed.dtype, placed.shape) == (np.float16, wanted.shape)
    np.testing.assert_allclose(placed, wanted, atol=1e-3)
    np.testing.assert_array_equal(gate.embedding(7 * found.astype(np.float32)), placed)  # what, not how strongly


def test_a_trained_bundle_refuses_noise_and_answers_its_own_kind(trained: Path, tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (refused,) = Classifier.load(trained / "bundle").predict([tmp_path / "noise.png"])
    assert refused.abstained
    assert refused.probability is None
    assert refused.quality["refused_by"] in get_args(Key)
    assert max(refused.quality["gate"].values()) > 1
    assert refused.embedding is not None  # monitoring wants those above all
    (answered,) = Classifier.load(trained / "bundle", gate=False).predict([tmp_path / "noise.png"])
    assert answered.probability is not None
    assert answered.embedding is None
    paths = [sample.path for sample in open_source(trained / "split.csv").select("test").samples]
    own = list(Classifier.load(trained / "bundle").predict(paths))
    assert sum(one.abstained for one in own) <= len(own) // 5


def test_it_changes_no_score(trained: Path) -> None:
    paths = [sample.path for sample in open_source(trained / "split.csv").samples]
    with_gate, without = (Classifier.load(trained / "bundle", gate=on).predict(paths) for on in (True, False))
    for a, b in zip(with_gate, without, strict=True):
        assert a.abstained or (a.probability, a.logit, a.label) == (b.probability, b.logit, b.label)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "bundle", tmp_path / "copy"))


def test_a_gate_cannot_be_taken_off_or_changed_unnoticed(copy: Path) -> None:
    data = (copy / GATE).read_bytes()
    (copy / GATE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match="changed or damaged"):
        load_bundle(copy)
    (copy / GATE).unlink()
    with pytest.raises(BundleError, match="is missing"):
        load_bundle(copy)
    (copy / GATE).write_bytes(data)
    card = json.loads((copy / "card.json").read_text())
    for change in (lambda c: c.pop("gate"), lambda c: c["gate"].update(limit=[9.0, 9.0, 9.0])):
        changed = json.loads(json.dumps(card))
        change(changed)
        (copy / "card.json").write_text(json.dumps(changed))
        with pytest.raises(BundleError, match="changed after it was written"):
            load_bundle(copy)


def test_a_gate_that_no_card_names_is_not_ignored(make_bundle, copy: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    old = make_bundle(tmp_path / "old")
    assert Classifier.load(old).gate is None, "a bundle of before has none, and answers"
    shutil.copy(copy / GATE, old / GATE)
    with pytest.raises(BundleError, match="its card does not name"):
        load_bundle(old)


def test_a_gate_changes_the_identity_and_leaves_the_rest(make_bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    before = load_bundle(make_bundle(tmp_path / "old"))
    add_gate(before, tmp_path / "new", chests(60, 8, 40), chests(30, 9, 40))
    after = load_bundle(tmp_path / "new")
    assert after.sha256 != before.sha256
    for key in ("weights", "runtime", "calibration", "operating_points", "preparation"):
        assert after.card[key] == before.card[key]


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_both_engines_read_the_same_features(make_bundle, tmp_path: Path, engine: str) -> None:  # type: ignore[no-untyped-def]
    from pneumoscope.bundle.runtime import open_runtime

    bundle = load_bundle(make_bundle(tmp_path / "b", mirror=True))
    pixels = chests(5, 10, 32)
    runtime = open_runtime(bundle, engine=engine, features=True)
    logits, features = runtime.answer(pixels)
    np.testing.assert_array_equal(logits, open_runtime(bundle, engine=engine).logits(pixels))
    linear = bundle.network.head[1]
    head = features @ linear.weight.numpy().T + linear.bias.numpy()
    np.testing.assert_allclose(head, logits, atol=1e-4)
