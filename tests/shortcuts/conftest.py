"""Toy chests whose lungs are known, and networks whose reasons are known because they were written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from tests.support.constructed import summing

from pneumoscope.data.manifest import Manifest
from pneumoscope.images.preparation import Pixels
from pneumoscope.predict import Classifier
from pneumoscope.records import NORMAL, PNEUMONIA, FloatArray, Sample

SIDE, CELLS = 64, 16


@dataclass(frozen=True)
class Toys:
    """A folder of toy chests as a manifest, and the function that knows their lungs."""

    manifest: Manifest
    masks: Callable[[Pixels], FloatArray]
    canvases: Pixels
    lungs: FloatArray


def toy(rng: np.random.Generator, ill: bool, marked: bool) -> tuple[Pixels, FloatArray]:
    """Two dark lungs in a grey body; an opacity in one of them, and a white square in a corner, where asked."""
    image = rng.normal(120, 4, (SIDE, SIDE))
    lungs = np.zeros((SIDE, SIDE), np.float32)
    for left in (8, 36):
        top, x = 14 + int(rng.integers(-2, 3)), left + int(rng.integers(-2, 3))
        lungs[top : top + 36, x : x + 20] = 1
    image[lungs > 0] = rng.normal(40, 4, int(lungs.sum()))
    if ill:
        x = int(rng.choice([12, 40]))
        image[24:36, x : x + 12] += 110
    if marked:
        image[1:7, 1:7] = 255
    return np.clip(image, 0, 255).astype(np.uint8), lungs


@pytest.fixture(scope="session")
def lung_reader() -> Classifier:
    """Calls pneumonia where the middles of the lungs are bright, and reads nothing else."""
    weight = np.zeros((CELLS, CELLS))
    weight[5:11, 3:6] = weight[5:11, 10:13] = 4.0
    return summing(weight, 0.4, SIDE, -1.5)


@pytest.fixture(scope="session")
def corner_reader() -> Classifier:
    """Calls pneumonia where the upper left corner is bright."""
    weight = np.zeros((CELLS, CELLS))
    weight[:2, :2] = 4.0
    return summing(weight, 0.55, SIDE, -1.5)


@pytest.fixture(scope="session")
def make_toys(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Toys]:
    """Make `make_toys(count, marked, labelled)`: every second one ill; `marked` puts the square beside the disease."""

    def make(count: int = 160, *, marked: bool = False, labelled: bool = True) -> Toys:
        rng = np.random.default_rng(3)
        folder = tmp_path_factory.mktemp("toys")
        known: dict[bytes, FloatArray] = {}
        samples, canvases, lungs = [], [], []
        for index in range(count):
            ill = index % 2 == 1
            image, mask = toy(rng, ill, marked and ill)
            path = folder / f"{index:03d}.png"
            Image.fromarray(image).save(path)
            known[image.tobytes()] = mask
            label = (PNEUMONIA if ill else NORMAL) if labelled else None
            samples.append(Sample(str(path), f"p{index // 4}-{ill}", label))
            canvases.append(image)
            lungs.append(mask)

        def masks(images: Pixels) -> FloatArray:
            return np.stack([known[image.tobytes()] for image in images])

        manifest = Manifest(folder, "folder", tuple(samples), "made up")
        return Toys(manifest, masks, np.stack(canvases), np.stack(lungs))

    return make
