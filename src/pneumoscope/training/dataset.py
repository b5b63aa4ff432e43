"""What training reads: (epoch, index) pairs in, network inputs and targets out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pneumoscope.config import AugmentConfig
from pneumoscope.images.preparation import Pixels, Preparation, toned
from pneumoscope.lungs import Crop
from pneumoscope.networks.transforms import Augmentation, draw, normalise, prepare
from pneumoscope.records import BACTERIAL, NORMAL, VIRAL, Sample
from pneumoscope.training.exchange import NOBODY, Exchange

CLASSES = {2: ("normal", "pneumonia"), 3: ("normal", BACTERIAL, VIRAL)}


def targets(samples: Sequence[Sample], classes: int) -> NDArray[np.bool_]:
    """Return bool [n, classes]: the classes that are true of a sample.

    Pneumonia of unknown subtype allows both subtypes: its loss is that of their sum.
    """
    names = CLASSES[classes]
    result = np.zeros((len(samples), classes), bool)
    for row, sample in zip(result, samples, strict=True):
        if sample.label == NORMAL:
            row[0] = True
        elif classes == 3 and sample.subtype in names:
            row[names.index(sample.subtype or "")] = True
        else:
            row[1:] = True
    return result


def class_weights(allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return a weight per sample, mean 1, that gives normal and pneumonia equal totals."""
    normal = allowed[:, 0]
    share = normal.mean()
    return np.asarray(np.where(normal, 0.5 / share, 0.5 / (1 - share)), dtype=np.float64)


@dataclass(frozen=True)
class Augmenter:
    """Augmentation of one training run; an image's changes depend on (seed, epoch, index) alone.

    So they are the same with any number of workers or devices, and after a resume. `sizes`: the input's side
    in each epoch, the preparation's after them.
    """

    config: AugmentConfig
    preparation: Preparation
    seed: int
    sizes: Sequence[int] = ()

    def __call__(self, canvas: Pixels, epoch: int, index: int, crop: Crop | None = None) -> Tensor:
        """Return float32 [3, S, S] from uint8 [canvas, canvas]; S is that of the epoch. `crop`: in place of its own."""
        size, drawn = self.drawn(epoch, index, crop)
        changed = drawn.apply(torch.from_numpy(np.array(canvas))[None], size)
        if self.preparation.tone != "as-is":
            changed = torch.from_numpy(toned(changed.numpy(), self.preparation.tone))
        return normalise(changed[None], self.preparation)[0]

    def drawn(self, epoch: int, index: int, crop: Crop | None = None) -> tuple[int, Augmentation]:
        """Return the input's side and the changes of an image in an epoch."""
        size = self.sizes[epoch] if epoch < len(self.sizes) else self.preparation.size
        changes = draw(self.config, np.random.default_rng([self.seed, epoch, index]))
        return size, changes if crop is None else replace(changes, crop=crop)


class ImageDataset(Dataset[tuple[Tensor, ...]]):
    """Cached images with targets and weights.

    Items are keyed by (epoch, index): float32 [3, S, S], bool [classes] (float32 where `soft` targets, [n, classes],
    take the place of `allowed`, or where some images show no lungs), float32 []. Without an augmenter the epoch does
    not matter. With `lungs`, masks like `pixels`, an augmented item has a fourth part: where the image's lungs lie,
    uint8 [1, S, S] in 0..255.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: Sequence[int],
        allowed: NDArray[np.bool_],
        weights: NDArray[np.float64],
        preparation: Preparation,
        augmenter: Augmenter | None = None,
        soft: NDArray[np.float32] | None = None,
        lungs: Pixels | None = None,
    ) -> None:
        self.pixels, self.rows, self.lungs = pixels, np.asarray(rows), lungs
        self.targets = torch.from_numpy(allowed if soft is None else soft)
        self.weights = torch.from_numpy(weights.astype(np.float32))
        self.preparation, self.augmenter = preparation, augmenter
        self.exchange: Exchange | None = None
        if augmenter is not None:
            self.exchange = Exchange(augmenter.config, augmenter.seed, pixels, rows, ~allowed[:, 0], lungs)
            if augmenter.config.blank:
                self.targets = self.targets.float()
        rest = allowed.shape[1] - 1
        self.even = torch.tensor([0.5] + [0.5 / rest] * rest)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, ...]:
        epoch, index = key
        row = self.rows[index]
        target = self.targets[index], self.weights[index]
        if self.augmenter is None or self.exchange is None:
            return prepare(torch.from_numpy(np.array(self.pixels[row]))[None], self.preparation)[0], *target
        crop = self.exchange.crop(epoch, index)
        canvas, owner = self.exchange.canvas(epoch, index)
        target = (self.even, self.weights[index]) if owner == NOBODY else (self.targets[owner], self.weights[owner])
        image = self.augmenter(canvas, epoch, index, crop)
        if self.lungs is None:
            return image, *target
        size, drawn = self.augmenter.drawn(epoch, index, crop)
        return image, *target, drawn.warp(torch.from_numpy(np.array(self.lungs[row]))[None], size)


class FeatureDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Features computed once, float32 [n, F], for training a head alone."""

    def __init__(self, features: Tensor, allowed: NDArray[np.bool_], weights: NDArray[np.float64]) -> None:
        self.features = features
        self.allowed = torch.from_numpy(allowed)
        self.weights = torch.from_numpy(weights.astype(np.float32))

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        index = key[1]
        return self.features[index], self.allowed[index], self.weights[index]


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index); the order depends on (seed, epoch) alone, and ranks take turns in it.

    With `balance` (a weight per sample) images are drawn with replacement in that proportion.
    `group` is the global batch size: the last incomplete batch of an epoch is left out in training, where
    at least one is complete.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool,
        group: int = 1,
        balance: NDArray[np.float64] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.length, self.seed, self.shuffle, self.balance = length, seed, shuffle, balance
        self.rank, self.world = rank, world
        whole = length - length % group if shuffle and length >= group else length
        # Every rank must train the same number of steps, or the others wait for ever; in validation they
        # meet at the end alone, so that no image need be left out.
        self.total = whole - whole % world if shuffle else whole
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next (called by Lightning)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self.total, self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            rng = np.random.default_rng([self.seed, self.epoch])
            if self.balance is None:
                order = rng.permutation(self.length)
            else:
                order = rng.choice(self.length, self.length, p=self.balance / self.balance.sum())
        for index in order[: self.total][self.rank :: self.world]:
            yield self.epoch, int(index)
