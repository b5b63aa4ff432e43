"""Preparation repeats exactly; an augmentation is drawn once and can be applied again."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pneumoscope.config import AugmentConfig
from pneumoscope.images.preparation import Preparation, to_canvas, to_input
from pneumoscope.networks.transforms import Augmentation, draw, normalise, prepare
from pneumoscope.training.dataset import Augmenter, ImageDataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVERYTHING = AugmentConfig(
    rotation=15, crop_scale=(0.3, 1.0), crop_ratio=(0.75, 1.333), flip=0.5, shift=0.1, zoom=0.2,
    brightness=0.2, contrast=0.3, gamma=0.3, noise=0.05, erase=0.5,
)  # fmt: skip


def noise(side: int = 48, seed: int = 0) -> torch.Tensor:
    """Uint8 [1, side, side]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, side, side), dtype=np.uint8))


# --- to_canvas --------------------------------------------------------------------------------------------


def test_a_fitting_image_is_only_quantised() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (to_canvas(grey.astype(np.float32) / 255, 16, "squash") == grey).all()


def test_quantisation_rounds() -> None:
    pixels = np.full((16, 16), 0.5, np.float32)
    pixels[0, :3] = [100.4 / 255, 100.6 / 255, 1.0]
    assert to_canvas(pixels, 16, "squash")[0, :3].tolist() == [100, 101, 255]


@pytest.mark.parametrize("shape", [(64, 64), (90, 50), (40, 100), (20, 20)])
def test_squashing_agrees_with_pillow(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).random(shape, dtype=np.float32)
    oracle = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)) * 255
    assert np.abs(to_canvas(pixels, 32, "squash") - oracle).max() <= 0.51


@pytest.mark.parametrize(("shape", "rows", "columns"), [((40, 20), (0, 40), (10, 30)), ((20, 40), (10, 30), (0, 40))])
def test_padding_is_black_and_keeps_the_shape(
    shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    canvas = to_canvas(np.ones(shape, np.float32), 40, "pad")
    expected = np.zeros((40, 40), np.uint8)
    expected[slice(*rows), slice(*columns)] = 255
    assert (canvas == expected).all()


def test_an_odd_margin_is_one_pixel_off_at_most() -> None:
    canvas = to_canvas(np.ones((21, 16), np.float32), 21, "pad")
    assert canvas.any(axis=0).nonzero()[0].tolist() == list(range(2, 18))


def test_pixels_that_lie_backwards_in_memory() -> None:
    pixels = np.random.default_rng(2).random((30, 20), dtype=np.float32)
    assert (to_canvas(pixels[::-1, ::-1], 24, "pad") == to_canvas(pixels[::-1, ::-1].copy(), 24, "pad")).all()


# --- prepare ----------------------------------------------------------------------------------------------


def test_prepare_normalises_each_channel() -> None:
    canvas = noise(32)
    out = prepare(canvas, Preparation(32, 32, "squash", MEAN, STD))
    assert (out.shape, out.dtype) == ((1, 3, 32, 32), torch.float32)
    assert out.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        expected = (canvas[0].numpy() / 255.0 - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(out[0, channel].numpy(), expected, rtol=0, atol=2e-6)


def test_the_batch_does_not_change_an_image() -> None:
    batch, preparation = torch.cat([noise(40, seed) for seed in range(3)]), Preparation(32, 40, "squash", MEAN, STD)
    alone = torch.cat([prepare(batch[i : i + 1], preparation) for i in range(3)])
    assert torch.equal(prepare(batch, preparation), alone)


def test_an_equalised_image_does_not_show_its_exposure() -> None:
    grey = np.random.default_rng(1).random((1, 64, 64)) ** 2
    tones = [(255 * grey**gamma).astype(np.uint8) for gamma in (1.0, 1.6)]
    assert np.abs(tones[0].astype(int) - tones[1]).mean() > 15
    plain, equal = (Preparation(64, 64, "squash", MEAN, STD, tone=tone) for tone in ("as-is", "equalise"))
    assert (to_input(tones[0], plain) == tones[0]).all()
    one, other = (to_input(tone, equal) for tone in tones)
    # Greys that rounding has merged stay merged: a few levels are left of thirty.
    assert np.abs(one.astype(int) - other).mean() < 5
    assert np.abs(np.quantile(one, [0.25, 0.5, 0.75]) - [64, 128, 191]).max() < 6


@pytest.mark.parametrize("tone", ["as-is", "equalise"])
@pytest.mark.parametrize("size", [32, 48])
def test_use_is_training_without_augmentation(size: int, tone: str) -> None:
    preparation = Preparation(size, 48, "squash", MEAN, STD, tone=tone)
    canvases = torch.cat([noise(48, seed) for seed in range(4)])
    used = prepare(canvases, preparation)
    dataset = ImageDataset(canvases.numpy(), range(4), np.ones((4, 2), bool), np.ones(4), preparation)
    untouched = Augmenter(AugmentConfig(), preparation, seed=3)
    for index in range(4):
        assert torch.equal(dataset[7, index][0], used[index])
        assert torch.equal(untouched(canvases[index].numpy(), 7, index), used[index])
        if tone == "as-is":
            changed = Augmentation().apply(canvases[index : index + 1], size)
            assert torch.equal(normalise(changed[None], preparation)[0], used[index])


# --- draw and replay --------------------------------------------------------------------------------------

configs = st.builds(
    AugmentConfig,
    rotation=st.floats(0, 180),
    crop_scale=st.tuples(st.floats(0.05, 0.6), st.floats(0.6, 1)),
    crop_ratio=st.tuples(st.floats(0.5, 1), st.floats(1, 2)),
    flip=st.floats(0, 1),
    shift=st.floats(0, 0.5),
    zoom=st.floats(0, 0.9),
    brightness=st.floats(0, 1),
    contrast=st.floats(0, 0.9),
    gamma=st.floats(0, 0.9),
    blur=st.floats(0, 0.1),
    noise=st.floats(0, 0.5),
    erase=st.floats(0, 1),
    frame=st.floats(0, 1),
)


@settings(max_examples=40, deadline=None)
@given(configs, st.integers(0, 2**32))
def test_one_state_gives_one_augmentation_and_one_tensor(config: AugmentConfig, seed: int) -> None:
    drawn = draw(config, np.random.default_rng(seed))
    assert draw(config, np.random.default_rng(seed)) == drawn
    image = noise()
    torch.manual_seed(1)
    once = drawn.apply(image, 32)
    torch.manual_seed(2)  # the global generator must not matter, nor be used
    state = torch.get_rng_state()
    again = drawn.apply(image, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(once, again)
    assert (once.shape, once.dtype) == ((1, 32, 32), torch.uint8)
    assert torch.equal(image, noise()), "the input was changed"


@settings(max_examples=100, deadline=None)
@given(configs, st.integers(0, 2**32))
def test_draws_stay_in_their_ranges(config: AugmentConfig, seed: int) -> None:
    drawn = draw(config, np.random.default_rng(seed))
    top, left, height, width = drawn.crop
    assert 0 <= top <= top + height <= 1 + 1e-9
    assert 0 <= left <= left + width <= 1 + 1e-9
    if drawn.crop != (0.0, 0.0, 1.0, 1.0):
        low, high = config.crop_scale
        assert low - 1e-9 <= height * width <= high + 1e-9
        low, high = config.crop_ratio
        assert low - 1e-9 <= width / height <= high + 1e-9
    assert abs(drawn.angle) <= config.rotation
    assert all(abs(part) <= config.shift for part in drawn.shift)
    assert abs(drawn.brightness) <= config.brightness
    for value, limit in ((drawn.zoom, config.zoom), (drawn.contrast, config.contrast), (drawn.gamma, config.gamma)):
        assert abs(math.log(value)) <= math.log1p(limit) + 1e-9
    assert 0 <= drawn.noise <= config.noise
    if drawn.box is not None:
        top, left, height, width = drawn.box
        assert 0.05 <= height <= 0.35
        assert 0.05 <= width <= 0.35
        assert top + height <= 1
        assert left + width <= 1


def test_other_states_give_other_augmentations() -> None:
    rng = np.random.default_rng(0)
    assert len({draw(EVERYTHING, rng) for _ in range(50)}) == 50


def test_nothing_asked_for_is_nothing_drawn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = draw(AugmentConfig(), rng)
        assert torch.equal(drawn.apply(noise(), 48), noise())


def test_crops_follow_the_areas_and_ratios_asked_for() -> None:
    config = AugmentConfig(crop_scale=(0.25, 0.75), crop_ratio=(0.5, 2.0))
    rng = np.random.default_rng(0)
    crops = np.array([draw(config, rng).crop for _ in range(4000)])
    area, ratio = crops[:, 2] * crops[:, 3], np.log(crops[:, 3] / crops[:, 2])
    assert np.quantile(area, (0.02, 0.98)) == pytest.approx([0.25, 0.75], abs=0.04)
    assert ratio.mean() == pytest.approx(0, abs=0.03)
    assert np.abs(ratio).max() == pytest.approx(math.log(2), abs=0.05)


def test_chances_are_those_asked_for() -> None:
    config, rng = AugmentConfig(flip=0.3, erase=0.2), np.random.default_rng(0)
    drawn = [draw(config, rng) for _ in range(4000)]
    assert np.mean([item.flip for item in drawn]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([item.box is not None for item in drawn]) == pytest.approx(0.2, abs=0.03)


# --- each change by hand ----------------------------------------------------------------------------------


def test_a_flip_mirrors_left_and_right() -> None:
    assert torch.equal(Augmentation(flip=True).apply(noise(), 48), noise().flip(-1))


def test_a_quarter_turn() -> None:
    # tv.affine turns clockwise for positive angles
    assert torch.equal(Augmentation(angle=90).apply(noise(), 48), torch.rot90(noise(), -1, (1, 2)))


def test_a_shift_moves_right_and_down() -> None:
    moved = Augmentation(shift=(0.25, 0.5)).apply(noise(), 48)
    assert torch.equal(moved[:, 24:, 12:], noise()[:, :24, :36])
    assert not moved[:, :24].any()
    assert not moved[..., :12].any()


def test_a_crop_cuts_out() -> None:
    cut = Augmentation(crop=(0.25, 0.5, 0.5, 0.5)).apply(noise(), 24)
    assert torch.equal(cut, noise()[:, 12:36, 24:48])


@pytest.mark.parametrize(
    ("change", "formula"),
    [
        (Augmentation(brightness=0.1), lambda v: v + 0.1),
        (Augmentation(contrast=1.5), lambda v: (v - v.mean()) * 1.5 + v.mean()),
        (Augmentation(gamma=2.0), lambda v: v**2),
        (Augmentation(gamma=0.5, contrast=0.5, brightness=-0.1), lambda v: _contrast(v**0.5, 0.5) - 0.1),
    ],
)
def test_intensities(change: Augmentation, formula) -> None:  # type: ignore[no-untyped-def]
    expected = np.clip(formula(noise().numpy() / 255.0), 0, 1) * 255
    assert np.abs(change.apply(noise(), 48).numpy() - expected).max() <= 0.51


def _contrast(values: np.ndarray, factor: float) -> np.ndarray:
    return (values - values.mean()) * factor + values.mean()


def test_a_blur_spreads_a_line_by_its_deviation() -> None:
    line = torch.zeros(1, 100, 100, dtype=torch.uint8)
    line[:, :, 50] = 255
    spread = Augmentation(blur=0.04).apply(line, 100)[0].double().mean(0)
    places = torch.arange(100, dtype=torch.double)
    assert float((spread * places).sum() / spread.sum()) == pytest.approx(50)
    deviation = float((spread * (places - 50) ** 2).sum() / spread.sum()) ** 0.5
    assert deviation == pytest.approx(4, abs=0.3)
    assert torch.equal(Augmentation(blur=0.0005).apply(line, 100), line), "a twentieth of a pixel is no blur"


def test_noise_has_its_deviation_and_its_seed() -> None:
    grey = torch.full((1, 200, 200), 128, dtype=torch.uint8)
    noisy = Augmentation(noise=0.05, noise_seed=4).apply(grey, 200).double()
    assert noisy.std().item() == pytest.approx(0.05 * 255, rel=0.03)
    assert noisy.mean().item() == pytest.approx(128, abs=0.3)
    other = Augmentation(noise=0.05, noise_seed=5).apply(grey, 200)
    assert not torch.equal(noisy, other.double())


def test_a_box_is_painted_in_its_grey() -> None:
    erased = Augmentation(box=(0.25, 0.5, 0.25, 0.25), box_grey=0.6).apply(noise(), 48)
    assert (erased[:, 12:24, 24:36] == 153).all()
    rest = torch.ones(48, 48, dtype=torch.bool)
    rest[12:24, 24:36] = False
    assert torch.equal(erased[0][rest], noise()[0][rest])


def test_a_frame_is_painted_over_and_the_inside_stays() -> None:
    framed = Augmentation(frame=(0.125, 0.0, 0.0625, 0.125), frame_grey=0.2).apply(noise(), 48)
    inside = torch.zeros(48, 48, dtype=torch.bool)
    inside[6:48, 3:42] = True
    assert torch.equal(framed[0][inside], noise()[0][inside])
    assert (framed[0][~inside] == 51).all()


def test_a_frame_changes_no_other_draw() -> None:
    plain, framed = (
        draw(AugmentConfig(rotation=10, flip=0.5, blur=0.01, erase=0.5, frame=frame), np.random.default_rng(3))
        for frame in (0.0, 1.0)
    )
    assert framed.frame is not None
    assert max(framed.frame) <= 0.125
    assert replace(framed, frame=None, frame_grey=0.0) == plain
