"""Networks whose reasons are known, because they were written by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.support.constructed import classifier_of, summing

from pneumoscope.images.preparation import Pixels, Preparation
from pneumoscope.networks.network import Network
from pneumoscope.predict import Classifier

SIDE, CELLS = 60, 6
PLACE = (2, 4)  # row and column of the cell that counts


@pytest.fixture(scope="session")
def hand_made() -> Callable[[Network, Preparation], Classifier]:
    """Make a classifier of a network that no bundle holds."""
    return classifier_of


@pytest.fixture(scope="session")
def planted() -> Classifier:
    """Its log-odds are how much brighter than a third one field of 36 is, and nothing else."""
    weight = np.zeros((CELLS, CELLS))
    weight[PLACE] = 12.0
    return summing(weight, 1 / 3, SIDE)


@pytest.fixture(scope="session")
def coefficients() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 3, (CELLS, CELLS))


@pytest.fixture(scope="session")
def linear(coefficients: np.ndarray) -> Classifier:
    """Its log-odds are a weighted sum of how bright 36 fields are."""
    return summing(coefficients, 0.0, SIDE)


@pytest.fixture
def bright_place() -> Pixels:
    """Noise, and a bright field where the planted network looks."""
    image = np.random.default_rng(0).integers(0, 160, (SIDE, SIDE), dtype=np.uint8)
    row, column = (10 * index for index in PLACE)
    image[row : row + 10, column : column + 10] = 240
    return image


@pytest.fixture(scope="session")
def place() -> np.ndarray:
    """Where that field is, bool [60, 60]."""
    mask = np.zeros((SIDE, SIDE), bool)
    row, column = (10 * index for index in PLACE)
    mask[row : row + 10, column : column + 10] = True
    return mask
