"""A planted shift is found and repaired; noise and lost ground are refused; what is written is what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.adaptation.adapt import Settings, adapt, decide, evidence_file
from pneumoscope.adaptation.evidence import draw_patients, plan
from pneumoscope.adaptation.labelled import Labelled, head_logits, read_labelled
from pneumoscope.adaptation.methods import METHODS, Basis
from pneumoscope.adaptation.normalisation import renormalised
from pneumoscope.adaptation.shrinkage import calibration_near, head_near
from pneumoscope.bundle.bundle import load_bundle
from pneumoscope.bundle.calibration import fit_calibration, probabilities
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.errors import ConfigError
from pneumoscope.phantom.synthetic import write_dataset
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, PNEUMONIA
from pneumoscope.validation.validate import calibrated_prevalence

QUICK = Settings(resamples=400)
SCORES = replace(QUICK, methods=tuple(name for name in METHODS if "batch norm" not in name))
FEATURES = 8


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", classes=2, population={"prevalence": 0.5})


@pytest.fixture(scope="module")
def basis(bundle: Path) -> Basis:
    return Basis(load_bundle(bundle), 0.5, 0)


def scored(basis: Basis, odds: np.ndarray, y: np.ndarray, features: np.ndarray | None = None) -> Labelled:
    """Images of one patient each, whose log-odds are calibrated exactly as the bundle's would be."""
    temperature, bias = basis.bundle.calibration
    logits = np.stack([np.zeros(y.size), temperature * (odds - bias)], axis=1)
    canvases = np.zeros((y.size, 2, 2), np.uint8)
    patients = np.array([f"p{i:04d}" for i in range(y.size)])
    seen = np.zeros((y.size, FEATURES)) if features is None else features
    return Labelled(y, patients, logits, seen, canvases, {})


def drawn(n: int, share: float, seed: int, *, added: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Truth, and log-odds that were right at a share of one half, with a constant added."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < share
    return y, rng.normal(np.where(y, 1.0, -1.0), np.sqrt(2.0)) + added


class TestGuard:
    """On made-up scores, which have no images: methods that look at images are left out."""

    def test_a_constant_added_to_the_scores_is_taken_off_again(self, basis: Basis) -> None:
        y, odds = drawn(300, 0.5, 1, added=3.0)
        choice = decide(basis, scored(basis, odds, y), None, SCORES)
        assert choice.evidence["adopted"] in ("bias", "temperature and bias", "head")
        assert choice.change is not None
        repaired = choice.change.probability(basis.bundle, scored(basis, odds, y))
        assert abs(repaired.mean() - y.mean()) < 0.03
        before = 1 / (1 + np.exp(-odds))
        assert before.mean() - y.mean() > 0.25

    def test_another_prevalence_is_mended_without_labels(self, basis: Basis) -> None:
        y, odds = drawn(400, 0.1, 2)
        choice = decide(basis, scored(basis, odds, y), None, replace(SCORES, labels=0))
        assert choice.evidence["adopted"] == "prior shift"
        assert choice.change is not None
        p = choice.change.probability(basis.bundle, scored(basis, odds, y))
        assert abs(p.mean() - y.mean()) < 0.05
        assert {one["name"] for one in choice.evidence["left_out"] if one["why"] == "needs labels"} >= {"bias", "head"}

    @pytest.mark.parametrize("seed", range(3))
    def test_a_bundle_that_fits_already_is_left_as_it_is(self, basis: Basis, seed: int) -> None:
        y, odds = drawn(200, 0.5, 10 + seed)
        choice = decide(basis, scored(basis, odds, y), None, SCORES)
        assert choice.change is None
        assert choice.evidence["adopted"] is None
        assert choice.evidence["statement"].startswith("not adapted, because")

    def test_features_that_are_noise_do_not_make_a_head(self, basis: Basis) -> None:
        y, _ = drawn(200, 0.5, 20)
        rng = np.random.default_rng(3)
        choice = decide(basis, scored(basis, np.zeros(y.size), y, rng.normal(size=(y.size, FEATURES))), None, SCORES)
        assert choice.change is None

    def test_features_that_tell_the_label_make_a_head(self, basis: Basis) -> None:
        y, odds = drawn(200, 0.5, 21)
        features = np.random.default_rng(4).normal(size=(y.size, FEATURES))
        features[:, 0] += np.where(y, 2.0, -2.0)
        choice = decide(basis, scored(basis, odds, y, features), None, SCORES)
        assert choice.evidence["adopted"] == "head"
        assert next(c for c in choice.evidence["candidates"] if c["name"] == "head")["gains"]["auroc"]["low"] > 0

    def test_what_ruins_the_original_population_is_refused(self, basis: Basis) -> None:
        y, odds = drawn(300, 0.5, 22)
        features = np.random.default_rng(5).normal(size=(y.size, FEATURES))
        features[:, 0] += np.where(y, 2.0, -2.0)
        turned = features * np.where(np.arange(FEATURES) == 0, -1.0, 1.0)
        choice = decide(basis, scored(basis, odds, y, features), scored(basis, odds, y, turned), SCORES)
        head = next(c for c in choice.evidence["candidates"] if c["name"] == "head")
        assert head["gains"]["auroc"]["low"] > 0
        assert not head["original"]["not_worse"]
        assert choice.evidence["adopted"] != "head"

    def test_a_recalibration_orders_the_original_alike_and_passes(self, basis: Basis) -> None:
        y, odds = drawn(300, 0.5, 23, added=3.0)
        choice = decide(basis, scored(basis, odds, y), scored(basis, odds - 3, y), SCORES)
        adopted = next(c for c in choice.evidence["candidates"] if c["name"] == choice.evidence["adopted"])
        assert adopted["original"]["not_worse"]
        assert adopted["original"]["log_loss"]["after"] > adopted["original"]["log_loss"]["before"]

    def test_scores_that_tell_nothing_are_not_worth_calibrating(self, basis: Basis) -> None:
        _, odds = drawn(300, 0.5, 25, added=3.0)
        y = np.random.default_rng(7).random(300) < 0.5
        choice = decide(basis, scored(basis, odds, y), None, SCORES)
        bias = next(c for c in choice.evidence["candidates"] if c["name"] == "bias")
        assert bias["gains"]["log_loss"]["low"] > 0
        assert bias["refused"] == "its AUROC was not shown to exceed .5"
        assert choice.change is None

    def test_too_few_patients_decide_nothing(self, basis: Basis) -> None:
        y, odds = drawn(300, 0.02, 24, added=3.0)
        choice = decide(basis, scored(basis, odds, y), None, SCORES)
        assert choice.change is None
        assert "patients with pneumonia images" in choice.evidence["statement"]


def test_labels_are_whole_patients_and_the_others_measure(basis: Basis) -> None:
    y, odds = drawn(120, 0.5, 30)
    images = replace(scored(basis, odds, y), patients=np.array([f"p{i // 3}" for i in range(120)]))
    planned = plan(images, 20, seed=0)
    fitted, measured = set(images.patients[planned.final]), set(images.patients[planned.measured])
    assert planned.final.size == 21
    assert planned.measured.size == 99
    assert not fitted & measured
    assert draw_patients(images.patients, 120, np.random.default_rng(0)).all()


def test_few_labels_hardly_move_a_calibration_and_many_decide_it(basis: Basis) -> None:
    y, odds = drawn(4000, 0.5, 31, added=3.0)
    images, start = scored(basis, odds, y), basis.bundle.calibration
    assert calibration_near(images.logits[:0], y[:0], start) == start
    few = calibration_near(images.logits[:4], y[:4], start, temperature=False)[1]
    many = calibration_near(images.logits, y, start)
    free = fit_calibration(images.logits, y)
    assert abs(few - start[1]) < abs(free.bias - start[1])
    assert many == pytest.approx((free.temperature, free.bias), rel=0.01, abs=0.02)


def test_a_head_learns_the_direction_and_is_none_where_there_is_nothing() -> None:
    rng = np.random.default_rng(6)
    features, patients = rng.normal(size=(200, 40)), np.array([str(i) for i in range(200)])
    y = features[:, 3] > 0
    found = head_near(features, y, patients, np.zeros(200), seed=0)
    assert int(np.argmax(np.abs(found.direction))) == 3
    assert ((found.added(features) > 0) == y).mean() > 0.9
    assert 0.75 < ((found.out_of_fold > 0) == y).mean() < ((found.added(features) > 0) == y).mean()
    none = head_near(features, rng.random(200) < 0.5, patients, np.zeros(200), seed=0)
    assert none.added(features).std() < 0.5 * found.added(features).std()
    few = head_near(features[:12], y[:12], patients[:12], np.zeros(12), seed=0)
    assert few.added(features).std() < 0.5 * found.added(features).std()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Images of another place, 60 patients."""
    folder = write_dataset(
        tmp_path_factory.mktemp("elsewhere") / "d", patients=60, seed=8, size=64, max_images_per_patient=1
    )
    return open_source(folder)


def relabelled(bundle: Path, manifest: Manifest) -> Manifest:
    """Labels that the bundle's own embeddings tell, in another direction than its head."""
    images = read_labelled(Classifier.load(bundle), manifest)
    first = np.linalg.svd(images.features - images.features.mean(axis=0), full_matrices=False)[0][:, 0]
    ill = first > np.median(first)
    pairs = zip(manifest.labelled().samples, ill, strict=True)
    return replace(
        manifest, samples=tuple(replace(s, label=PNEUMONIA if yes else NORMAL, subtype=None) for s, yes in pairs)
    )


@pytest.mark.parametrize("mirror", [False, True])
def test_the_head_of_the_features_is_the_answer(
    make_bundle: Callable[..., Path], tmp_path: Path, elsewhere: Manifest, mirror: bool
) -> None:
    classifier = Classifier.load(make_bundle(tmp_path / "b", mirror=mirror))
    images = read_labelled(classifier, elsewhere)
    np.testing.assert_allclose(head_logits(classifier.bundle.network, images.features), images.logits, atol=1e-3)


def test_batch_norm_moves_towards_these_images_and_leaves_the_original(bundle: Path, elsewhere: Manifest) -> None:
    loaded = load_bundle(bundle)
    images = read_labelled(Classifier(loaded), elsewhere)
    before = {name: tensor.clone() for name, tensor in loaded.network.state_dict().items()}
    copy = renormalised(loaded.network, images.canvases, loaded.preparation, seed=0)
    assert not copy.training
    changed = [name for name, tensor in copy.state_dict().items() if not tensor.equal(before[name])]
    assert changed
    assert all("running_" in name for name in changed)
    assert all(tensor.equal(before[name]) for name, tensor in loaded.network.state_dict().items())


def test_an_adapted_bundle_answers_as_measured_and_says_where_it_is_from(
    bundle: Path, elsewhere: Manifest, tmp_path: Path
) -> None:
    data, out = relabelled(bundle, elsewhere), tmp_path / "new"
    found = adapt(load_bundle(bundle), data, out, QUICK)
    original, new = load_bundle(bundle), load_bundle(out)
    assert found["adopted"] in ("head", "batch norm, temperature and bias")
    assert new.card["adapted_from"] == {"name": original.name, "sha256": original.sha256}
    assert new.sha256 != original.sha256
    assert new.card["adaptation"] == found == json.loads(evidence_file(out).read_text())
    assert found["fitted_to"]["patients"] == found["measured_on"]["patients"] == 60
    assert {c["name"] for c in found["candidates"]} >= {"as it is", "prior shift", "bias", "head"}
    assert any("60 patients of one site" in limit for limit in new.card["limits"])

    images = read_labelled(Classifier(original), data)
    change = METHODS[found["adopted"]].fit(Basis(original, calibrated_prevalence(original.card), 0), images)
    expected = change.probability(original, images)
    paths = [sample.path for sample in data.samples]
    for engine in ("openvino", "torch"):
        lines = list(Classifier.load(out, engine=engine).predict(paths))
        np.testing.assert_allclose([line.probability for line in lines], expected, atol=0.01)
    assert lines[0].threshold == found["change"]["threshold"]["after"]


def test_a_recalibrated_bundle_keeps_its_network(
    make_bundle: Callable[..., Path], elsewhere: Manifest, tmp_path: Path
) -> None:
    far = make_bundle(tmp_path / "far", classes=2, calibration={"temperature": 1.0, "bias": 6.0})
    odds = read_labelled(Classifier.load(far), elsewhere).logits @ [-1.0, 1.0]
    noisy = odds / odds.std() + np.random.default_rng(0).normal(size=odds.size)
    told = zip(elsewhere.samples, noisy > np.median(noisy), strict=True)
    data = replace(elsewhere, samples=tuple(replace(s, label=PNEUMONIA if yes else NORMAL) for s, yes in told))
    found = adapt(load_bundle(far), data, tmp_path / "new", replace(QUICK, labels=20))
    original, new = load_bundle(far), load_bundle(tmp_path / "new")
    assert found["adopted"] in ("bias", "temperature and bias")
    assert new.card["weights"] == original.card["weights"]
    assert new.card["runtime"] == original.card["runtime"]
    assert new.calibration != original.calibration
    assert calibrated_prevalence(new.card) == found["fitted_to"]["with_pneumonia"] / found["fitted_to"]["images"]
    sample = elsewhere.samples[0].path
    (line,) = Classifier(new).predict([sample])
    (old,) = Classifier(original).predict([sample])
    logits = np.array([[0.0, old.logit]])
    assert line.probability == pytest.approx(probabilities(logits, *new.calibration)[0][0], abs=1e-6)
    assert line.probability < old.probability


def test_random_labels_write_the_evidence_alone(bundle: Path, elsewhere: Manifest, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    half = rng.permutation(len(elsewhere)) % 2
    pairs = zip(elsewhere.samples, half, strict=True)
    noise = replace(elsewhere, samples=tuple(replace(s, label=(NORMAL, PNEUMONIA)[kind]) for s, kind in pairs))
    images = read_labelled(Classifier.load(bundle), noise)
    temperature, bias = calibration_near(images.logits, images.y, load_bundle(bundle).calibration)
    fitted = load_bundle(bundle)
    card = {**fitted.card, "calibration": {"temperature": temperature, "bias": bias}}
    found = adapt(replace(fitted, card=card), noise, tmp_path / "new", QUICK)
    assert found["adopted"] is None
    assert not (tmp_path / "new").exists()
    assert json.loads(evidence_file(tmp_path / "new").read_text())["statement"] == found["statement"]


def test_the_bundle_itself_is_never_written_over(bundle: Path, elsewhere: Manifest) -> None:
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    for out in (bundle, bundle / "inside"):
        with pytest.raises(ConfigError, match="is the bundle itself"):
            adapt(load_bundle(bundle), elsewhere, out, QUICK)
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before
