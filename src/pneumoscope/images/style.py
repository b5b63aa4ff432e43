"""The style of a radiograph, and its exchange: how strong each spatial frequency is, and how its greys are distributed.

Both come from the machine, its processing and the file more than from the patient. Where two classes were taken with
different machines a network learns the machine; given the other class's style, an image shows whether it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

from pneumoscope.images.preparation import Pixels
from pneumoscope.records import Bools, FloatArray, Floats, Ints

LEVELS = 256
_FLOOR = 1e-3  # of power, so that an empty frequency has a logarithm
_MOST_GAIN = 10.0  # a frequency that an image lacks is noise when raised further


@dataclass(frozen=True, slots=True)
class Style:
    """What `restyled` moves an image to.

    `spectrum`: float32 [R], natural logarithm of the mean power at each radius of the cosine transform; R depends on
    the side alone. `greys`: float32 [256], the quantiles of grey, 0..255.
    """

    spectrum: FloatArray
    greys: FloatArray


def style_of(image: Pixels) -> Style:
    """Return the style of an image uint8 [S, S]."""
    shares = _shares(image)
    levels = np.searchsorted(np.cumsum(shares), (np.arange(LEVELS) + 0.5) / LEVELS)
    greys = np.minimum(levels, LEVELS - 1).astype(np.float32)
    return Style(_log_power(_cosines(image)).astype(np.float32), greys)


def restyled(image: Pixels, other: Style, *, spectrum: float = 1.0, greys: float = 1.0) -> Pixels:
    """Return uint8 [S, S] with the spectrum and the greys moved towards another image's, 0 not at all, 1 entirely.

    The spectrum first. Every frequency of one radius gets the same gain, so that structures stay where they are; the
    mean stays. `other` must be the style of an image of the same side.
    """
    if spectrum:
        cosines = _cosines(image)
        gain = np.exp(spectrum / 2 * (other.spectrum - _log_power(cosines)))
        gain = np.clip(gain, 1 / _MOST_GAIN, _MOST_GAIN)
        gain[0] = 1.0
        changed = idctn(cosines * gain[_radii(image.shape[0])], norm="ortho")
        image = np.rint(np.clip(changed, 0, LEVELS - 1)).astype(np.uint8)
    if greys:
        shares = _shares(image)
        rank = np.cumsum(shares) - shares / 2
        wanted = np.interp(rank, (np.arange(LEVELS) + 0.5) / LEVELS, other.greys)
        table = (1 - greys) * np.arange(LEVELS) + greys * wanted
        image = np.rint(table).astype(np.uint8)[image]
    return image


def donors(positive: Bools, among: Bools, rng: np.random.Generator) -> Ints:
    """Return for each image, bool [n] whether ill, the index of one of the other class in `among`, bool [m]: int64 [n].

    Both classes must be in `among`.
    """
    ill, well = np.flatnonzero(among), np.flatnonzero(~among)
    return np.where(positive, rng.choice(well, len(positive)), rng.choice(ill, len(positive)))


def _cosines(image: Pixels) -> Floats:
    # The cosine transform continues an image by its mirror image: no edge, which a Fourier transform would see.
    return np.asarray(dctn(image.astype(np.float64), norm="ortho"))


def _log_power(cosines: Floats) -> Floats:
    radii = _radii(len(cosines)).ravel()
    power = np.bincount(radii, weights=np.square(cosines).ravel())
    return np.log(power / np.bincount(radii) + _FLOOR)


@lru_cache(maxsize=8)
def _radii(side: int) -> NDArray[np.int64]:
    steps = np.arange(side)
    return np.rint(np.hypot(steps[:, None], steps)).astype(np.int64)


def _shares(image: Pixels) -> Floats:
    return np.bincount(image.ravel(), minlength=LEVELS) / image.size
