"""The list of images: selecting, describing, writing and reading back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pneumoscope.data.manifest import Manifest, counts
from pneumoscope.data.sources import open_source
from pneumoscope.errors import DataError
from pneumoscope.records import NORMAL, PNEUMONIA, Sample


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    root = tmp_path / "source"
    root.mkdir()
    for number in range(3):
        (root / f"{number}.png").write_bytes(bytes(number + 1))
    samples = (
        Sample(str(root / "0.png"), "p0", NORMAL, split="train", covariates={"crp": "12"}),
        Sample(str(root / "1.png"), "p1", PNEUMONIA, "viral", "val", "north", 4.5, "F", "PA", {"kvp": "70"}),
        Sample(str(root / "2.png"), "p2"),
    )
    return Manifest(root, "folder", samples, "made up")


def test_selecting(manifest: Manifest) -> None:
    assert [sample.patient_id for sample in manifest.select("val").samples] == ["p1"]
    with pytest.raises(DataError, match="source: no images in split 'test'; the source has train, val"):
        manifest.select("test")
    unsplit = manifest.where(lambda sample: sample.split is None)
    with pytest.raises(DataError, match="the source is not split"):
        unsplit.select("test")


def test_labels(manifest: Manifest) -> None:
    assert len(manifest.labelled()) == 2
    assert manifest.labelled().require_both_classes("anything") == manifest.labelled()
    with pytest.raises(DataError, match="source: no image has a label; use the layout NORMAL/ and PNEUMONIA/"):
        manifest.where(lambda sample: sample.label is None).labelled()
    with pytest.raises(DataError, match="no PNEUMONIA images, both classes are needed for a test"):
        manifest.select("train").require_both_classes("a test")
    with pytest.raises(DataError, match="no NORMAL and no PNEUMONIA images"):
        manifest.where(lambda sample: sample.label is None).require_both_classes("a test")
    assert counts(manifest.samples) == {"NORMAL": 1, "PNEUMONIA": 1, "unlabelled": 1}


def test_what_is_written_is_read_back(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write_csv(tmp_path / "elsewhere" / "list.csv")
    again = open_source(tmp_path / "elsewhere" / "list.csv")
    assert again.patient_rule == "column patient_id"
    for before, after in zip(manifest.samples, again.samples, strict=True):
        assert Path(after.path).resolve() == Path(before.path).resolve()
        kept = {**{"crp": "", "kvp": ""}, **before.covariates}
        assert replace(after, path=before.path) == replace(before, covariates=kept)
    assert len(again.frame()) == 3


def test_an_archive_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "a.npz").touch()
    sample = Sample(f"{tmp_path / 'a.npz'}#val/3", "p", NORMAL)
    Manifest(tmp_path / "a.npz", "medmnist", (sample,), "none").write_csv(tmp_path / "deep" / "x.csv")
    [again] = open_source(tmp_path / "deep" / "x.csv").samples
    file, row = again.path.split("#")
    assert (Path(file).resolve(), row) == (tmp_path / "a.npz", "val/3")


def test_the_frame_keeps_covariates(manifest: Manifest) -> None:
    frame = manifest.frame()
    assert list(frame["crp"].fillna("")) == ["12", "", ""]
    assert list(frame["age_years"].dropna()) == [4.5]


# --- identity ---------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_content_not_of_the_place(manifest: Manifest, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(manifest.source, moved)
    samples = tuple(replace(sample, path=str(moved / Path(sample.path).name)) for sample in manifest.samples)
    assert replace(manifest, source=moved, samples=samples).fingerprint() == manifest.fingerprint()


@pytest.mark.parametrize("change", [{"label": PNEUMONIA}, {"patient_id": "other"}])
def test_the_fingerprint_changes_with_the_manifest(manifest: Manifest, change: dict[str, str]) -> None:
    samples = (replace(manifest.samples[0], **change), *manifest.samples[1:])
    assert replace(manifest, samples=samples).fingerprint() != manifest.fingerprint()


def test_the_fingerprint_is_that_of_the_set_not_of_its_order_or_division(manifest: Manifest) -> None:
    samples = tuple(replace(sample, split="test") for sample in reversed(manifest.samples))
    assert replace(manifest, samples=samples).fingerprint() == manifest.fingerprint()


def test_the_fingerprint_changes_with_a_file(manifest: Manifest) -> None:
    before = manifest.fingerprint()
    Path(manifest.samples[0].path).write_bytes(b"longer than it was")
    assert manifest.fingerprint() != before
    Path(manifest.samples[0].path).unlink()
    assert manifest.fingerprint() != before


def test_a_sharp_in_a_name_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "scan#1.png").write_bytes(b"x")
    manifest = Manifest(tmp_path, "folder", (Sample(str(tmp_path / "scan#1.png"), "p", NORMAL),), "made up")
    before = manifest.fingerprint()
    (tmp_path / "scan#1.png").write_bytes(b"longer")
    assert manifest.fingerprint() != before
