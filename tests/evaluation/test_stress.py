"""A bundle under stress: each image in the style of the other class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError
from pneumoscope.evaluation.stress import FIGURES, STRESSES, Labelled, evaluate_stressed, stressed
from pneumoscope.images.style import style_of
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL

SIDE = 32


def test_the_greys_become_those_of_the_other_class() -> None:
    rng = np.random.default_rng(0)
    positive = np.array([True, False, True, False])
    images = np.where(positive, 190, 50)[:, None, None] + rng.integers(-20, 20, (4, SIDE, SIDE))
    images = images.astype(np.uint8)
    own = Labelled(images, positive)
    changed = stressed(own, own, np.random.default_rng(1), STRESSES["greys"])
    assert (np.abs(changed[positive].mean(axis=(1, 2)) - 50) < 5).all()
    assert (np.abs(changed[~positive].mean(axis=(1, 2)) - 190) < 5).all()


def test_only_the_spectrum_changes_where_only_that_is_asked() -> None:
    noise = np.random.default_rng(0).normal(size=(2, SIDE, SIDE))
    positive = np.array([True, False])
    images = np.clip(120 + 20 * np.stack([gaussian_filter(noise[0], 0.6), noise[1]]), 0, 255).astype(np.uint8)
    own = Labelled(images, positive)
    changed = stressed(own, own, np.random.default_rng(1), STRESSES["spectrum"])
    assert changed.mean(axis=(1, 2)) == pytest.approx(images.mean(axis=(1, 2)), abs=2)
    high = [style_of(image).spectrum[20:].mean() for image in (images[0], changed[0], images[1])]
    assert abs(high[1] - high[2]) < 0.3 * abs(high[0] - high[2])


def test_the_lungs_come_to_lie_as_in_the_other_class() -> None:
    """A bright square for the lungs: high in the ill, low in the well."""
    positive = np.array([True, False])
    images = np.zeros((2, SIDE, SIDE), np.uint8)
    images[0, 4:12, 8:24] = images[1, 12:28, 8:24] = 200
    boxes = np.array([[4, 12, 8, 24], [12, 28, 8, 24]]) / SIDE
    own = Labelled(images, positive, boxes)
    changed = stressed(own, own, np.random.default_rng(1), STRESSES["framing"])
    rows = np.flatnonzero((changed[1] > 100).any(axis=1))
    # The well one's square, 12 to 28, is cut to a frame in which it begins as high as the image allows.
    assert rows[0] < 12
    assert np.array_equal(
        stressed(Labelled(images, positive), own, np.random.default_rng(1), STRESSES["framing"]), images
    )


def test_figures_of_every_stress(trained: Path, chest_manifest: Manifest) -> None:
    classifier = Classifier.load(trained / "bundle")
    samples = chest_manifest.samples[:20] + chest_manifest.samples[-20:]
    found, picture = evaluate_stressed(classifier, samples, draws=2)
    assert set(found) == {"draws", "n", "none", "adjusted", *STRESSES}
    assert found["adjusted"] is None  # too few patients to tell how far the frame speaks
    side = classifier.bundle.preparation.canvas
    assert picture.shape == (2 * side, (1 + len(STRESSES)) * side)
    for name in ("none", *STRESSES):
        assert set(found[name]) == set(FIGURES)
        low, high = found[name]["auroc"]["ci95"]
        assert 0 <= low <= found[name]["auroc"]["value"] <= high <= 1
    assert found == evaluate_stressed(classifier, samples, draws=2)[0]


def test_one_class_is_refused(trained: Path, chest_manifest: Manifest) -> None:
    normals = [sample for sample in chest_manifest.samples if sample.label == NORMAL]
    with pytest.raises(DataError, match="both classes"):
        evaluate_stressed(Classifier.load(trained / "bundle"), normals[:3], draws=1)
