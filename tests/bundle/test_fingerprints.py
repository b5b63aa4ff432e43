"""The list of images that a bundle learned from: written, read, searched, and kept small."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import pneumoscope.bundle.fingerprints as module
from pneumoscope.bundle.bundle import FINGERPRINTS, load_bundle
from pneumoscope.bundle.fingerprints import PARTS, fingerprints_of, read_fingerprints
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.sources import open_source
from pneumoscope.errors import BundleError


@pytest.fixture(scope="module")
def paths(chest_manifest: Manifest) -> list[str]:
    return [sample.path for sample in chest_manifest.samples]


def _halves(count: int) -> list[str]:
    return ["train" if index % 2 else "test" for index in range(count)]


def test_what_is_read_is_what_was_written(paths: list[str], tmp_path: Path) -> None:
    known = fingerprints_of(paths, _halves(len(paths)))
    again = read_fingerprints(known.to_bytes(), known.section(), tmp_path)
    assert again.salt == known.salt
    assert again.totals == known.totals
    for name in ("content", "look", "part"):
        assert np.array_equal(getattr(again, name), getattr(known, name))
    assert len(known.to_bytes()) < 41 * len(paths) + 400


def test_the_order_of_the_images_is_nothing_to_it(paths: list[str]) -> None:
    parts = _halves(len(paths))
    assert fingerprints_of(paths, parts).to_bytes() == fingerprints_of(paths[::-1], parts[::-1]).to_bytes()


def test_each_image_is_recognised_with_its_part_and_no_other_is(paths: list[str], chest_manifest: Manifest) -> None:
    half = {sample.patient_id for sample in chest_manifest.samples[: len(paths) // 2]}
    inside = [sample.path for sample in chest_manifest.samples if sample.patient_id in half]
    outside = [sample.path for sample in chest_manifest.samples if sample.patient_id not in half]
    parts = _halves(len(inside))
    known = fingerprints_of(inside, parts)
    found = known.matches(inside)
    assert [match.part for match in found if match] == parts
    assert {match.by for match in found if match} == {"content"}
    assert known.matches(outside) == [None] * len(outside)


def test_more_images_than_are_kept_are_drawn_and_their_share_is_known(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 20)
    known = fingerprints_of(paths, ["train"] * len(paths))
    assert len(known.part) == 20
    assert known.share == pytest.approx(20 / len(paths))
    assert sum(match is not None for match in known.matches(paths)) >= 20


def test_a_joined_list_knows_both(paths: list[str]) -> None:
    first = fingerprints_of(paths[:10], ["train"] * 10)
    both = first.joined(fingerprints_of(paths[10:14], ["adapted"] * 4, salt=first.salt))
    assert both.totals == dict.fromkeys(PARTS, 0) | {"train": 10, "adapted": 4}
    assert [match.part for match in both.matches(paths[:14]) if match] == ["train"] * 10 + ["adapted"] * 4


def test_an_image_that_cannot_be_read_is_left_out(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    known = fingerprints_of([*paths[:3], str(tmp_path / "broken.png")], ["train"] * 4)
    assert known.totals["train"] == 3
    assert known.matches([str(tmp_path / "broken.png"), str(tmp_path / "absent.png")]) == [None, None]


# --- in a bundle ------------------------------------------------------------------------------------------


def test_a_trained_bundle_knows_every_image_of_its_division(trained: Path) -> None:
    bundle = load_bundle(trained / "bundle")
    known = bundle.fingerprints()
    assert known is not None
    divided = open_source(trained / "split.csv").samples
    found = known.matches([sample.path for sample in divided])
    assert [match.part for match in found if match] == [sample.split for sample in divided]
    facts = bundle.card["fingerprints"]
    assert facts["bytes"] == (trained / "bundle" / FINGERPRINTS).stat().st_size


def test_a_bundle_without_fingerprints_still_loads(make_bundle: object, tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "old"))  # type: ignore[operator]
    assert bundle.fingerprints() is None
    assert bundle.fingerprints_file() == {}


@pytest.mark.parametrize("damage", ["removed", "changed", "unnamed"])
def test_a_damaged_file_is_noticed(damage: str, trained: Path, make_bundle: object, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    file = folder / FINGERPRINTS
    if damage == "unnamed":
        make_bundle(folder)  # type: ignore[operator]
        shutil.copy(trained / "bundle" / FINGERPRINTS, file)
    else:
        shutil.copytree(trained / "bundle", folder)
        if damage == "removed":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-1] + b"\x09")
    with pytest.raises(BundleError, match="fingerprints"):
        load_bundle(folder)


def test_a_list_of_another_form_is_refused(paths: list[str], tmp_path: Path) -> None:
    known = fingerprints_of(paths[:3], ["train"] * 3)
    with pytest.raises(BundleError, match="not of this version"):
        read_fingerprints(known.to_bytes(), {**known.section(), "salt": "no hex"}, tmp_path)
    with pytest.raises(BundleError, match="not of this version"):
        read_fingerprints(b"nothing", known.section(), tmp_path)
