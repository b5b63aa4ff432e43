"""Framing, exposure, texture and overlays, measured on images made for it; machines told apart by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from pneumoscope.data.acquisition import SIDE, exposure, framing, machines, overlays, texture, with_machines
from pneumoscope.data.checks.shortcuts import image_features, out_of_fold, patient_folds
from pneumoscope.data.sources import open_source
from pneumoscope.images.preparation import Pixels
from pneumoscope.records import Estimate
from pneumoscope.statistics.auc import auroc_interval


def chests(n: int, blur: float, grain: float, seed: int) -> Pixels:
    """Return uint8 [n, 224, 224]: smooth random images, each blurred, then with grain."""
    rng = np.random.default_rng(seed)
    base = gaussian_filter(rng.normal(size=(n, SIDE, SIDE)), (0, 20, 20))
    values = 128 + 45 * base / base.std() + gaussian_filter(rng.normal(0, 6, base.shape), (0, blur, blur))
    return np.clip(values + rng.normal(0, grain, base.shape), 0, 255).astype(np.uint8)


def test_framing_says_where_the_lungs_lie() -> None:
    found = framing(np.array([[0.2, 0.8, 0.1, 0.85]]))
    assert found["above the lungs"] == pytest.approx([0.2])
    assert found["below the lungs"] == pytest.approx([0.2])
    assert found["right of the lungs"] == pytest.approx([0.15])
    assert found["lungs, width : height"] == pytest.approx([0.75 / 0.6])


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    sharp = chests(4, 0, 6, 0)
    soft = np.stack([gaussian_filter(image, 1.5) for image in sharp])
    flat = (64 + sharp / 2).astype(np.uint8)
    values = [exposure(images)["sharpness"].mean() for images in (sharp, soft, flat)]
    assert values[1] < 0.5 * values[0]
    assert values[2] == pytest.approx(values[0], rel=0.1)


def test_overlays_see_letters_and_black_edges() -> None:
    image = chests(1, 1, 0, 0)[0] // 2
    marked, cropped = Image.fromarray(image), image.copy()
    ImageDraw.Draw(marked).text((10, 10), "R", fill=255, font=ImageFont.load_default(24))
    cropped[:20] = 0
    found = overlays(np.stack([image, np.asarray(marked), cropped]))
    assert found["burned-in text"][1] > found["burned-in text"][0] + 0.001
    assert found["black edge"][2] > found["black edge"][0] + 0.2


def test_machines_with_other_grain_are_told_apart() -> None:
    images = np.concatenate([chests(12, 0.0, 0.0, 0), chests(8, 1.0, 0.0, 1), chests(8, 2.5, 0.0, 2)])
    label = machines(texture(images), overlays(images), clusters=3)
    assert label.tolist() == [0] * 12 + [label[12]] * 8 + [label[20]] * 8
    assert len(set(label.tolist())) == 3


def test_texture_is_the_same_at_half_the_contrast() -> None:
    images = chests(2, 0.5, 4, 0)
    assert texture(images) == pytest.approx(texture((images // 2).astype(np.uint8)), abs=0.5)


def test_every_feature_is_finite_and_together_they_are_one() -> None:
    images = chests(30, 1, 2, 0)
    same_box = np.tile([0.2, 0.8, 0.1, 0.9], (30, 1))
    features = {feature.name: feature for feature in image_features(images, lambda _: same_box, 0)}
    assert all(np.isfinite(feature.columns).all() for feature in features.values())
    assert "above the lungs" not in features, "what is equal in all images says nothing"
    widest = features["framing and acquisition together"].columns.shape[1]
    assert widest == max(feature.columns.shape[1] for feature in features.values())


def test_clusters_become_sites(tmp_path: Path) -> None:
    for number, image in enumerate(np.concatenate([chests(8, 0, 0, 0), chests(4, 2, 0, 1)])):
        folder = tmp_path / ("NORMAL" if number % 2 else "PNEUMONIA")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    manifest = with_machines(open_source(tmp_path))
    assert len(manifest) == 12
    assert {sample.site for sample in manifest.samples} <= {f"cluster {k}" for k in range(1, 7)}


def test_images_of_one_kind_tell_no_label() -> None:
    """Where labels are drawn by lot nothing tells them; a class that is a little softer is told."""
    rng = np.random.default_rng(5)
    images, y, patients = chests(200, 1, 2, 3), rng.permutation(200) < 100, np.arange(200)
    folds = patient_folds(y, patients, 0)
    boxes = np.array([0.2, 0.8, 0.1, 0.9]) + rng.uniform(-0.05, 0.05, (200, 4))

    def told(pictures: Pixels) -> Estimate:
        together = image_features(pictures, lambda _: boxes, 0)[-1]
        assert together.name == "framing and acquisition together"
        return auroc_interval(y, out_of_fold(together.columns, y, folds, trees=True), patients, seed=0)

    by_lot = told(images)
    assert by_lot.low < 0.5 < by_lot.high
    images[y] = np.stack([gaussian_filter(image, 0.6) for image in images[y]])
    assert told(images).low > 0.95
