"""A bundle under stress: each image in the style of the other class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError
from pneumoscope.evaluation.stress import FIGURES, STRESSES, evaluate_stressed, stressed
from pneumoscope.images.style import style_of
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL

SIDE = 32


def test_the_greys_become_those_of_the_other_class() -> None:
    rng = np.random.default_rng(0)
    positive = np.array([True, False, True, False])
    images = np.where(positive, 190, 50)[:, None, None] + rng.integers(-20, 20, (4, SIDE, SIDE))
    images = images.astype(np.uint8)
    changed = stressed(images, positive, images, positive, np.random.default_rng(1), "greys")
    assert (np.abs(changed[positive].mean(axis=(1, 2)) - 50) < 5).all()
    assert (np.abs(changed[~positive].mean(axis=(1, 2)) - 190) < 5).all()


def test_only_the_spectrum_changes_where_only_that_is_asked() -> None:
    noise = np.random.default_rng(0).normal(size=(2, SIDE, SIDE))
    positive = np.array([True, False])
    images = np.clip(120 + 20 * np.stack([gaussian_filter(noise[0], 0.6), noise[1]]), 0, 255).astype(np.uint8)
    changed = stressed(images, positive, images, positive, np.random.default_rng(1), "spectrum")
    assert changed.mean(axis=(1, 2)) == pytest.approx(images.mean(axis=(1, 2)), abs=2)
    high = [style_of(image).spectrum[20:].mean() for image in (images[0], changed[0], images[1])]
    assert abs(high[1] - high[2]) < 0.3 * abs(high[0] - high[2])


def test_figures_of_every_stress(trained: Path, chest_manifest: Manifest) -> None:
    classifier = Classifier.load(trained / "bundle")
    samples = chest_manifest.samples[:20] + chest_manifest.samples[-20:]
    found = evaluate_stressed(classifier, samples, draws=2)
    assert set(found) == {"draws", "n", "none", *STRESSES}
    for name in ("none", *STRESSES):
        assert set(found[name]) == set(FIGURES)
        low, high = found[name]["auroc"]["ci95"]
        assert 0 <= low <= found[name]["auroc"]["value"] <= high <= 1
    assert found == evaluate_stressed(classifier, samples, draws=2)


def test_one_class_is_refused(trained: Path, chest_manifest: Manifest) -> None:
    normals = [sample for sample in chest_manifest.samples if sample.label == NORMAL]
    with pytest.raises(DataError, match="both classes"):
        evaluate_stressed(Classifier.load(trained / "bundle"), normals[:3], draws=1)
