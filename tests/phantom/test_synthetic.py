"""The radiograph generator: truth fits the pixels, no shortcut to the class, a whole data set or none."""

from __future__ import annotations

import csv
import errno
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_dilation
from sklearn.metrics import roc_auc_score

from pneumoscope.errors import ConfigError, StorageError
from pneumoscope.images import read_image
from pneumoscope.phantom import synthetic
from pneumoscope.phantom.synthetic import KINDS, SyntheticRadiograph, noise_field, render, write_dataset

ILL = ("bacterial", "viral")
NAMES = {
    "normal": re.compile(r"IM-(\d{4})-\d{4}\.png"),
    "bacterial": re.compile(r"person(\d+)_bacteria_\d+\.png"),
    "viral": re.compile(r"person(\d+)_virus_\d+\.png"),
}


def shot(seed: int, kind: str, **options: object) -> SyntheticRadiograph:
    return render(np.random.default_rng(seed), kind=kind, **options)  # type: ignore[arg-type]


# --- one image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_image(kind: str) -> None:
    one, two, other = shot(3, kind), shot(3, kind), shot(4, kind)
    for field in ("pixels", "lungs", "opacity"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    assert (one.age_years, one.sex, one.marker, one.severity) == (
        two.age_years,
        two.sex,
        two.marker,
        two.severity,
    )
    assert (one.pixels != other.pixels).any()


def test_a_generator_gives_new_patients_as_it_goes_on() -> None:
    rng = np.random.default_rng(0)
    assert (render(rng, kind="normal").lungs != render(rng, kind="normal").lungs).any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(32, 260),
    kind=st.sampled_from(KINDS),
    adult=st.none() | st.booleans(),
    severity=st.none() | st.floats(0, 1),
)
def test_shapes_ranges_and_truth(seed: int, size: int, kind: str, adult: bool | None, severity: float | None) -> None:
    image = shot(seed, kind, size=size, adult=adult, severity=severity)
    assert image.pixels.shape == image.lungs.shape == image.opacity.shape == (size, size)
    assert image.pixels.dtype == np.uint8
    assert image.lungs.dtype == image.opacity.dtype == np.bool_
    assert int(image.pixels.max()) - int(image.pixels.min()) > 90
    assert 0.08 < image.lungs.mean() < 0.55
    assert not (image.opacity & ~image.lungs).any()
    assert image.opacity.any() == (kind != "normal")
    assert image.kind == kind
    assert image.sex in ("F", "M")
    assert image.view in ("AP", "PA")
    assert image.marker in (None, "L", "R")
    if adult is not None:
        assert (image.age_years >= 18) == adult
    if kind == "normal":
        assert image.severity == 0


@pytest.mark.parametrize("seed", range(12))
def test_kinds_of_one_seed_differ_by_the_disease_alone(seed: int) -> None:
    healthy = shot(seed, "normal", size=128)
    for kind in ILL:
        ill = shot(seed, kind, size=128)
        np.testing.assert_array_equal(ill.lungs, healthy.lungs)
        assert (ill.marker, ill.age_years, ill.sex, ill.view) == (
            healthy.marker, healthy.age_years, healthy.sex, healthy.view,
        )  # fmt: skip
        outside = ~binary_dilation(healthy.lungs, iterations=2)
        np.testing.assert_array_equal(ill.pixels[outside], healthy.pixels[outside])
        gain = ill.pixels.astype(float) - healthy.pixels
        assert gain[ill.opacity].mean() > 1
        assert gain[ill.opacity].mean() > 3 * gain[~ill.opacity].mean()


@pytest.mark.parametrize("kind", ILL)
def test_severity_makes_the_opacity_denser(kind: str) -> None:
    for seed in range(8):
        healthy = shot(seed, "normal", size=96).pixels.astype(float)
        total = [np.sum(shot(seed, kind, size=96, severity=s).pixels - healthy) for s in (0.0, 0.5, 1.0)]
        assert 0 < total[0] < total[1] < total[2]


def test_bacterial_fills_one_lung_and_viral_both() -> None:
    columns = np.arange(128)[None, :]
    for seed in range(20):
        image = shot(seed, "bacterial", size=128)
        # With the spine near the centre of the image, an opacity of one lung stays on its side.
        sides = [(image.opacity & half).sum() for half in (columns < 64, columns >= 64)]
        assert max(sides) > 0.9 * sum(sides)
        image = shot(seed, "viral", size=128)
        assert all((image.opacity & half).sum() > 20 for half in (columns < 50, columns >= 78))


def test_lungs_are_dark_and_the_heart_lies_to_the_patients_left() -> None:
    share = []
    for seed in range(30):
        image = shot(seed, "normal", size=128)
        rows = np.nonzero(image.lungs)[0]
        middle = image.pixels[rows.min() : rows.max(), 60:68]
        assert np.median(image.pixels[image.lungs]) < np.median(middle)
        lower = image.lungs[int(np.quantile(rows, 0.5)) : int(np.quantile(rows, 0.9))]
        share.append(lower[:, 64:].sum() / lower.sum())
    assert np.mean(share) < 0.47


@pytest.mark.parametrize(("marker", "side"), [("L", 1), ("R", 0)])
def test_the_letter_is_on_the_side_it_names(marker: str, side: int) -> None:
    for seed in range(10):
        letter = synthetic._letter(np.random.default_rng(seed), marker, 200)
        halves = [letter[:, :100].sum(), letter[:, 100:].sum()]
        assert halves[side] > 20
        assert halves[1 - side] == 0


def test_children_and_adults_are_drawn_three_to_seven() -> None:
    adults = [shot(seed, "normal", size=32).age_years >= 18 for seed in range(300)]
    assert 0.2 < np.mean(adults) < 0.4


@pytest.mark.parametrize(
    "options", [{"kind": "fungal"}, {"kind": "viral", "size": 31}, {"kind": "viral", "severity": 1.5}]
)
def test_wrong_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"fungal|31|1\.5"):
        render(np.random.default_rng(0), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("cells", [30, 45])
def test_noise_has_unit_variance_and_is_smooth(cells: int) -> None:
    field = noise_field(np.random.default_rng(1), 300, cells)
    assert field.dtype == np.float32
    assert field.std() == pytest.approx(1, abs=0.1)
    assert abs(field.mean()) < 0.1
    assert np.abs(np.diff(field, axis=0)).mean() < 0.25


def test_no_global_statistic_tells_the_class() -> None:
    """A reader that sees only brightness, contrast or sharpness must not pass for one that sees pneumonia."""
    kinds = ["normal", "bacterial", "normal", "viral"] * 75
    images = [shot(10_000 + index, kind, size=64).pixels.astype(float) for index, kind in enumerate(kinds)]
    ill = [kind != "normal" for kind in kinds]
    statistics = {
        "mean": [image.mean() for image in images],
        "std": [image.std() for image in images],
        "median": [np.median(image) for image in images],
        "sharpness": [np.abs(np.diff(image)).mean() for image in images],
        "border": [np.concatenate([image[:, :3], image[:, -3:]]).mean() for image in images],
    }
    for name, values in statistics.items():
        area = roc_auc_score(ill, values)
        assert max(area, 1 - area) <= 0.65, f"{name}: AUROC {area:.3f}"


# --- a data set -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("synthetic") / "set", patients=40, seed=5, size=48)


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_manifest_lists_every_image_once(folder: Path, rows: list[dict[str, str]]) -> None:
    assert tuple(rows[0]) == synthetic.COLUMNS
    found = {
        path.relative_to(folder).as_posix() for split in synthetic.SPLITS for path in (folder / split).rglob("*.png")
    }
    assert sorted(row["path"] for row in rows) == sorted(found)
    for row in rows:
        split, label, name = row["path"].split("/")
        assert (split, label) == (row["split"], row["label"])
        assert (row["label"] == "NORMAL") == (row["subtype"] == "")
        assert NAMES[row["subtype"] or "normal"].fullmatch(name)
        assert row["site"] == "synthetic"


def test_a_patient_lies_in_one_split_and_keeps_age_and_sex(rows: list[dict[str, str]]) -> None:
    by_patient = defaultdict(set)
    by_name = defaultdict(set)
    for row in rows:
        by_patient[row["patient_id"]].add((row["split"], row["age_years"], row["sex"], row["subtype"]))
        kind = row["subtype"] or "normal"
        number = NAMES[kind].fullmatch(row["path"].rsplit("/", 1)[1])
        assert number is not None
        by_name[kind, number[1]].add(row["patient_id"])
    assert len(by_patient) == len(by_name) == 40
    assert all(len(facts) == 1 for facts in by_patient.values())
    assert all(len(patients) == 1 for patients in by_name.values())
    splits = [split for facts in by_patient.values() for split, *_ in facts]
    # 16 normal, 12 bacterial, 12 viral: 11 + 9 + 9, 2 + 1 + 1 and 3 + 2 + 2.
    assert [splits.count(name) for name in ("train", "val", "test")] == [29, 4, 7]


def test_images_of_one_patient_differ_in_film_and_number(folder: Path, rows: list[dict[str, str]]) -> None:
    images = defaultdict(list)
    for row in rows:
        images[row["patient_id"]].append((folder / row["path"]).read_bytes())
    counts = {len(shots) for shots in images.values()}
    assert counts == {1, 2, 3}
    assert all(len(set(shots)) == len(shots) for shots in images.values())


def test_masks_lie_beside_and_fit(folder: Path, rows: list[dict[str, str]]) -> None:
    for row in rows:
        lungs, opacity = (
            np.asarray(Image.open(folder / "masks" / row["path"].replace(".png", f"-{name}.png")))
            for name in ("lungs", "opacity")
        )
        pixels = read_image(folder / row["path"]).pixels
        assert lungs.shape == opacity.shape == pixels.shape == (48, 48)
        assert set(np.unique(lungs)) == {0, 255}
        assert (lungs[opacity > 0] == 255).all()
        assert opacity.any() == (row["label"] == "PNEUMONIA")
        assert pixels[lungs > 0].mean() < pixels[8:40, 22:26].mean()
    assert len(list((folder / "masks").rglob("*.png"))) == 2 * len(rows)


def test_every_file_says_that_it_is_synthetic(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            assert image.info["Comment"] == "synthetic radiograph, not a patient"
    assert "no person" in (folder / "SYNTHETIC.txt").read_text(encoding="utf-8")


def test_same_seed_same_files(folder: Path, tmp_path: Path) -> None:
    again = write_dataset(tmp_path / "again", patients=40, seed=5, size=48)
    for path in folder.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("patients", "fraction"), [(1, 0.0), (2, 1.0), (9, 0.67), (20, 0.6)])
def test_small_sets_keep_the_number_of_patients(tmp_path: Path, patients: int, fraction: float) -> None:
    out = write_dataset(tmp_path / "set", patients=patients, seed=1, size=32, pneumonia_fraction=fraction)
    lines = (out / "manifest.csv").read_text(encoding="utf-8").splitlines()[1:]
    people = {line.split(",")[2]: line.split(",") for line in lines}
    assert len(people) == patients
    assert sum(fields[1] == "PNEUMONIA" for fields in people.values()) == round(patients * fraction)
    if patients >= 9:
        assert {(fields[-1], fields[1]) for fields in people.values()} == {
            (split, label) for split in ("train", "val", "test") for label in ("NORMAL", "PNEUMONIA")
        }


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_adult_fraction(tmp_path: Path, fraction: float) -> None:
    out = write_dataset(tmp_path / "set", patients=6, seed=2, size=32, adult_fraction=fraction)
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        assert {float(row["age_years"]) >= 18 for row in csv.DictReader(stream)} == {fraction == 1}


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    out = tmp_path / "set"
    if before:
        write_dataset(out, patients=2, seed=0, size=32)
    old = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write, calls = synthetic._write_png, []

    def fail(path: Path, values: synthetic.Pixels) -> None:
        calls.append(path)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, values)

    monkeypatch.setattr(synthetic, "_write_png", fail)
    with pytest.raises(StorageError, match="no space left"):
        write_dataset(out, patients=5, seed=1, size=32)
    assert len(calls) == 5
    assert list(tmp_path.iterdir()) == ([out] if before else [])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == old


def test_replaces_its_own_set_but_nothing_else(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "set", patients=2, seed=0, size=32)
    write_dataset(out, patients=1, seed=0, size=32)
    assert len({row.split(",")[2] for row in (out / "manifest.csv").read_text().splitlines()[1:]}) == 1
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="something else"):
        write_dataset(foreign, patients=1, seed=0, size=32)
    assert (foreign / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "options",
    [
        {"patients": 0},
        {"patients": 1, "max_images_per_patient": 0},
        {"patients": 1, "size": 8},
        {"patients": 1, "adult_fraction": 1.2},
        {"patients": 1, "pneumonia_fraction": -0.1},
    ],
)
def test_wrong_data_set_options_write_nothing(tmp_path: Path, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        write_dataset(tmp_path / "set", seed=0, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
