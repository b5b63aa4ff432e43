"""`check`: every problem is found where it is planted, and only there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from pneumoscope.data.checks.duplicates import correlation, near_pairs, same_groups
from pneumoscope.data.checks.quality import check, voids_result
from pneumoscope.data.checks.shortcuts import encode, out_of_fold, patient_folds
from pneumoscope.data.scan import scan
from pneumoscope.data.sources import open_source
from pneumoscope.statistics.auc import newcombe_interval

Check = Callable[[], dict[str, Any]]


def picture(seed: int, side: int = 160) -> Image.Image:
    """A smooth random image: compressible, and unlike that of any other seed."""
    noise = np.random.default_rng(seed).normal(size=(side, side))
    smooth = gaussian_filter(noise, side / 20)
    return Image.fromarray(np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images per class and split, all different, one patient each."""
    seed = 0
    for split in ("train", "test"):
        for label in ("NORMAL", "PNEUMONIA"):
            folder = tmp_path / "s" / split / label
            folder.mkdir(parents=True)
            for number in range(12):
                picture(seed := seed + 1).save(folder / f"{split}-{number:02d}.png")
    return tmp_path / "s"


@pytest.fixture
def checked(root: Path, tmp_path: Path) -> Check:
    return lambda: check(open_source(root), tmp_path / "out")


def problems(quality: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {problem["kind"]: problem for problem in quality["problems"]}


def test_a_sound_source_has_only_the_small_split(checked: Check, tmp_path: Path) -> None:
    quality = checked()
    assert set(problems(quality)) == {"small_split"}
    assert not voids_result(quality)
    written = json.loads((tmp_path / "out" / "quality.json").read_text(encoding="utf-8"))
    assert written["problems"][0]["kind"] == "small_split"
    assert written["n"] == 48
    assert written["figures"] == {}


# --- single images ----------------------------------------------------------------------------------------


def test_each_reason_for_not_reading_has_its_name(root: Path, checked: Check) -> None:
    folder = root / "train" / "NORMAL"
    buffer = io.BytesIO()
    picture(900).save(buffer, "JPEG")
    (folder / "a-empty.png").write_bytes(b"")
    (folder / "b-cut.jpeg").write_bytes(buffer.getvalue()[:-400])
    picture(901, side=8).save(folder / "c-small.png")
    (folder / "d-text.png").write_bytes(b"this is no image")
    quality = checked()
    found = problems(quality)
    for kind in ("empty", "truncated", "too_small", "unreadable"):
        assert found[kind]["count"] == 1, kind
        assert found[kind]["severity"] == "error"
    assert "b-cut.jpeg" in found["truncated"]["examples"][0]
    assert quality["n_readable"] == 48
    # four of 28 normals are lost: above 5 % of a class
    assert voids_result(quality)


def test_few_unreadable_files_do_not_void(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "NORMAL"
    folder.mkdir(parents=True)
    for number in range(20):
        picture(number, side=130).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"")
    quality = check(open_source(tmp_path / "s"), tmp_path / "out")
    assert problems(quality)["empty"]["voids"] is False
    assert not voids_result(quality)
    (folder / "worse.png").write_bytes(b"")  # now 2 of 22
    quality = check(open_source(tmp_path / "s"), tmp_path / "out")
    assert voids_result(quality)
    assert "identical_files" not in problems(quality), "two empty files are no copies of a radiograph"


def test_constant_and_low_resolution_images(root: Path, checked: Check) -> None:
    Image.new("L", (200, 200), 77).save(root / "train" / "NORMAL" / "blank.png")
    picture(902, side=100).save(root / "train" / "NORMAL" / "coarse.png")
    found = problems(checked())
    assert found["constant"]["examples"] == ("train/NORMAL/blank.png",)
    assert found["low_resolution"]["examples"] == ("train/NORMAL/coarse.png",)


def test_a_depth_that_is_not_stated_is_a_problem_of_the_source(root: Path, checked: Check) -> None:
    assert "unstated_depth" not in problems(checked())
    deep = np.random.default_rng(0).integers(0, 4096, (200, 200)).astype(np.uint16)
    Image.fromarray(deep).save(root / "train" / "NORMAL" / "deep.png")
    found = problems(checked())["unstated_depth"]
    assert (found["severity"], found["examples"]) == ("warning", ("train/NORMAL/deep.png",))


def test_colour_is_a_warning_only_where_it_differs_by_class(root: Path, checked: Check) -> None:
    for path in sorted((root / "train" / "PNEUMONIA").iterdir()):
        Image.open(path).convert("RGB").save(path)
    assert problems(checked())["colour"]["severity"] == "warning"
    for path in sorted((root / "train" / "NORMAL").iterdir())[:11]:
        Image.open(path).convert("RGB").save(path)
    assert problems(checked())["colour"]["severity"] == "note", "11 against 12 of 24 is chance"
    for path in sorted(root.rglob("*.png")):
        Image.open(path).convert("RGB").save(path)
    found = problems(checked())
    assert (found["colour"]["severity"], found["colour"]["count"]) == ("note", 48)


# --- images that occur twice ------------------------------------------------------------------------------


def test_identical_files_of_one_patient_are_a_warning(root: Path, checked: Check) -> None:
    folder = root / "train" / "PNEUMONIA"
    for number in (1, 2, 3):
        picture(903).save(folder / f"person5_virus_{number}.png")
    quality = checked()
    found = problems(quality)
    assert found["identical_files"]["count"] == 1
    assert found["identical_files"]["examples"][0].count(" = ") == 2
    assert {"label_conflict", "duplicates_across_splits", "duplicates_across_patients"}.isdisjoint(found)
    assert "near_duplicates" not in found
    assert not voids_result(quality)


def test_the_same_image_under_two_labels_voids(root: Path, checked: Check, tmp_path: Path) -> None:
    picture(904).save(root / "train" / "NORMAL" / "x.png")
    picture(904).save(root / "train" / "PNEUMONIA" / "y.png")
    quality = checked()
    found = problems(quality)
    assert found["label_conflict"]["voids"]
    assert found["duplicates_across_patients"]["count"] == 1
    assert voids_result(quality)
    assert quality["verdict"] == "problems"
    assert quality["problems"][0]["kind"] == "label_conflict"
    assert (tmp_path / "out" / quality["figures"]["label_conflicts"]["file"]).is_file()


def test_the_same_image_in_two_splits_voids_even_if_re_encoded(root: Path, checked: Check) -> None:
    picture(905).save(root / "train" / "NORMAL" / "x.png")
    picture(905).save(root / "test" / "NORMAL" / "y.bmp")
    quality = checked()
    found = problems(quality)
    assert found["duplicates_across_splits"]["voids"]
    assert found["identical_pixels"]["count"] == 1
    assert "identical_files" not in found
    assert voids_result(quality)


@pytest.mark.parametrize("change", ["jpeg", "resized", "brighter"])
def test_nearly_the_same_image_is_found(root: Path, checked: Check, change: str) -> None:
    image = picture(906)
    image.save(root / "train" / "NORMAL" / "x.png")
    target = root / "test" / "PNEUMONIA" / "y"
    if change == "jpeg":
        image.save(target.with_suffix(".jpeg"), quality=60)
    elif change == "resized":
        image.resize((240, 200)).save(target.with_suffix(".png"))
    else:
        image.point(lambda value: min(255, value * 1.1)).save(target.with_suffix(".png"))
    quality = checked()
    found = problems(quality)
    for kind in ("near_duplicates", "near_across_splits", "near_across_patients", "near_label_conflict"):
        assert (found[kind]["count"], found[kind]["severity"]) == (1, "warning")
    assert quality["figures"]["near_duplicates"]["pairs"] == 1
    assert not voids_result(quality)


def test_near_pairs_are_those_of_the_definition() -> None:
    """Blocks, candidates and triangles give what a plain double loop gives."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**63, 40, dtype=np.uint64)
    which = rng.integers(0, 40, 400)
    flips = np.array([1 << int(bit) for bit in rng.integers(0, 63, 400)], np.uint64)
    hashes = centres[which] ^ flips
    base = rng.integers(0, 200, (40, 8, 8))
    thumbs = (base[which] + rng.integers(0, 22, (400, 8, 8))).astype(np.uint8)
    rows = np.arange(0, 400, 2)
    expected = set()
    for a, i in enumerate(rows):
        for j in rows[a + 1 :]:
            near = (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 8
            if near and np.corrcoef(thumbs[i].ravel(), thumbs[j].ravel())[0, 1] >= 0.985:
                expected.add((int(i), int(j)))
    assert {(pair.first, pair.second) for pair in near_pairs(hashes, thumbs, rows)} == expected
    assert len(expected) > 50


def test_correlation_of_a_constant_image_is_zero() -> None:
    flat, other = np.full((1, 4, 4), 9, np.uint8), np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    assert correlation(flat, other).tolist() == [0.0]


def test_same_groups_leave_out_what_has_no_key() -> None:
    assert same_groups(["a", "", "b", "a", ""]) == [[0, 3]]


# --- labels, patients, splits -----------------------------------------------------------------------------


def test_a_patient_in_two_splits_voids(root: Path, checked: Check) -> None:
    picture(907).save(root / "train" / "PNEUMONIA" / "person5_virus_1.png")
    picture(908).save(root / "test" / "PNEUMONIA" / "person5_virus_2.png")
    picture(909).save(root / "test" / "PNEUMONIA" / "person5_bacteria_2.png")
    quality = checked()
    found = problems(quality)
    assert found["patient_in_two_splits"]["count"] == 1
    assert found["patient_in_two_splits"]["examples"] == ("virus-person5: test, train",)
    assert voids_result(quality)
    assert found["shared_patient_numbers"]["severity"] == "note"
    assert found["shared_patient_numbers"]["examples"] == ("person5",)


def test_imbalance_is_stated_with_its_ratio(root: Path, checked: Check) -> None:
    for number in range(30):
        picture(1000 + number).save(root / "train" / "PNEUMONIA" / f"more-{number}.png")
    assert "2.2 PNEUMONIA images for each NORMAL image (54 to 24)" in problems(checked())["imbalance"]["message"]


def test_prevalence_that_shifts_between_splits(root: Path, checked: Check) -> None:
    assert "prevalence_shift" not in problems(checked())
    for number in range(60):
        picture(1000 + number).save(root / "train" / "PNEUMONIA" / f"more-{number}.png")
    message = problems(checked())["prevalence_shift"]["message"]
    assert message == "85.7 % of train is pneumonia, 50.0 % of test"


def test_missing_labels_and_a_missing_class(tmp_path: Path) -> None:
    for name in "abc":
        picture(ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "m.csv").write_text("path,label\na.png,NORMAL\nb.png,NORMAL\nc.png,\n")
    quality = check(open_source(tmp_path / "m.csv"), tmp_path / "out")
    found = problems(quality)
    assert found["missing_labels"]["examples"] == ("c.png",)
    assert found["missing_class"]["message"] == "no image is labelled PNEUMONIA"
    assert "one_class_split" in found
    (tmp_path / "c.png").write_bytes(b"")
    quality = check(open_source(tmp_path / "m.csv"), tmp_path / "out")
    assert problems(quality)["empty"]["count"] == 1
    assert not voids_result(quality), "an image without a label enters no result"
    assert quality["shortcuts"]["features"] == []


def test_files_that_were_passed_over_are_noted(root: Path, checked: Check) -> None:
    (root / "train" / "NORMAL" / "readme.txt").write_text("hello")
    assert problems(checked())["passed_over"]["examples"] == ("readme.txt: not an image file",)


def test_a_split_of_sixteen_is_too_small(root: Path, checked: Check) -> None:
    rows = {row["split"]: row for row in checked()["precision"]}
    assert list(rows) == ["train", "test"]
    assert rows["test"]["half_width"]["auroc"] > 0.05
    low, high = newcombe_interval(0.95, 12, 12)
    assert rows["test"]["half_width"]["auroc"] == pytest.approx((high - low) / 2)
    low, high = proportion_confint(0.95 * 24, 24, method="wilson")
    assert rows["test"]["half_width"]["accuracy"] == pytest.approx((high - low) / 2)


# --- shortcuts --------------------------------------------------------------------------------------------


def test_size_that_differs_by_class_is_flagged(root: Path, checked: Check) -> None:
    assert not any(row["flagged"] for row in checked()["shortcuts"]["features"])
    for path in sorted(root.rglob("PNEUMONIA/*.png")):
        Image.open(path).resize((220, 160)).save(path)
    quality = checked()
    found = {row["name"]: row for row in quality["shortcuts"]["features"]}
    assert found["width"]["auroc"]["value"] == 1.0
    assert found["width"]["auroc"]["ci95"][0] < 0.95, "a perfect AUROC of 24 against 24 is not certain"
    assert found["width"]["flagged"]
    assert found["all file properties together"]["flagged"]
    assert "height" not in found, "what is equal in all images says nothing"
    assert "shortcut" in problems(quality)


def test_columns_of_the_table_are_tried_too(tmp_path: Path) -> None:
    rows = ["path,label,view,follow_up,comment"]
    for number in range(40):
        picture(number, side=130).save(tmp_path / f"{number}.png")
        label, view = ("PNEUMONIA", "AP") if number % 2 else ("NORMAL", "PA")
        rows.append(f"{number}.png,{label},{view},{number // 2 % 7},text {number}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    quality = check(open_source(tmp_path / "m.csv"), tmp_path / "out")
    found = {row["name"]: row for row in quality["shortcuts"]["features"]}
    assert found["view"]["flagged"]
    assert not found["follow_up"]["flagged"]
    assert "comment" not in found


def test_out_of_fold_scores_never_see_their_own_patient() -> None:
    """A column that names the patient tells nothing of a patient that was held out."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    y = rng.permutation(40)[groups] < 20
    columns = (groups[:, None] == np.arange(40)).astype(float)
    held_out = roc_auc_score(y, out_of_fold(columns, y, patient_folds(y, groups, 0)))
    leaking = roc_auc_score(y, out_of_fold(columns, y, patient_folds(y, np.arange(200), 0)))
    assert leaking > 0.95
    assert 0.3 < held_out < 0.7


def test_encode_numbers_words_missing_and_names() -> None:
    assert encode(["1", "2.5", "4"]) == pytest.approx(np.array([[1.0], [2.5], [4.0]]))
    assert encode(["1", "", "3"]) == pytest.approx(np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]]))
    assert encode(["AP", "PA", "AP"]) == pytest.approx(np.array([[0.0], [1.0], [0.0]]))
    assert encode(["a", "b", ""]) == pytest.approx(np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]))
    assert encode(["same", "same"]) is None
    assert encode([f"person {k}" for k in range(30)]) is None


def test_figures_are_the_same_for_the_same_seed(root: Path, tmp_path: Path) -> None:
    manifest = open_source(root)
    scanned = scan(manifest)
    first, second, other = (
        check(manifest, tmp_path / str(k), seed=seed, scanned=scanned)["shortcuts"] for k, seed in enumerate((5, 5, 6))
    )
    assert first == second
    assert first != other


# --- real radiographs -------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.slow
def test_kermany_training_images(real_data: Path, tmp_path: Path) -> None:
    quality = check(open_source(real_data / "kermany224"), tmp_path)
    found = problems(quality)
    assert found["identical_files"]["count"] == 24
    assert found["shared_patient_numbers"]["count"] == 808
    assert "val has 16 images" in found["small_split"]["message"]
    assert found["imbalance"]["message"].startswith("2.9 PNEUMONIA")
    assert not {kind for kind in found if kind.startswith("near") or "across" in kind or "in_two" in kind}
    assert not voids_result(quality)
    sizes = {row["name"]: row["auroc"] for row in quality["shortcuts"]["features"]}
    assert sizes["file size"]["ci95"][1] < 0.15


@pytest.mark.data
def test_originals_are_recognised_in_their_squashed_copies(real_data: Path, tmp_path: Path) -> None:
    """Forty true pairs at another size and aspect ratio: all are found, and nothing else is."""
    rows = ["path,label"]
    for label in ("NORMAL", "PNEUMONIA"):
        for path in sorted((real_data / "kermany_originals" / label).glob("*.jpeg")):
            copy = next(real_data.glob(f"kermany224/*/{label}/{path.name}"))
            rows += [f"{path},{label}", f"{copy},{label}"]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    found = problems(check(open_source(tmp_path / "m.csv"), tmp_path / "out"))
    assert found["near_duplicates"]["count"] == 40
    assert "near_label_conflict" not in found
