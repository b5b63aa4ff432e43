"""What training reads: targets, the order of images, and changes that depend on (seed, epoch, index) alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.config import AugmentConfig
from pneumoscope.images.preparation import Preparation
from pneumoscope.networks.transforms import prepare
from pneumoscope.records import NORMAL, PNEUMONIA, Sample
from pneumoscope.training.dataset import (
    Augmenter,
    EpochSampler,
    FeatureDataset,
    ImageDataset,
    class_weights,
    targets,
)
from pneumoscope.training.exchange import in_other_surroundings

PREPARATION = Preparation(24, 32, "squash", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SAMPLES = [
    Sample("a", "1", NORMAL),
    Sample("b", "2", PNEUMONIA, "bacterial"),
    Sample("c", "3", PNEUMONIA, "viral"),
    Sample("d", "4", PNEUMONIA),
]


def test_targets_of_two_and_three_classes() -> None:
    assert targets(SAMPLES, 2).tolist() == [[True, False], [False, True], [False, True], [False, True]]
    assert targets(SAMPLES, 3).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
        [False, True, True],  # pneumonia of unknown subtype: either
    ]


def test_class_weights_give_both_classes_the_same_total() -> None:
    allowed = targets(SAMPLES, 3)
    weights = class_weights(allowed)
    assert weights.mean() == pytest.approx(1)
    assert weights[allowed[:, 0]].sum() == pytest.approx(weights[~allowed[:, 0]].sum())
    assert np.ptp(weights[1:]) == 0


# --- order ------------------------------------------------------------------------------------------------


def order(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    pairs = list(sampler)
    assert all(found == epoch for found, _ in pairs)
    assert len(pairs) == len(sampler)
    return [index for _, index in pairs]


def test_every_image_once_per_epoch_in_another_order() -> None:
    sampler = EpochSampler(40, seed=1, shuffle=True, group=8)
    first, second = order(sampler, 0), order(sampler, 1)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert order(EpochSampler(40, seed=1, shuffle=True, group=8), 1) == second
    assert order(EpochSampler(40, seed=2, shuffle=True, group=8), 0) != first
    assert order(EpochSampler(7, seed=1, shuffle=False), 3) == list(range(7))


def test_the_last_incomplete_batch_is_left_out_in_training_only() -> None:
    assert len(EpochSampler(43, seed=0, shuffle=True, group=8)) == 40
    assert len(EpochSampler(43, seed=0, shuffle=False, group=8)) == 43
    assert len(EpochSampler(5, seed=0, shuffle=True, group=8)) == 5  # fewer images than one batch: all


@given(length=st.integers(8, 60), world=st.sampled_from([2, 3, 4]), size=st.integers(1, 6), epoch=st.integers(0, 3))
def test_ranks_take_turns_so_that_global_batches_are_those_of_one_process(
    length: int, world: int, size: int, epoch: int
) -> None:
    group = world * size
    whole = order(EpochSampler(length, seed=5, shuffle=True, group=group), epoch)
    parts = [
        order(EpochSampler(length, seed=5, shuffle=True, group=group, rank=rank, world=world), epoch)
        for rank in range(world)
    ]
    assert len({len(part) for part in parts}) == 1, "ranks with more steps would wait for ever"
    assert not set.intersection(*(set(part) for part in parts))
    if length >= group:
        for start in range(0, len(whole) // world, size):
            together = {index for part in parts for index in part[start : start + size]}
            assert together == set(whole[start * world : (start + size) * world])


@given(length=st.integers(1, 40), world=st.integers(1, 5))
def test_ranks_validate_every_image_once(length: int, world: int) -> None:
    parts = [order(EpochSampler(length, seed=0, shuffle=False, rank=rank, world=world), 0) for rank in range(world)]
    seen = Counter(index for part in parts for index in part)
    assert set(seen.values()) == {1}
    assert sorted(seen) == list(range(length))


def test_balanced_sampling_draws_both_classes_equally() -> None:
    allowed = targets([SAMPLES[0]] * 100 + [SAMPLES[1]] * 900, 2)
    sampler = EpochSampler(1000, seed=3, shuffle=True, balance=class_weights(allowed))
    drawn = np.array([index for epoch in range(4) for index in order(sampler, epoch)])
    share = (drawn < 100).mean()
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / len(drawn))  # four standard errors of a fair coin
    assert len(set(drawn[drawn >= 100].tolist())) > 700  # with replacement, but all over the class


# --- images -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32), dtype=np.uint8)


LIVELY = AugmentConfig(
    rotation=10, crop_scale=(0.4, 1.0), flip=0.5, shift=0.1, zoom=0.1, brightness=0.2, contrast=0.2, gamma=0.2,
    noise=0.05, erase=0.5,
)  # fmt: skip


def test_an_image_changes_by_seed_epoch_and_index_alone(pixels: np.ndarray) -> None:
    augmenter = Augmenter(LIVELY, PREPARATION, 11)
    base = augmenter(pixels[0], 2, 5)
    assert base.shape == (3, 24, 24)
    assert base.dtype == torch.float32
    np.random.default_rng(1).random(100)  # noise: neither global generator matters
    torch.rand(100)
    assert torch.equal(augmenter(pixels[0], 2, 5), base)
    assert not torch.equal(augmenter(pixels[0], 3, 5), base)
    assert not torch.equal(augmenter(pixels[0], 2, 6), base)
    assert not torch.equal(Augmenter(LIVELY, PREPARATION, 12)(pixels[0], 2, 5), base)


def test_the_input_may_grow_with_the_epochs(pixels: np.ndarray) -> None:
    growing = Augmenter(LIVELY, PREPARATION, 11, sizes=[16, 20])
    assert [growing(pixels[0], epoch, 5).shape[-1] for epoch in range(4)] == [16, 20, 24, 24]
    assert torch.equal(growing(pixels[0], 2, 5), Augmenter(LIVELY, PREPARATION, 11)(pixels[0], 2, 5))


def test_without_augmentation_the_item_is_what_prediction_sees(pixels: np.ndarray) -> None:
    allowed = targets(SAMPLES, 3)
    rows = [5, 0, 3, 2]
    dataset = ImageDataset(pixels, rows, allowed, class_weights(allowed), PREPARATION)
    assert len(dataset) == 4
    for index, row in enumerate(rows):
        image, true, weight = dataset[(7, index)]
        torch.testing.assert_close(image, prepare(torch.from_numpy(pixels[row])[None], PREPARATION)[0])
        assert true.tolist() == allowed[index].tolist()
        assert weight.item() == pytest.approx(class_weights(allowed)[index])


def test_soft_targets_take_the_place_of_the_labels(pixels: np.ndarray) -> None:
    allowed = targets(SAMPLES, 3)
    soft = np.full((4, 3), 1 / 3, np.float32)
    dataset = ImageDataset(pixels, range(4), allowed, class_weights(allowed), PREPARATION, soft=soft)
    assert dataset[(0, 1)][1].tolist() == soft[1].tolist()


def test_all_switches_off_leave_the_image_as_it_is(pixels: np.ndarray) -> None:
    still = Augmenter(AugmentConfig(), PREPARATION, 0)
    plain = prepare(torch.from_numpy(pixels[1])[None], PREPARATION)[0]
    # The one resize is a crop of everything, so the two agree to the last grey level.
    torch.testing.assert_close(still(pixels[1], 0, 0), plain, rtol=0, atol=1.01 / 255 / 0.25)


def test_workers_and_order_do_not_change_an_item(pixels: np.ndarray) -> None:
    allowed = targets(SAMPLES, 2)
    dataset = ImageDataset(
        pixels, [0, 1, 2, 3], allowed, class_weights(allowed), PREPARATION, Augmenter(LIVELY, PREPARATION, 4)
    )
    keys = [(1, index) for index in (2, 0, 3, 1)]
    alone = {key: dataset[key][0] for key in keys}
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, sampler=keys, num_workers=2)  # type: ignore[arg-type]
    loaded = torch.cat([batch[0] for batch in loader])
    for key, image in zip(keys, loaded, strict=True):
        assert torch.equal(image, alone[key])


def test_features_keep_their_rows() -> None:
    allowed = targets(SAMPLES, 2)
    features = torch.arange(8.0).view(4, 2)
    dataset = FeatureDataset(features, allowed, np.array([1.0, 2.0, 3.0, 4.0]))
    vector, true, weight = dataset[(9, 2)]
    assert (vector.tolist(), true.tolist(), weight.item()) == ([4.0, 5.0], [False, True], 3.0)
    assert len(dataset) == 4


# --- lungs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lungs() -> np.ndarray:
    """Two lungs in each of six images, the last image without any."""
    masks = np.zeros((6, 32, 32), np.uint8)
    for index, mask in enumerate(masks[:5]):
        mask[8 : 20 + index, 5:12] = mask[8 : 20 + index, 19:26] = 255
    return masks


def test_lungs_stay_and_their_surroundings_are_the_others(pixels: np.ndarray, lungs: np.ndarray) -> None:
    mixed = in_other_surroundings(pixels[0], lungs[0], pixels[4], lungs[4])
    assert mixed.dtype == np.uint8
    np.testing.assert_array_equal(mixed[lungs[0] > 0], pixels[0][lungs[0] > 0])
    edge = np.ones((32, 32), bool)
    edge[5:28, 2:29] = False  # both masks, the margin of a pixel and the soft seam
    np.testing.assert_array_equal(mixed[edge], pixels[4][edge])
    only_theirs = (lungs[4] > 0) & (lungs[0] == 0)
    assert only_theirs.any()
    np.testing.assert_array_equal(mixed[only_theirs], pixels[0][only_theirs])


@pytest.mark.parametrize(("own", "theirs"), [(0, 5), (5, 0)])
def test_without_lungs_nothing_is_exchanged(pixels: np.ndarray, lungs: np.ndarray, own: int, theirs: int) -> None:
    kept = in_other_surroundings(pixels[own], lungs[own], pixels[theirs], lungs[theirs])
    np.testing.assert_array_equal(kept, pixels[own])


def test_the_mask_goes_where_the_image_goes(lungs: np.ndarray) -> None:
    """The masks themselves are the images, so the two must stay one through every turn, crop and mirroring."""
    moving = AugmentConfig(rotation=20, crop_scale=(0.3, 1.0), flip=0.5, shift=0.1, zoom=0.1)
    allowed = targets(SAMPLES, 2)
    augmenter = Augmenter(moving, PREPARATION, 4)
    dataset = ImageDataset(lungs, range(4), allowed, class_weights(allowed), PREPARATION, augmenter, lungs=lungs)
    moved = 0
    for epoch in range(5):
        for index in range(4):
            image, _, _, where = dataset[(epoch, index)]
            assert where.dtype == torch.uint8
            np.testing.assert_allclose(image[:1] * 0.25 + 0.5, where.float() / 255, atol=1e-6)
            moved += not np.array_equal(where[0].numpy(), lungs[index][:24, :24])
    assert moved == 20


def test_surroundings_are_exchanged_as_often_as_asked(pixels: np.ndarray, lungs: np.ndarray) -> None:
    allowed = targets(SAMPLES, 2)

    def items(share: float) -> list[torch.Tensor]:
        augmenter = Augmenter(AugmentConfig(surroundings=share), PREPARATION, 4)
        dataset = ImageDataset(pixels, range(4), allowed, class_weights(allowed), PREPARATION, augmenter, lungs=lungs)
        return [dataset[(epoch, index)][0] for epoch in range(50) for index in range(4)]

    plain, half, again = items(0.0), items(0.5), items(0.5)
    assert all(torch.equal(one, other) for one, other in zip(half, again, strict=True))
    changed = np.mean([not torch.equal(one, other) for one, other in zip(plain, half, strict=True)])
    assert abs(changed - 0.5 * 3 / 4) < 4 * np.sqrt(0.25 / 200)  # a quarter of the donors is the image itself
