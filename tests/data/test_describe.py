"""`describe` and the pass over the images behind it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.data.describe import describe, quantiles
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.scan import BINS, FIELD, THUMB, scan
from pneumoscope.data.sources import open_source
from pneumoscope.errors import StorageError
from pneumoscope.records import RESEARCH_ONLY

NAMES = {
    "NORMAL": ["IM-0001-0001.png", "IM-0001-0002.png", "NORMAL2-IM-0001-0001.png"],
    "PNEUMONIA": ["person1_bacteria_1.png", "person1_virus_2.png", "person2_bacteria_3.png", "other.png"],
}


def paint(path: Path, seed: int, size: tuple[int, int] = (60, 48), mean: int = 120) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    noise = np.random.default_rng(seed).integers(-40, 41, (height, width))
    Image.fromarray((mean + noise).astype(np.uint8)).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    for label, names in NAMES.items():
        for number, name in enumerate(names):
            wide = (60, 48) if label == "NORMAL" else (80, 40)
            paint(root / "train" / label / name, hash_of(name, number), wide, 90 if label == "NORMAL" else 150)
    return root


def hash_of(name: str, number: int) -> int:
    return sum(name.encode()) * 10 + number


def test_counts_by_class_subtype_split_and_patient(source: Path, tmp_path: Path) -> None:
    found = describe(open_source(source), tmp_path / "out")
    assert found["n"] == found["n_readable"] == 7
    assert {label: row["images"] for label, row in found["classes"].items()} == {"NORMAL": 3, "PNEUMONIA": 4}
    assert found["classes"]["NORMAL"]["patients"] == 2
    assert found["classes"]["PNEUMONIA"]["share"] == pytest.approx(4 / 7)
    assert found["subtypes"] == {
        "bacterial": {"images": 2, "patients": 2},
        "viral": {"images": 1, "patients": 1},
    }
    assert found["splits"] == {"train": {"NORMAL": 3, "PNEUMONIA": 4}}
    # person1 with bacterial and person1 with viral pneumonia are two children
    assert found["patients"]["n"] == 6
    assert found["patients"]["with_both_classes"] == 0
    assert found["patients"]["images_per_patient"]["NORMAL"]["histogram"] == {"1": 1, "2": 1}


def test_sizes_and_intensities_by_class(source: Path, tmp_path: Path) -> None:
    images = (found := describe(open_source(source), tmp_path / "out"))["images"]
    assert images["width"]["NORMAL"]["median"] == 60
    assert images["aspect_ratio"]["PNEUMONIA"]["median"] == pytest.approx(2.0)
    assert images["sizes"]["distinct"] == 2
    assert images["sizes"]["most_frequent"][0] == {"width": 80, "height": 40, "images": 4}
    assert images["modes"] == {"L": {"NORMAL": 3, "PNEUMONIA": 4}}
    intensity = found["intensity"]
    assert intensity["mean"]["NORMAL"]["median"] == pytest.approx(90 / 255, abs=0.01)
    assert intensity["mean"]["PNEUMONIA"]["median"] == pytest.approx(150 / 255, abs=0.01)
    for shares in intensity["histogram"].values():
        assert len(shares) == BINS
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert int(np.argmax(np.cumsum(intensity["histogram"]["NORMAL"]) > 0.5)) == 90 * BINS // 256


def test_json_file_is_what_is_returned_and_says_what_it_is_for(source: Path, tmp_path: Path) -> None:
    found = describe(open_source(source), tmp_path / "out", seed=3)
    written = json.loads((tmp_path / "out" / "describe.json").read_text(encoding="utf-8"))
    assert written["classes"] == found["classes"]
    assert written["notice"] == RESEARCH_ONLY
    assert written["seed"] == 3


def test_figures_exist_and_are_named_relative_to_the_folder(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    figures = describe(open_source(source), out)["figures"]
    titles = {mosaic["title"]: mosaic for mosaic in figures["mosaics"]}
    assert set(titles) == {
        "NORMAL",
        "PNEUMONIA, bacterial",
        "PNEUMONIA, viral",
        "PNEUMONIA of unknown subtype",
    }
    assert titles["NORMAL"]["names"] == [f"train/NORMAL/{name}" for name in NAMES["NORMAL"]]
    for record in (*figures["mosaics"], *figures["means"].values(), figures["difference"]):
        with Image.open(out / record["file"]) as image:
            image.verify()


def test_mean_images_share_one_window_and_the_difference_is_symmetric(source: Path, tmp_path: Path) -> None:
    manifest = open_source(source)
    found = describe(manifest, tmp_path / "out")
    means = {}
    for label, record in found["figures"]["means"].items():
        with Image.open(tmp_path / "out" / record["file"]) as image:
            means[label] = np.asarray(image, dtype=float).mean()
    assert means["PNEUMONIA"] / means["NORMAL"] == pytest.approx(150 / 90, rel=0.03)
    fields = scan(manifest).fields
    gap = fields["PNEUMONIA"] / 4 - fields["NORMAL"] / 3
    assert found["figures"]["difference"]["limit"] == pytest.approx(np.abs(gap).max())


def test_mosaic_is_seeded_and_in_manifest_order(tmp_path: Path) -> None:
    for number in range(60):
        paint(tmp_path / "s" / "NORMAL" / f"a{number:02d}.png", number)
    manifest = open_source(tmp_path / "s")

    def drawn(seed: int) -> list[str]:
        return list(describe(manifest, tmp_path / "out", seed=seed)["figures"]["mosaics"][0]["names"])

    first = drawn(1)
    assert len(first) == 24
    assert first == sorted(first) == drawn(1)
    assert first != drawn(2)


def test_mosaic_prefers_different_patients(tmp_path: Path) -> None:
    for number in range(40):
        paint(tmp_path / "s" / "PNEUMONIA" / f"person1_virus_{number}.png", number)
        if number < 23:
            paint(tmp_path / "s" / "PNEUMONIA" / f"person{number + 2}_virus_99.png", 100 + number)
    names = describe(open_source(tmp_path / "s"), tmp_path / "out")["figures"]["mosaics"][0]["names"]
    assert len({name.split("_")[0] for name in names}) == 24


def test_mosaic_pixels_are_the_images_alone(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / "s" / "NORMAL" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((160, 160), 60 * (number + 1), np.uint8)).save(path)
    found = describe(open_source(tmp_path / "s"), tmp_path / "out")
    with Image.open(tmp_path / "out" / found["figures"]["mosaics"][0]["file"]) as image:
        pixels = np.asarray(image)
    tiles = [pixels[:160, left : left + 160] for left in (0, 164, 328)]
    assert [(tile.min(), tile.max()) for tile in tiles] == [(60, 60), (120, 120), (180, 180)]


def test_unreadable_images_are_counted_and_left_out(source: Path, tmp_path: Path) -> None:
    (source / "train" / "NORMAL" / "IM-0001-0001.png").write_bytes(b"")
    found = describe(open_source(source), tmp_path / "out")
    assert (found["n"], found["n_readable"]) == (7, 6)
    assert found["figures"]["means"]["NORMAL"]["images"] == 2
    assert "train/NORMAL/IM-0001-0001" not in json.dumps(found["figures"])


def test_a_source_without_any_readable_image_is_still_described(tmp_path: Path) -> None:
    (tmp_path / "s" / "NORMAL").mkdir(parents=True)
    (tmp_path / "s" / "NORMAL" / "a.png").write_bytes(b"no image")
    found = describe(open_source(tmp_path / "s"), tmp_path / "out")
    assert found["n_readable"] == 0
    assert found["figures"] == {"mosaics": [], "means": {}, "mean_window": [0, 1.0], "difference": None}


def test_age_sex_and_view_come_from_the_table(tmp_path: Path) -> None:
    for name in "abc":
        paint(tmp_path / f"{name}.png", ord(name))
    rows = ["path,label,age_years,sex,view", "a.png,NORMAL,4,F,PA", "b.png,PNEUMONIA,2,,AP", "c.png,,6,M,PA"]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    found = describe(open_source(tmp_path / "m.csv"), tmp_path / "out")
    assert found["people"]["age_years"]["PNEUMONIA"]["median"] == 2
    assert found["people"]["sex"]["unknown"] == {"NORMAL": 0, "PNEUMONIA": 1, "unlabelled": 0}
    assert list(found["people"]["view"]) == ["AP", "PA"]
    assert found["people"]["site"] == {}
    assert found["classes"]["unlabelled"]["images"] == 1


def test_medmnist_rows_have_no_file_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "a.npz",
        train_images=rng.integers(0, 255, (6, 28, 28), dtype=np.uint8),
        train_labels=np.array([[0], [1]] * 3),
    )
    found = describe(open_source(tmp_path / "a.npz"), tmp_path / "out")
    assert found["images"]["kilobytes"] == {"NORMAL": None, "PNEUMONIA": None}
    assert found["images"]["width"]["NORMAL"]["max"] == 28


def test_scan_measures_each_image_and_reports_progress(source: Path) -> None:
    manifest = open_source(source)
    calls: list[tuple[int, int]] = []
    found = scan(manifest, progress=lambda done, n: calls.append((done, n)))
    assert calls[-1] == (7, 7)
    assert found.thumbs.shape == (7, THUMB, THUMB)
    assert found.fields["NORMAL"].shape == (FIELD, FIELD)
    for row, sample in enumerate(manifest.samples):
        pixels = np.asarray(Image.open(sample.path), dtype=float) / 255
        assert found.table["mean"][row] == pytest.approx(pixels.mean(), abs=1e-5)
        assert found.table["std"][row] == pytest.approx(pixels.std(), abs=1e-5)
        assert found.table["bytes"][row] == Path(sample.path).stat().st_size


def test_covariates_cannot_overwrite_what_was_measured(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    (tmp_path / "m.csv").write_text("path,label,width,error\na.png,NORMAL,9999,boom\n")
    found = scan(open_source(tmp_path / "m.csv"))
    assert found.table["width"].tolist() == [60]
    assert found.readable.all()


def test_quantiles_match_numpy_and_ignore_what_is_unknown() -> None:
    import pandas as pd

    values = np.random.default_rng(0).normal(size=101)
    points = quantiles(pd.Series([*values, np.nan]))
    assert points is not None
    assert points["n"] == 101
    assert points["p25"] == pytest.approx(np.quantile(values, 0.25))
    assert quantiles(pd.Series([np.nan])) is None


def test_an_output_path_that_is_a_file_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("taken")
    with pytest.raises(StorageError, match="is a file"):
        describe(open_source(source), tmp_path / "out")


@pytest.mark.data
def test_kermany_counts_are_those_that_were_published(real_data: Path, tmp_path: Path) -> None:
    manifest: Manifest = open_source(real_data / "kermany_originals")
    found = describe(manifest, tmp_path)
    assert found["n_readable"] == 40
    # The size shortcut: normals were photographed larger and less wide.
    width, aspect = found["images"]["width"], found["images"]["aspect_ratio"]
    assert width["NORMAL"]["median"] > width["PNEUMONIA"]["median"]
    assert aspect["NORMAL"]["median"] < aspect["PNEUMONIA"]["median"]
