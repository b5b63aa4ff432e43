"""Copies get one patient, whatever their names, and so never cross a division."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pneumoscope.config import DataConfig
from pneumoscope.data.copies import join_copies
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.data.split import divide
from pneumoscope.errors import DataError
from pneumoscope.records import NORMAL, PNEUMONIA


def _encoded(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        image.convert("L").resize((180, 180)).save(target, quality=60)


def _cropped(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        wide = image.convert("L").resize((300, 300))
        wide.crop((6, 5, 294, 296)).save(target, quality=80)


def _with_copies(
    manifest: Manifest, count: int, folder: Path, write: Callable[[Path, Path], object]
) -> tuple[Manifest, list[tuple[int, int]]]:
    """Return the manifest with copies of its first images under other names, and the pairs of rows."""
    folder.mkdir()
    samples = list(manifest.samples)
    for row in range(count):
        original = samples[row]
        path = folder / f"other-{row}{Path(original.path).suffix if write is shutil.copy else '.jpg'}"
        write(Path(original.path), path)
        samples.append(replace(original, path=str(path), patient_id=path.name))
    return replace(manifest, samples=tuple(samples)), [(row, len(manifest) + row) for row in range(count)]


@pytest.mark.parametrize("write", [shutil.copy, _encoded, _cropped])
def test_copies_under_other_names_stay_in_one_part(
    write: Callable[[Path, Path], object], chest_manifest: Manifest, tmp_path: Path
) -> None:
    config = DataConfig(val_fraction=0.2, test_fraction=0.2)
    manifest, pairs = _with_copies(chest_manifest, 30, tmp_path / "copies", write)

    def crossing(divided: Manifest) -> int:
        of = {sample.path: sample.split for sample in divided.samples}
        return sum(of[manifest.samples[a].path] != of[manifest.samples[b].path] for a, b in pairs)

    copies = join_copies(manifest)
    assert crossing(divide(manifest, config, 0)) > 0
    assert crossing(divide(copies.manifest, config, 0)) == 0
    assert "30 images occur under several patients" in copies.says[0]


def test_a_source_without_copies_comes_back_as_it_is(chest_manifest: Manifest) -> None:
    copies = join_copies(chest_manifest)
    assert copies.manifest is chest_manifest
    assert copies.groups == copies.says == ()


def test_copies_of_one_patient_change_nothing(chest_manifest: Manifest, tmp_path: Path) -> None:
    first = chest_manifest.samples[0]
    twin = shutil.copy(first.path, tmp_path / "twin.png")
    manifest = replace(chest_manifest, samples=(*chest_manifest.samples, replace(first, path=str(twin))))
    copies = join_copies(manifest)
    assert copies.manifest is manifest
    assert copies.groups == ((0, len(chest_manifest)),)


def test_patients_are_joined_through_a_chain_of_copies(chest_manifest: Manifest, tmp_path: Path) -> None:
    a, b, c = (chest_manifest.samples[row] for row in (0, 20, 40))
    links = [replace(a, patient_id=b.patient_id), replace(b, patient_id=c.patient_id)]
    samples = []
    for number, link in enumerate(links):
        path = shutil.copy(link.path, tmp_path / f"{number}.png")
        samples.append(replace(link, path=str(path)))
    joined = join_copies(replace(chest_manifest, samples=(a, b, c, *samples))).manifest
    assert {sample.patient_id for sample in joined.samples} == {min(s.patient_id for s in (a, b, c))}


def test_a_copy_of_a_test_image_is_not_trained_on(chest_manifest: Manifest, tmp_path: Path) -> None:
    marked = [replace(s, split="test") for s in chest_manifest.samples[:4]]
    rest = [replace(s, split=None) for s in chest_manifest.samples[4:]]
    path = tmp_path / "renamed.jpg"
    _encoded(Path(marked[0].path), path)
    copy = replace(marked[0], path=str(path), patient_id="renamed", split=None)
    manifest = join_copies(replace(chest_manifest, samples=(*marked, *rest, copy))).manifest
    divided = divide(manifest, DataConfig(val_fraction=0.2), 0)
    assert str(path) not in {sample.path for sample in divided.samples}


def test_one_file_with_both_labels_is_refused(chest_manifest: Manifest, tmp_path: Path) -> None:
    first = chest_manifest.samples[0]
    other = NORMAL if first.label == PNEUMONIA else PNEUMONIA
    twin = replace(first, path=str(shutil.copy(first.path, tmp_path / "twin.png")), label=other, patient_id="x")
    manifest = replace(chest_manifest, samples=(*chest_manifest.samples, twin))
    with pytest.raises(DataError, match="byte for byte the same") as error:
        join_copies(manifest)
    assert first.path in str(error.value)
    near = tmp_path / "near.jpg"
    _encoded(Path(first.path), near)
    doubts = join_copies(replace(manifest, samples=(*chest_manifest.samples, replace(twin, path=str(near))))).says
    assert "have both labels" in doubts[-1]


def test_a_class_that_cannot_be_read_is_spoken_of(chest_manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"none")
    normal = [s for s in chest_manifest.samples if s.label == NORMAL]
    broken = [replace(normal[0], path=str(tmp_path / "broken.png"), patient_id="x")] * 8
    says = join_copies(replace(chest_manifest, samples=(*normal[:20], *broken))).says
    assert any("8 of 28 images of NORMAL cannot be read" in text for text in says)


@pytest.mark.data
def test_the_division_of_the_public_set_is_what_it_was(real_data: Path) -> None:
    manifest = open_source(real_data / "kermany224")
    copies = join_copies(manifest)
    assert copies.manifest is manifest  # its 24 groups of equal files are of one patient each
    divided = divide(copies.manifest, DataConfig(test_fraction=0.15), 0)
    parts = {name: divided.select(name).fingerprint()[:16] for name in ("train", "val", "test")}
    assert parts == {"train": "f8eba8afcc7bc47b", "val": "7c4df2a49e6013c9", "test": "b94a479a9e4193d9"}
