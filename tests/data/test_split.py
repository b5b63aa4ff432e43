"""Divisions: a patient is never cut in two, whatever the manifest."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.config import DataConfig
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import divide, divide_by_site, folds, part_off
from pneumoscope.errors import DataError
from pneumoscope.records import NORMAL, PNEUMONIA, Sample

T = TypeVar("T")
KINDS = ((NORMAL, None), (PNEUMONIA, "bacterial"), (PNEUMONIA, "viral"), (PNEUMONIA, None))


def manifest_of(samples: list[Sample]) -> Manifest:
    return Manifest(Path("source"), "csv", tuple(samples), "made up")


def population(seed: int, patients: int = 400) -> list[Sample]:
    """Images of `patients` people in random order: skewed classes, 1 to 6 images each, a few of both classes."""
    rng = np.random.default_rng(seed)
    samples = []
    for patient in range(patients):
        label, subtype = KINDS[rng.choice(4, p=[0.3, 0.35, 0.25, 0.1])]
        for _ in range(rng.integers(1, 7)):
            if rng.random() < 0.02:
                label, subtype = KINDS[rng.integers(4)]
            samples.append(Sample(f"{len(samples)}.png", f"p{patient}", label, subtype))
    return [samples[index] for index in rng.permutation(len(samples))]


@st.composite
def manifests(draw: st.DrawFn) -> list[Sample]:
    """Small and awkward ones: few patients, many images of one, patients of both classes."""
    samples: list[Sample] = []
    for patient in range(draw(st.integers(4, 40))):
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 25]))):
            label, subtype = draw(st.sampled_from(KINDS))
            samples.append(Sample(f"{len(samples)}.png", f"p{patient}", label, subtype))
    return draw(st.permutations(samples))


def patients(samples: list[Sample], indices: list[int]) -> set[str]:
    return {samples[index].patient_id for index in indices}


def attempt(call: Callable[[], T]) -> tuple[T | None, DataError | None]:
    """What a call gives, or the error that says why it cannot."""
    try:
        return call(), None
    except DataError as error:
        return None, error


# --- folds and parts --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(manifests(), st.integers(2, 6), st.integers(0, 2**31))
def test_folds_are_a_partition_by_patient(samples: list[Sample], k: int, seed: int) -> None:
    found, error = attempt(lambda: list(folds(samples, k, seed)))
    if found is None:
        assert "too few" in str(error)
        per_class = [len({s.patient_id for s in samples if s.label == label}) for label in {s.label for s in samples}]
        assert min(per_class) < k
        return
    assert len(found) == k
    assert sorted(index for _, part in found for index in part) == list(range(len(samples)))
    for rest, part in found:
        assert sorted(rest + part) == list(range(len(samples)))
        assert not patients(samples, rest) & patients(samples, part)


@settings(max_examples=60, deadline=None)
@given(manifests(), st.floats(0.01, 0.9), st.integers(0, 2**31))
def test_a_part_is_a_partition_by_patient(samples: list[Sample], fraction: float, seed: int) -> None:
    found, error = attempt(lambda: part_off(samples, fraction, seed))
    if found is None:
        assert "a class has only one patient" in str(error)
        return
    rest, part = found
    assert sorted(rest + part) == list(range(len(samples)))
    assert not patients(samples, rest) & patients(samples, part)
    assert rest
    assert part


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.15, 0.2, 0.33, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_part_has_the_fraction_and_the_mix_asked_for(fraction: float, seed: int) -> None:
    samples = population(seed)
    _, part = part_off(samples, fraction, seed)
    assert len(part) / len(samples) == pytest.approx(fraction, abs=0.03)
    whole = Counter((s.label, s.subtype) for s in samples)
    mine = Counter((samples[index].label, samples[index].subtype) for index in part)
    for kind in KINDS:
        # Half an image of slack for each of the whole patients that chance puts here or there.
        assert mine[kind] / len(part) == pytest.approx(whole[kind] / len(samples), abs=0.04 + 3 / len(part)), kind


def test_folds_are_of_one_size_and_mix() -> None:
    samples = population(3)
    for _, part in folds(samples, 5, 0):
        assert len(part) / len(samples) == pytest.approx(0.2, abs=0.02)
        sick = np.mean([samples[index].label == PNEUMONIA for index in part])
        assert sick == pytest.approx(np.mean([s.label == PNEUMONIA for s in samples]), abs=0.02)


def test_the_seed_decides() -> None:
    samples = population(4, 100)
    assert part_off(samples, 0.2, 1) == part_off(samples, 0.2, 1)
    assert part_off(samples, 0.2, 1) != part_off(samples, 0.2, 2)
    assert list(folds(samples, 4, 1)) == list(folds(samples, 4, 1))
    assert list(folds(samples, 4, 1)) != list(folds(samples, 4, 2))


def test_a_rare_subtype_does_no_harm() -> None:
    samples = population(5, 60)
    samples[0] = replace(samples[0], label=PNEUMONIA, subtype="viral")
    samples = [replace(s, subtype=None) if i and s.subtype == "viral" else s for i, s in enumerate(samples)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(folds(samples, 5, 0))) == 5


# --- divide -----------------------------------------------------------------------------------------------

splits = st.none() | st.sampled_from(["train", "val", "test"])
configs = st.one_of(
    st.builds(DataConfig, val_fraction=st.floats(0.02, 0.4), test_fraction=st.floats(0, 0.4)),
    st.builds(lambda k, fold: DataConfig(folds=k, fold=fold % k), st.integers(2, 5), st.integers(0, 4)),
)


@settings(max_examples=100, deadline=None)
@given(manifests(), configs, st.integers(0, 2**31), st.data())
def test_no_patient_is_ever_in_two_splits(
    samples: list[Sample], config: DataConfig, seed: int, data: st.DataObject
) -> None:
    if data.draw(st.booleans(), label="marked"):
        samples = [replace(s, split=data.draw(splits)) for s in samples]
    manifest = manifest_of(samples)
    divided, error = attempt(lambda: divide(manifest, config, seed))
    if divided is None:
        assert error is not None
        assert error.path == "source"
        assert error.remedy
        return
    seen: dict[str, set[str | None]] = {}
    for sample in divided.samples:
        seen.setdefault(sample.patient_id, set()).add(sample.split)
    assert all(len(parts) == 1 for parts in seen.values())
    assert {sample.split for sample in divided.samples} <= {"train", "val", "test"}
    marked = {s.path for s in samples if s.split == "test"}
    assert {s.path for s in divided.samples if s.path in marked and s.split != "test"} == set()
    for name in ("train", "val"):
        assert {s.label for s in divided.select(name).samples} == {NORMAL, PNEUMONIA}
    assert divide(manifest, config, seed) == divided, "seeded"


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_fractions_are_those_of_the_whole(seed: int) -> None:
    samples = population(seed)
    divided = divide(manifest_of(samples), DataConfig(val_fraction=0.1, test_fraction=0.15), seed)
    assert len(divided) == len(samples)
    share = {name: len(divided.select(name)) / len(samples) for name in ("train", "val", "test")}
    assert share["val"] == pytest.approx(0.1, abs=0.035)
    assert share["test"] == pytest.approx(0.15, abs=0.035)


def test_the_folds_of_an_experiment_cover_everything_once() -> None:
    manifest = manifest_of(population(6, 120))
    tests = [divide(manifest, DataConfig(folds=4, fold=fold), 0).select("test").samples for fold in range(4)]
    paths = [sample.path for part in tests for sample in part]
    assert sorted(paths) == sorted(sample.path for sample in manifest.samples)


def test_the_split_of_the_source_is_kept() -> None:
    samples = [replace(s, split=("train", "val", "test")[int(s.patient_id[1:]) % 3]) for s in population(7, 60)]
    assert divide(manifest_of(samples), DataConfig(split="source"), 0).samples == tuple(samples)
    unsplit = [replace(s, split=None) for s in samples]
    with pytest.raises(DataError, match="source: no images in split 'train'; the source is not split"):
        divide(manifest_of(unsplit), DataConfig(split="source"), 0)
    one_class = [s for s in samples if s.split != "val" or s.label == NORMAL]
    with pytest.raises(DataError, match="no PNEUMONIA images, both classes are needed for split 'val'"):
        divide(manifest_of(one_class), DataConfig(split="source"), 0)


def test_images_marked_test_take_their_patients_with_them() -> None:
    samples = population(8, 100)
    samples[0] = replace(samples[0], split="test")
    owner = samples[0].patient_id
    divided = divide(manifest_of(samples), DataConfig(), 0)
    assert [s.path for s in divided.samples if s.patient_id == owner] == [samples[0].path]


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([Sample("a", "p", None)], "no image has a label"),
        ([Sample("a", "p", NORMAL)], "no PNEUMONIA images, both classes are needed for training"),
        ([Sample("a", "p", NORMAL, split="test"), Sample("b", "q", PNEUMONIA, split="test")], "every image is marked"),
        (
            [
                Sample("a", "p", NORMAL, split="test"),
                Sample("b", "q", PNEUMONIA, split="test"),
                Sample("c", "q", PNEUMONIA),
            ],
            "every patient has an image marked test; give images of other patients",
        ),
        ([Sample("a", "p", NORMAL), Sample("b", "q", PNEUMONIA)], "a class has only one patient"),
    ],
)
def test_what_cannot_be_divided(samples: list[Sample], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        divide(manifest_of(samples), DataConfig(), 0)
    assert caught.value.path == "source"
    assert caught.value.remedy


def test_too_many_folds() -> None:
    samples = population(9, 20)
    with pytest.raises(DataError, match=r"source: class \w+ has \d+ patients, too few for 50 parts; use fewer folds"):
        divide(manifest_of(samples), DataConfig(folds=50), 0)


# --- by site ----------------------------------------------------------------------------------------------


def test_one_site_is_left_out_whole_and_patients_stay_whole() -> None:
    samples = [
        Sample(f"{k}-{j}.png", f"p{k}", (NORMAL, PNEUMONIA)[k % 2], site="north" if k < 12 and j < 2 else "south")
        for k in range(60)
        for j in range(3)
    ]
    manifest = Manifest(Path("somewhere"), "csv", tuple(samples), "given")
    divided = divide_by_site(manifest, "north", DataConfig(), seed=0)
    assert {sample.patient_id for sample in divided.select("test").samples} == {f"p{k}" for k in range(12)}
    assert len(divided.select("test")) == 36, "their images from elsewhere go with them"
    parts = [{s.patient_id for s in divided.select(name).samples} for name in ("train", "val", "test")]
    assert not parts[0] & parts[1]
    assert not parts[2] & (parts[0] | parts[1])


def test_an_unknown_site_is_refused_and_the_known_are_named() -> None:
    samples = [Sample(f"{k}.png", f"p{k}", (NORMAL, PNEUMONIA)[k % 2], site="south") for k in range(8)]
    with pytest.raises(DataError, match="no image is of 'north'") as raised:
        divide_by_site(Manifest(Path("x"), "csv", tuple(samples), "given"), "north", DataConfig(), seed=0)
    assert "south" in str(raised.value.remedy)


def test_a_source_with_a_test_part_keeps_it() -> None:
    samples = population(5, patients=120)
    marked = [replace(sample, split="test") if sample.patient_id < "p3" else sample for sample in samples]
    test = {sample.path for sample in marked if sample.split == "test"}
    divided = divide(manifest_of(marked), DataConfig(val_fraction=0.1, test_fraction=0.3), 0)
    assert {sample.path for sample in divided.select("test").samples} == test
