"""The nearest labelled images: never the patient's own, never a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import BundleError, DataError
from pneumoscope.explanation.similar import Gallery, nearest, open_gallery
from pneumoscope.images import read_image
from pneumoscope.predict import Classifier


@pytest.fixture(scope="module")
def classifier(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(make_bundle(tmp_path_factory.mktemp("bundle") / "b"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "similar.safetensors"


@pytest.fixture(scope="module")
def gallery(classifier: Classifier, chest_manifest: Manifest, cache: Path) -> Gallery:
    return open_gallery(classifier, chest_manifest, cache)


def ask(gallery: Gallery, classifier: Classifier, path: str | Path, count: int = 6) -> dict[str, object]:
    return nearest(gallery, str(path), classifier.canvas(read_image(str(path))), count)


def test_the_nearest_are_sorted_of_other_patients_and_one_of_each(
    gallery: Gallery, classifier: Classifier, chest_manifest: Manifest
) -> None:
    patients = {sample.path: sample.patient_id for sample in chest_manifest.samples}
    doubled = [p for p in patients if list(patients.values()).count(patients[p]) > 1]
    assert doubled, "the test needs a patient with two images"
    for path in doubled[:4]:
        found = ask(gallery, classifier, path)
        neighbours = found["neighbours"]
        shown = [patients[one["path"]] for one in neighbours]  # type: ignore[attr-defined]
        distances = [one["distance"] for one in neighbours]  # type: ignore[attr-defined]
        assert len(shown) == len(set(shown)) == 6
        assert patients[path] not in shown
        assert distances == sorted(distances)
        assert sum(found["shares"].values()) == pytest.approx(1)  # type: ignore[attr-defined]
        assert found["patient_known"]


def test_distances_are_cosine_distances_of_the_networks_embeddings(gallery: Gallery, classifier: Classifier) -> None:
    path = gallery.manifest.samples[0].path
    found = ask(gallery, classifier, path, 3)
    own = gallery.embed(classifier.canvas(read_image(path))[None])[0]
    for one in found["neighbours"]:  # type: ignore[attr-defined]
        other = gallery.embed(classifier.canvas(read_image(one["path"]))[None])[0]
        cosine = float(own @ other / np.linalg.norm(own) / np.linalg.norm(other))
        assert one["distance"] == pytest.approx(1 - cosine, abs=1e-4)


def test_copies_and_near_copies_elsewhere_are_left_out(
    gallery: Gallery, classifier: Classifier, tmp_path: Path
) -> None:
    source = Path(gallery.manifest.samples[0].path)
    copied = tmp_path / "copy.png"
    shutil.copy(source, copied)
    paler = tmp_path / "paler.png"
    pixels = np.asarray(Image.open(source).convert("L")).astype(float)
    Image.fromarray((pixels * 0.9 + 12).astype(np.uint8)).save(paler)
    for path, reason in ((copied, "the same image"), (paler, "nearly the same image")):
        found = ask(gallery, classifier, path)
        assert reason in found["left_out"]  # type: ignore[operator]
        assert str(source) not in [one["path"] for one in found["neighbours"]]  # type: ignore[attr-defined]
        assert not found["patient_known"]


def test_the_file_name_tells_the_patient_of_an_image_from_elsewhere(
    gallery: Gallery, classifier: Classifier, tmp_path: Path
) -> None:
    sample = next(s for s in gallery.manifest.samples if "person" in Path(s.path).name)
    other = tmp_path / Path(sample.path).name
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(other)
    found = ask(gallery, classifier, other, len(gallery.manifest))
    assert found["patient_known"]
    assert found["left_out"]["the same patient"] >= 1  # type: ignore[index]
    assert sample.path not in [one["path"] for one in found["neighbours"]]  # type: ignore[attr-defined]


def test_embeddings_are_read_again_and_made_anew_for_other_images(
    gallery: Gallery, classifier: Classifier, chest_manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    again = open_gallery(classifier, chest_manifest, cache)
    assert (gallery.cached, again.cached) == (False, True)
    assert np.array_equal(again.embeddings, gallery.embeddings)
    assert again.sha256 == gallery.sha256
    copy = tmp_path / "c.safetensors"
    shutil.copy(cache, copy)
    fewer = replace(chest_manifest, samples=chest_manifest.samples[:5])
    assert not open_gallery(classifier, fewer, copy).cached
    assert len(open_gallery(classifier, fewer, copy).embeddings) == 5


def test_another_bundle_makes_its_own_embeddings(
    gallery: Gallery, chest_manifest: Manifest, cache: Path, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    other = Classifier.load(make_bundle(tmp_path / "b", seed=1))
    copy = tmp_path / "c.safetensors"
    shutil.copy(cache, copy)
    assert not open_gallery(other, chest_manifest, copy).cached


def test_a_file_that_is_something_else_is_not_overwritten(
    classifier: Classifier, chest_manifest: Manifest, tmp_path: Path
) -> None:
    file = tmp_path / "thesis.safetensors"
    file.write_bytes(b"years of work")
    with pytest.raises(DataError, match="not a file of embeddings"):
        open_gallery(classifier, chest_manifest, file)
    assert file.read_bytes() == b"years of work"


def test_without_weights_there_are_no_embeddings(
    make_bundle: Callable[..., Path], chest_manifest: Manifest, tmp_path: Path
) -> None:
    classifier = Classifier.load(make_bundle(tmp_path / "b"), engine="openvino")
    (tmp_path / "b" / "weights.safetensors").unlink()
    with pytest.raises(BundleError, match="is missing"):
        open_gallery(classifier, chest_manifest, tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def test_an_unreadable_image_is_counted_and_never_shown(
    classifier: Classifier, chest_manifest: Manifest, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    samples = (replace(chest_manifest.samples[0], path=str(bad), patient_id="x"), *chest_manifest.samples[1:6])
    gallery = open_gallery(classifier, replace(chest_manifest, samples=samples), tmp_path / "c.safetensors")
    assert (gallery.facts()["images"], gallery.facts()["unreadable"]) == (5, 1)
    found = ask(gallery, classifier, chest_manifest.samples[10].path, 20)
    assert str(bad) not in [one["path"] for one in found["neighbours"]]  # type: ignore[attr-defined]
