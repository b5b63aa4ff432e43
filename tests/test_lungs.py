"""The lung segmenter: its files, its answers, and the geometry of its masks."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import BundleError, ConfigError, DataError
from pneumoscope.images.preparation import Pixels, Preparation, to_canvas
from pneumoscope.lungs import (
    LUNGS_BUNDLE,
    ZONES,
    LungCrop,
    LungSegmenter,
    crop_of,
    lung_box,
    lung_fraction,
    mask_fault,
    write_segmenter,
    zones,
)
from pneumoscope.phantom.synthetic import KINDS, SyntheticRadiograph, render
from pneumoscope.records import RESEARCH_ONLY, FloatArray


@pytest.fixture(scope="module")
def segmenter() -> LungSegmenter:
    return LungSegmenter.load(threads=1)


@pytest.fixture(scope="module")
def synthetic() -> list[SyntheticRadiograph]:
    return [render(np.random.default_rng(seed), kind=KINDS[seed % 3], size=160) for seed in range(12)]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(LUNGS_BUNDLE, tmp_path / "lungs")


def canvases(synthetic: list[SyntheticRadiograph]) -> Pixels:
    return np.stack([radiograph.pixels for radiograph in synthetic])


def two_lungs(side: int = 100) -> FloatArray:
    """Right lung in rows 20 to 79 and columns 10 to 39, left in rows 30 to 89 and columns 60 to 89, of 100."""
    mask = np.zeros((100, 100), np.float32)
    mask[20:80, 10:40] = 0.9
    mask[30:90, 60:90] = 0.8
    return np.kron(mask, np.ones((side // 100, side // 100), np.float32))


# --- answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 192, 250])
def test_a_mask_is_a_probability_at_the_side_of_its_image(segmenter: LungSegmenter, side: int) -> None:
    images = np.stack([render(np.random.default_rng(seed), kind="normal", size=side).pixels for seed in (1, 2)])
    found = segmenter.masks(images)
    assert (found.shape, found.dtype) == ((2, side, side), np.float32)
    assert 0 <= found.min() < 0.02
    assert 0.98 < found.max() <= 1


def test_no_images_give_no_masks(segmenter: LungSegmenter) -> None:
    assert segmenter.masks(np.zeros((0, 50, 50), np.uint8)).shape == (0, 50, 50)


def test_an_image_is_answered_alike_in_any_company(
    segmenter: LungSegmenter, synthetic: list[SyntheticRadiograph]
) -> None:
    images = canvases(synthetic)
    together = segmenter.masks(np.concatenate([images, images]))  # more than one batch
    alone = np.concatenate([segmenter.masks(image[None]) for image in images])
    np.testing.assert_allclose(together, np.concatenate([alone, alone]), atol=1e-4)


def test_threads_share_a_segmenter(segmenter: LungSegmenter, synthetic: list[SyntheticRadiograph]) -> None:
    images = canvases(synthetic)
    expected = [segmenter.masks(image[None]) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(lambda image: segmenter.masks(image[None]), images), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_exposure_hardly_matters(segmenter: LungSegmenter, synthetic: list[SyntheticRadiograph]) -> None:
    images = canvases(synthetic)
    dim = (images * 0.5 + 40).astype(np.uint8)
    overlap = _dice(segmenter.masks(images) >= 0.5, segmenter.masks(dim) >= 0.5)
    assert overlap.min() > 0.97


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 64, 64), np.float32), np.zeros((64, 64), np.uint8), np.zeros((1, 64, 65), np.uint8)],
    ids=["float", "one image", "oblong"],
)
def test_other_arrays_are_refused(segmenter: LungSegmenter, images: Any) -> None:
    with pytest.raises(DataError, match=r"square images uint8 \[B, S, S\] are needed"):
        segmenter.masks(images)


def test_it_finds_the_lungs_of_computed_radiographs(
    segmenter: LungSegmenter, synthetic: list[SyntheticRadiograph]
) -> None:
    """Their truth leaves out what the heart hides, which the segmenter counts as lung: so a low bound for Dice."""
    truth = np.stack([radiograph.lungs for radiograph in synthetic])
    masks = segmenter.masks(canvases(synthetic))
    found = masks >= 0.5
    assert [mask_fault(mask) for mask in masks] == [None] * len(masks)
    assert np.mean(_dice(found, truth)) > 0.85
    assert (found & truth).sum() / truth.sum() > 0.93


def test_opacities_belong_to_the_lung(segmenter: LungSegmenter) -> None:
    ill = [render(np.random.default_rng(seed), kind="bacterial", size=160, severity=0.8) for seed in range(8)]
    found = segmenter.masks(canvases(ill)) >= 0.5
    opacity = np.stack([radiograph.opacity for radiograph in ill])
    assert (found & opacity).sum() / opacity.sum() > 0.9


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_constant_image_has_no_lungs(segmenter: LungSegmenter, grey: int) -> None:
    assert mask_fault(segmenter.masks(np.full((1, 96, 96), grey, np.uint8))[0]) is not None


def _dice(found: Any, truth: Any) -> Any:
    return 2 * (found & truth).sum((1, 2)) / (found.sum((1, 2)) + truth.sum((1, 2)))


@pytest.mark.data
def test_it_agrees_with_drawn_masks(segmenter: LungSegmenter, real_data: Path) -> None:
    """Most of these taught it: this finds a broken file or reader, the card has the honest figure."""
    folder = real_data / "lung_masks"
    if not folder.is_dir():
        pytest.skip(f"there are no drawn masks at {folder}")
    with (folder / "index.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))

    def read(name: str) -> Pixels:
        return to_canvas(np.asarray(Image.open(folder / name), np.float32) / 255, 224, "squash")

    truth = np.stack([read(row["mask"]) for row in rows]) > 127
    found = segmenter.masks(np.stack([read(row["image"]) for row in rows])) >= 0.5
    assert _dice(found, truth).mean() > 0.93


@pytest.mark.data
@pytest.mark.parametrize("kind", ["NORMAL", "PNEUMONIA"])
def test_it_finds_the_lungs_of_children(segmenter: LungSegmenter, real_data: Path, kind: str) -> None:
    files = sorted((real_data / "kermany224" / "train" / kind).glob("*"))[::60][:20]
    if not files:
        pytest.skip("there are no radiographs of children")
    images = np.stack([np.asarray(Image.open(file).convert("L")) for file in files])
    assert sum(mask_fault(mask) is None for mask in segmenter.masks(images)) >= 0.9 * len(files)


# --- geometry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [100, 300])
def test_zones_are_thirds_of_each_lung_and_right_is_on_the_left(side: int) -> None:
    scale = side // 100
    found = zones(two_lungs(side))
    assert found.dtype == np.int64
    expected = np.zeros((100, 100), np.int64)
    for first, top, left in ((1, 20, 10), (4, 30, 60)):
        for third in range(3):
            expected[top + 20 * third : top + 20 * third + 20, left : left + 30] = first + third
    np.testing.assert_array_equal(found, np.kron(expected, np.ones((scale, scale), np.int64)))
    assert (ZONES[found[30 * scale, 20 * scale]], ZONES[found[85 * scale, 70 * scale]]) == ("right upper", "left lower")


def test_zones_leave_out_specks() -> None:
    mask = two_lungs()
    mask[95:98, 2:5] = 1.0
    found = zones(mask)
    assert found[96, 3] == 0
    np.testing.assert_array_equal(found, zones(two_lungs()))


@pytest.mark.parametrize("left_ends", [90, 45], ids=["beside a larger", "beside a smaller"])
def test_a_lung_in_two_pieces_is_one_lung(left_ends: int) -> None:
    mask = two_lungs()
    mask[left_ends:, 60:90] = 0
    whole = zones(mask)
    mask[45:50, 10:40] = 0  # a band of opacity through the right lung
    assert mask_fault(mask) is None
    whole[45:50, 10:40] = 0
    np.testing.assert_array_equal(zones(mask), whole)


def test_lungs_that_touch_are_divided_in_the_middle() -> None:
    mask = two_lungs()
    mask[40:44, 40:60] = 1.0
    missing = mask_fault(mask)
    assert missing is not None
    assert missing.key == "one region"
    found = zones(mask)
    assert set(np.unique(found[:, :50])) == {0, 1, 2, 3}
    assert set(np.unique(found[:, 50:])) == {0, 4, 5, 6}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda mask: mask * 0, "0% of the image looks like lung"),
        (lambda mask: mask * 0 + 1, "100% of the image looks like lung"),
        (lambda mask: np.where(np.arange(100) < 50, mask, 0), "one region looks like lung"),
        (lambda mask: np.where((np.arange(100) < 50) & (np.arange(100)[:, None] != 47), mask, 0), "beside each other"),
    ],
    ids=["none", "all", "one", "on one side"],
)
def test_implausible_masks(change: Callable[[FloatArray], FloatArray], reason: str) -> None:
    assert mask_fault(two_lungs()) is None
    assert reason in str(mask_fault(change(two_lungs())))


def test_the_share_of_lung() -> None:
    assert lung_fraction(two_lungs()) == pytest.approx(0.36)
    assert lung_fraction(two_lungs() * 0.5) == 0


def test_the_box_holds_both_lungs_with_a_margin() -> None:
    assert lung_box(two_lungs(), 0) == (20, 90, 10, 90)
    assert lung_box(two_lungs(), 0.1) == (13, 97, 2, 98)
    assert lung_box(two_lungs(), 1) == (0, 100, 0, 100)
    mask = two_lungs()
    mask[0, 0] = 1.0
    assert lung_box(mask, 0) == (20, 90, 10, 90), "a speck is no lung"


def test_without_lungs_the_box_is_the_whole_image() -> None:
    assert lung_box(np.zeros((30, 30), np.float32)) == (0, 30, 0, 30)
    with pytest.raises(ConfigError, match=r"a margin of -0\.1 would cut the lungs"):
        lung_box(two_lungs(), -0.1)


# --- files ------------------------------------------------------------------------------------------------


def test_the_shipped_segmenter_is_small_and_says_what_it_is(segmenter: LungSegmenter) -> None:
    assert sum(file.stat().st_size for file in LUNGS_BUNDLE.iterdir()) <= 4_000_000
    assert sorted(file.name for file in LUNGS_BUNDLE.iterdir()) == ["card.json", "model.onnx"]
    card = segmenter.card
    assert card["notice"] == RESEARCH_ONLY
    assert card["data"]["masks"]["licence"] == "CC BY 4.0"
    assert {image["licence"] for image in card["data"]["images"]} == {"CC BY 3.0", "CC BY 4.0"}
    assert card["limits"]
    figure = card["evidence"]["test"]["dice"]
    assert figure["value"] >= 0.93
    assert figure["ci95"][0] < figure["value"] < figure["ci95"][1]
    assert segmenter.label == f"{card['name']}@{card['model']['sha256'][:12]}"


def test_its_weights_are_stored_as_halves() -> None:
    import onnx

    stored = onnx.load(LUNGS_BUNDLE / "model.onnx").graph.initializer
    matrices = [tensor for tensor in stored if len(tensor.dims) == 4]
    assert matrices
    assert all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in matrices)


@pytest.mark.parametrize("name", ["model.onnx", "card.json"])
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: is missing, so there is no lung segmenter; copy"):
        LungSegmenter.load(copy)


def test_a_changed_model_is_refused(copy: Path) -> None:
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"model\.onnx: the file was changed or damaged"):
        LungSegmenter.load(copy)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1, "name": "x", "model": {"sha256": 5}}', "\xff", "[" * 9**5]
)
def test_a_damaged_card(copy: Path, text: str) -> None:
    (copy / "card.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match=r"card\.json: is damaged or is no card"):
        LungSegmenter.load(copy)


def test_a_newer_format(copy: Path) -> None:
    card = json.loads((copy / "card.json").read_text(encoding="utf-8"))
    (copy / "card.json").write_text(json.dumps({**card, "schema": 2}), encoding="utf-8")
    with pytest.raises(BundleError, match="was written in format 2, this version reads up to 1; update Pneumoscope"):
        LungSegmenter.load(copy)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    write_segmenter(tmp_path / "lungs", b"no model", {"name": "nothing"})
    with pytest.raises(BundleError, match=r"model\.onnx: OpenVINO cannot read the model"):
        LungSegmenter.load(tmp_path / "lungs")


def test_without_openvino_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="the lung segmenter needs OpenVINO; pip install openvino"):
        LungSegmenter.load()


def test_it_loads_neither_pytorch_nor_telemetry() -> None:
    program = (
        "import sys; import numpy as np; from pneumoscope.lungs import LungSegmenter;"
        "LungSegmenter.load().masks(np.zeros((1, 64, 64), np.uint8));"
        "print([m for m in ('torch', 'timm', 'openvino_telemetry') if sys.modules.get(m)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what taught it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    """What `benchmarks/lungs/augment.py` and `measure.py` define."""
    folder = Path(__file__).parents[1] / "benchmarks" / "lungs"
    return runpy.run_path(str(folder / "augment.py")) | runpy.run_path(str(folder / "measure.py"))


def test_a_drawn_change_can_be_replayed(benchmark: dict[str, Any], synthetic: list[SyntheticRadiograph]) -> None:
    image, mask = synthetic[0].pixels, synthetic[0].lungs.astype(np.uint8)
    seen = []
    for seed in range(8):
        change, again = (benchmark["draw"](np.random.default_rng(seed)) for _ in range(2))
        found, expected = change.apply(image, mask, 96), again.apply(image, mask, 96)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        assert [part.dtype for part in found] == [np.uint8, np.uint8]
        assert set(np.unique(found[1])) <= {0, 1}
        seen.append(found[0].tobytes())
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("step", ["_opacities", "_white_lung", "_haze"])
def test_painted_disease_brightens_lungs_and_keeps_their_outline(
    benchmark: dict[str, Any], synthetic: list[SyntheticRadiograph], step: str
) -> None:
    grey, lungs = synthetic[0].pixels / np.float32(255), synthetic[0].lungs.astype(np.float32)
    kept = lungs.copy()
    ill = np.mean([benchmark[step](np.random.default_rng(seed), grey, lungs) for seed in range(8)], axis=0)
    np.testing.assert_array_equal(lungs, kept)
    assert ill[lungs > 0].mean() > grey[lungs > 0].mean() + 0.02


def test_dice_is_counted_by_patient(benchmark: dict[str, Any]) -> None:
    class Same:
        """Answers with the image itself."""

        def masks(self, images: Pixels) -> FloatArray:
            return images.astype(np.float32)

    truth = np.zeros((3, 8, 8), np.uint8)
    truth[:, :4] = 1
    images = truth.copy()
    images[2, :4, :4] = 0  # half of it: Dice 2/3
    told = benchmark["figures"](Same(), images, truth, ["a", "a", "b"])
    assert told["dice"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    assert told["dice"]["ci95"] == pytest.approx([2 / 3, 1])
    assert told["dice_over_images"]["mean"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert (told["images"], told["patients"]) == (3, 2)


# --- cutting down to the lungs ----------------------------------------------------------------------------


def test_a_crop_holds_the_lungs_and_leaves_out_the_rest(
    segmenter: LungSegmenter, synthetic: list[SyntheticRadiograph]
) -> None:
    crop = LungCrop(segmenter)
    smaller = []
    for radiograph in synthetic:
        drawn = radiograph.pixels / np.float32(255)
        pixels = np.pad(drawn, ((40, 40), (20, 60)))  # a wide dark border, so that there is something to cut away
        top, bottom, left, right = crop.box(pixels)
        np.testing.assert_array_equal(crop(pixels), pixels[top:bottom, left:right])
        if (top, bottom, left, right) == (0, 240, 0, 240):
            continue
        smaller.append(crop(pixels).size / pixels.size)
        truth = np.pad(radiograph.lungs, ((40, 40), (20, 60)))
        assert truth[top:bottom, left:right].sum() / truth.sum() > 0.9
    assert len(smaller) >= 8
    assert max(smaller) < 0.9


def test_without_lungs_nothing_is_cut_away(segmenter: LungSegmenter) -> None:
    assert LungCrop(segmenter).box(np.zeros((60, 90), np.float32)) == (0, 60, 0, 90)


def test_a_preparation_says_whether_to_cut() -> None:
    plain = Preparation(32, 40, "squash", (0.5,) * 3, (0.5,) * 3)
    assert crop_of(plain) is None
    crop = crop_of(replace(plain, crop="lungs"))
    assert crop is not None
    assert crop.name.startswith(LungSegmenter.load().label)
